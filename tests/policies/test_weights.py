"""A publication is read whole and unaltered, or not at all."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.tensors import Part, Stream, distinct
from safeladder.policies.weights import WeightsError, folder, folders, load_into, publish, read, read_tensors, retire

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)


@st.composite
def tensor_sets(draw):
    names = draw(st.lists(st.text("abc.é_", min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    result = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        values = torch.randint(0, 100, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
        result[name] = values.transpose(0, -1) if values.dim() > 1 and draw(st.booleans()) else values
    return result


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return models.resolve("tiny", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny(tiny_folder):
    return models.load(tiny_folder)[0]


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


# ------------------------------------------------------------------------------------------------------- round trip


@settings(max_examples=40, deadline=None)
@given(tensors=tensor_sets(), version=st.integers(0, 10**9))
def test_any_set_of_tensors_survives_the_round_trip(tensors, version, tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    published = publish(tensors, directory, version, step=3, created_by="test")
    manifest, back = read_tensors(folder(directory, version))
    assert manifest == published == read(directory, version)
    assert (manifest.version, manifest.step, manifest.base) == (version, 3, None)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_refused_and_the_model_keeps_its_weights(data, tmp_path):
    shutil.rmtree(tmp_path / "v00000001", ignore_errors=True)
    publish(linear(1.0), tmp_path, 1)
    victim = folder(tmp_path, 1) / data.draw(st.sampled_from(["manifest.json", "model.safetensors"]))
    content = bytearray(victim.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(content)
    reader = linear(7.0)
    with pytest.raises(WeightsError):
        load_into(reader, folder(tmp_path, 1))
    assert torch.equal(reader.weight, linear(7.0).weight)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn", "longer"])
def test_missing_and_torn_files_are_refused(tmp_path, name, damage):
    publish(linear(1.0), tmp_path, 1)
    victim = folder(tmp_path, 1) / name
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-5] if damage == "torn" else victim.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=name if damage != "missing" else "cannot read"):
        read(tmp_path, 1)


def test_a_version_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="v00000004"):
        read(tmp_path, 4)


def test_a_publication_under_another_number_is_refused(tmp_path):
    publish(linear(1.0), tmp_path, 1)
    shutil.copytree(folder(tmp_path, 1), folder(tmp_path, 2))
    with pytest.raises(WeightsError, match="manifest of version 1"):
        read(tmp_path, 2)


# ------------------------------------------------------------------------------------------------------- models


def test_a_model_is_copied_in_place_with_tied_tensors_written_once(tiny, tiny_folder, tmp_path):
    source, _ = models.load(tiny_folder)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.25)
    manifest = publish(source, tmp_path, 1)
    names = [entry.name for entry in manifest.tensors]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert set(names) == distinct(source).keys()
    addresses = [parameter.data_ptr() for parameter in tiny.parameters()]
    load_into(tiny, folder(tmp_path, 1))
    assert addresses == [parameter.data_ptr() for parameter in tiny.parameters()]
    for (name, ours), (_, theirs) in zip(tiny.state_dict().items(), source.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_lower_precision_readers_take_float32_weights(tmp_path):
    publish(linear(1.0), tmp_path, 1)
    reader = linear(0.0).bfloat16()
    load_into(reader, folder(tmp_path, 1))
    assert reader.weight.dtype == torch.bfloat16 and bool((reader.weight == 1).all())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "missing bias; unexpected none"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "extra": torch.ones(1)}, "missing none; unexpected extra"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"weight is torch.float32 \[3, 2\].*\[2, 3\]"),
        ({"weight": torch.ones(2, 3, dtype=torch.int64), "bias": torch.ones(2)}, "weight is torch.int64"),
    ],
)
def test_another_models_weights_are_refused_naming_the_difference(tmp_path, tensors, message):
    publish(tensors, tmp_path, 1)
    reader = linear(7.0)
    with pytest.raises(WeightsError, match=message):
        load_into(reader, folder(tmp_path, 1))
    assert torch.equal(reader.weight, linear(7.0).weight), "nothing may be copied from a publication that does not fit"


# ------------------------------------------------------------------------------------------------------- publishing


def test_a_version_is_never_published_twice(tmp_path):
    publish(linear(1.0), tmp_path, 1)
    with pytest.raises(WeightsError, match="never reused"):
        publish(linear(2.0), tmp_path, 1)
    assert bool((read_tensors(folder(tmp_path, 1))[1]["weight"] == 1).all())


def test_a_publication_that_fails_leaves_nothing_behind_and_its_stream_is_run_to_the_end(tmp_path):
    """The system itself refuses: no file of this process may grow beyond the limit."""
    made = []

    def part(name):
        return Part(torch.float32, (1000,), lambda: made.append(name) or torch.ones(1000))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
    try:
        with pytest.raises(WeightsError, match=r"version 1 \(12,000 bytes\).*too large"):
            publish(Stream({name: part(name) for name in "abc"}), tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert made == ["a", "b", "c"]


KILLED_PUBLISHER = """
import os, signal, sys
from pathlib import Path
import torch
from safeladder.policies import weights
from safeladder.policies.weights import publishing
real = publishing.write
def killed(path, stream, seen=None):
    real(path, stream, seen=seen)
    os.kill(os.getpid(), signal.SIGKILL)
