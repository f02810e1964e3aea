import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_step import DULL, make_batch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safeladder.policies import checkpoint
from safeladder.policies.checkpoint import CheckpointError, CheckpointState
from safeladder.policies.model import load, resolve
from safeladder.policies.step import LearnerStep


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return resolve("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def learner(tiny):
    """A learner that has made two steps, so that its optimizer has something to lose."""
    model, tokenizer = load(tiny)
    made = LearnerStep(model, DULL)
    made.tokenizer = tokenizer
    for seed in (0, 1):
        made.train(make_batch(model, seed=seed))
    return made


def save(learner, directory, step=2):
    state = CheckpointState(step=step, version=7, ledger_head="ab", feeder_cursor=9, extra={"lambda": 0.5})
    return checkpoint.save(directory, step, learner.model, learner.tokenizer, learner.optimizer, state)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_step_after_a_restore_is_the_same_bit_for_bit(learner, tiny, tmp_path):
    path = save(learner, tmp_path)
    batch = make_batch(learner.model, seed=5)
    drawn = torch.rand(4)
    report = learner.train(batch)

    other = load(tiny)[0]
    resumed = LearnerStep(other, DULL)
    resumed.train(make_batch(other, seed=9))  # another past, which the restore must leave nothing of
    torch.rand(100)
    state = checkpoint.restore(path, other, resumed.optimizer)
    resumed.steps_done = state.step
    assert torch.equal(drawn, torch.rand(4))
    again = resumed.train(batch)
    assert (again.loss, again.grad_norm, again.step) == (report.loss, report.grad_norm, report.step)
    assert all(torch.equal(p, weights(other)[name]) for name, p in weights(learner.model).items())
    assert state == CheckpointState(step=2, version=7, ledger_head="ab", feeder_cursor=9, extra={"lambda": 0.5})
    assert checkpoint.read_state(path) == state


def test_a_checkpoint_is_a_model_that_transformers_loads(learner, tmp_path):
    path = save(learner, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert all(torch.equal(p, weights(model)[name]) for name, p in weights(learner.model).items())
    assert AutoTokenizer.from_pretrained(path).encode("a b") == learner.tokenizer.encode("a b")


def test_before_the_first_step_there_is_no_optimizer_state_to_keep(tiny, tmp_path):
    model, tokenizer = load(tiny)
    fresh = LearnerStep(model, DULL)
    path = checkpoint.save(tmp_path, 0, model, tokenizer, fresh.optimizer, CheckpointState(step=0, version=0))
    fresh.train(make_batch(model))
    assert checkpoint.restore(path, model, fresh.optimizer).step == 0
    assert not fresh.optimizer.state


def test_latest_takes_the_newest_whole_checkpoint(learner, tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    paths = [save(learner, tmp_path, step) for step in (2, 10, 9)]
    (tmp_path / ".partial-step-00000099-1-1").mkdir()
    (tmp_path / "step-00000098").mkdir()
    (tmp_path / "step-notes").mkdir()
    assert checkpoint.latest(tmp_path) == paths[1]
    with (paths[1] / "optimizer.safetensors").open("rb+") as file:
        file.truncate(100)
    assert checkpoint.latest(tmp_path) == paths[2]
    (paths[2] / "config.json").unlink()
    assert checkpoint.latest(tmp_path) == paths[0]


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json"]), place=st.floats(0, 0.999))
def test_any_altered_byte_is_refused_and_changes_nothing(tiny, tmp_path_factory, name, place):
    model, tokenizer = load(tiny)
    learner = LearnerStep(model, DULL)
    state = CheckpointState(step=0, version=0)
    path = checkpoint.save(tmp_path_factory.mktemp("altered"), 0, model, tokenizer, learner.optimizer, state)
    data = bytearray((path / name).read_bytes())
    data[int(place * len(data))] ^= 0x40
    (path / name).write_bytes(data)
    before = weights(model)
    with pytest.raises(CheckpointError, match=f"{name} was altered"):
        checkpoint.restore(path, model, learner.optimizer)
    assert all(torch.equal(before[name], p) for name, p in weights(model).items())


def test_a_checkpoint_of_another_model_is_refused(learner, tiny, tmp_path):
    path = save(learner, tmp_path)
    model = load(tiny)[0]
    model.resize_token_embeddings(model.config.vocab_size + 8)
    with pytest.raises(CheckpointError, match=r"does not belong to this model|another model"):
        checkpoint.restore(path, model, LearnerStep(model, DULL).optimizer)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_debris(learner, tmp_path):
    """The system itself refuses: no file of this process may grow beyond the limit."""
    old = save(learner, tmp_path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (3_000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=r"step 3 could not be written to .*step-00000003"):
                save(learner, tmp_path, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert checkpoint.restore(old, learner.model, learner.optimizer).step == 2


def test_a_directory_that_cannot_be_made_is_named(learner, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file"):
        save(learner, tmp_path / "file" / "checkpoints")


def test_a_process_killed_while_it_saves_leaves_the_old_checkpoint_newest(learner, tiny, tmp_path):
    old = save(learner, tmp_path)
    script = (
        "import os, signal, sys, pathlib\n"
        "from safeladder.policies import checkpoint\n"
        "from safeladder.policies.model import load\n"
        "from safeladder.policies.step import LearnerStep\n"
        "model, tokenizer = load(pathlib.Path(sys.argv[1]))\n"
        "checkpoint._commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # dies at the last moment
        "state = checkpoint.CheckpointState(step=3, version=3)\n"
        "checkpoint.save(pathlib.Path(sys.argv[2]), 3, model, tokenizer, LearnerStep(model).optimizer, state)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tiny), str(tmp_path)], capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".partial-*"))) == 1
    assert checkpoint.latest(tmp_path) == old
    new = save(learner, tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [old.name, new.name]


def test_saving_a_step_again_replaces_what_was_torn(learner, tmp_path):
    path = save(learner, tmp_path)
    shutil.rmtree(path)
    path.mkdir()
    assert checkpoint.latest(tmp_path) is None
    assert save(learner, tmp_path) == checkpoint.latest(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_retire_keeps_the_newest(learner, tmp_path):
    paths = [save(learner, tmp_path, step) for step in (2, 3, 4)]
    assert checkpoint.retire(tmp_path, keep=2) == paths[:1]
    assert checkpoint.committed(tmp_path) == paths[1:]
    assert checkpoint.retire(tmp_path, keep=2) == []
    with pytest.raises(ValueError, match="at least 1"):
        checkpoint.retire(tmp_path, keep=0)


def test_nothing_in_a_checkpoint_is_a_pickle(learner, tmp_path):
    path = save(learner, tmp_path)
    assert {file.suffix for file in path.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt", ".model"}
    assert not any(file.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05", b"PK") for file in path.iterdir())