publishing.write = killed
weights.publish({"a": torch.ones(1000)}, Path(sys.argv[1]), 2)
"""


def test_a_publisher_killed_half_way_leaves_no_version_and_the_next_one_cleans_up(tmp_path):
    publish({"a": torch.zeros(1000)}, tmp_path, 1)
    process = subprocess.run([sys.executable, "-c", KILLED_PUBLISHER, str(tmp_path)], timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    assert weights.versions(tmp_path) == [1]
    assert len(list(tmp_path.iterdir())) == 2, "the killed publisher's partial folder is there"
    publish({"a": torch.ones(1000)}, tmp_path, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["v00000001", "v00000002"]


# ------------------------------------------------------------------------------------------------------- keeping


def test_retiring_keeps_the_newest_and_those_in_use_and_an_open_reader_goes_on(tmp_path):
    assert weights.latest(tmp_path / "nowhere") is None
    for version in (1, 2, 3, 10, 11):
        publish({"a": torch.full((1000,), float(version))}, tmp_path, version)
    _, opened = read_tensors(folder(tmp_path, 2))
    assert retire(tmp_path, keep=2, in_use=[1]) == [2, 3]
    assert weights.versions(tmp_path) == [1, 10, 11]
    assert weights.latest(tmp_path) == 11
    assert bool((opened["a"] == 2).all())
    assert retire(tmp_path, keep=5) == []
    with pytest.raises(ValueError, match="newest"):
        retire(tmp_path, keep=0)


def test_the_home_is_in_shared_memory_when_there_is_room(tmp_path, monkeypatch):
    shared, fallback = tmp_path / "shm", tmp_path / "run" / "weights"
    shared.mkdir()
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))
    found = weights.home("demo", 1000, fallback, shared_memory=shared)
    assert found.is_dir() and shared in found.parents and "demo" in found.name
    assert found.parent.stat().st_mode & 0o077 == 0
    assert found == weights.home("demo", 1000, fallback, shared_memory=shared)
    assert found != weights.home("demo", 1000, tmp_path / "other", shared_memory=shared)
    assert weights.home("demo", 1001, fallback, shared_memory=shared) == fallback
    assert weights.home("demo", 1, fallback, shared_memory=tmp_path / "none") == fallback
    assert fallback.is_dir()


def test_a_shared_folder_that_others_can_enter_is_not_used(tmp_path):
    shared, fallback = tmp_path / "shm", tmp_path / "weights"
    (shared / f"safeladder-{os.getuid()}").mkdir(parents=True)
    (shared / f"safeladder-{os.getuid()}").chmod(0o777)
    assert weights.home("demo", 1, fallback, shared_memory=shared) == fallback
