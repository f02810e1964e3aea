"""Two ranks, real processes, learn what one learns; a checkpoint of either is continued by the other."""

from __future__ import annotations

from itertools import product

import pytest
import rank_learner
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_ranks import run_ranks
from transformers import AutoModelForCausalLM

from safeladder.policies import checkpoint, lora, parallel, weights
from safeladder.policies.model import load, resolve
from safeladder.policies.parallel import divide
from safeladder.policies.ranks import Ranks
from safeladder.policies.tensors import distinct

ALONE = Ranks.alone()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return resolve("tiny", tmp_path_factory.mktemp("models"))


# ------------------------------------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module", params=["learn", "learn_adapters"])
def both(request, tiny, tmp_path_factory):
    """One rank's three steps in this process, two ranks' in others, and the folder where they left what they have."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "model").symlink_to(tiny)
    adapted = request.param == "learn_adapters"
    learner = model, _, optimizer = rank_learner.make(folder / "model", ALONE, adapted)
    gradients, norm = rank_learner.train(model, optimizer, ALONE, [0])
    rank_learner.train(model, optimizer, ALONE, [1])
    rank_learner.save(folder / "one", 2, learner, ALONE)
    rank_learner.train(model, optimizer, ALONE, [2])
    weights = {name: tensor.clone() for name, tensor in lora.merged_state(model).collected().items()}
    scores = rank_learner.scores_around_a_step(model, optimizer, ALONE)
    return {
        "folder": folder,
        "adapted": adapted,
        "weights": weights,
        "gradients": gradients,
        "norm": norm,
        "scores": scores,
        "found": run_ranks(request.param, folder),
    }


def published(both, version):
    return weights.read_tensors(weights.folder(both["folder"] / "weights", version))[1]


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance * float(tensor.abs().max()), rtol=0, msg=name)


def test_gradients_are_the_sum_over_ranks(both):
    """FSDP's mean would give half of it. A rank without a pack adds nothing."""
    assert_close(load_file(both["folder"] / "gradients.safetensors"), both["gradients"], 1e-5)
    assert [found["norm"] for found in both["found"]] == [pytest.approx(both["norm"], rel=1e-5)] * 2


def test_three_steps_lead_to_the_same_weights(both):
    expected = both["weights"]
    start = distinct(load(both["folder"] / "model")[0])
    found = published(both, 3)
    assert_close(found, expected, 1e-5)
    moved = max(float((expected[name] - tensor).abs().max()) for name, tensor in start.items())
    assert moved > 1e-3, "so small a difference would mean nothing if the steps had hardly moved"


def test_a_step_is_seen_by_the_next_forward(both):
    """Also when a forward without gradient has gathered the parameters just before."""
    before, after = (torch.tensor(scores) for scores in both["scores"])
    assert (after - before).abs().mean() > 2e-3
    for found in both["found"]:
        torch.testing.assert_close(torch.tensor(found["scores"]), torch.stack([before, after]), atol=1e-4, rtol=0)


def test_each_rank_holds_half_and_the_publication_is_the_plain_model(both):
    assert [found["share"] for found in both["found"]] == [pytest.approx(0.5, abs=0.02)] * 2
    plain = load(both["folder"] / "model")[0]
    weights.load_into(plain, weights.folder(both["folder"] / "weights", 3))


def test_one_rank_goes_on_from_the_checkpoint_of_two(both):
    model, _, optimizer = rank_learner.make(both["folder"] / "model", ALONE, both["adapted"])
    path = both["folder"] / "two" / "step-00000002"
    assert checkpoint.restore(path, model, optimizer).version == 2
    rank_learner.train(model, optimizer, ALONE, [2])
    assert_close(lora.merged_state(model).collected(), published(both, 3), 1e-5)
    assert type(AutoModelForCausalLM.from_pretrained(path)) is type(load(both["folder"] / "model")[0])


def test_two_ranks_go_on_from_the_checkpoint_of_one(both):
    assert [found["restored"] for found in both["found"]] == [2, 2]
    assert_close(published(both, 4), both["weights"], 1e-5)


def test_two_checkpoints_of_the_same_step_hold_the_same_names(both):
    one, two = (both["folder"] / name / "step-00000002" for name in ("one", "two"))
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    for name in files:
        if name.endswith(".safetensors"):
            assert {k: (t.dtype, t.shape) for k, t in load_file(one / name).items()} == {
                k: (t.dtype, t.shape) for k, t in load_file(two / name).items()
            }


def test_a_full_disk_is_told_to_every_rank_and_they_go_on(both):
    said = [found["disk"] for found in both["found"]]
    assert said[0] == said[1] and "step 3 could not be written" in said[0]
    assert [path.name for path in (both["folder"] / "two").iterdir()] == ["step-00000002"]


# ------------------------------------------------------------------------------------------------------------- dividing

costs = st.lists(st.integers(1, 1000), max_size=40)


@given(costs=costs, world=st.integers(1, 9))
def test_every_pack_is_computed_once_and_all_ranks_make_equally_many_passes(costs, world):
    shares = divide(costs, world)
    assert len(shares) == world
    assert {len(share) for share in shares} == {-(-len(costs) // world)}
    assert sorted(pack for share in shares for pack in share if pack is not None) == list(range(len(costs)))
    rounds = list(zip(*shares, strict=True))
    assert all(None not in packs for packs in rounds[:-1])


def duration(costs, rounds):
    return sum(max((costs[pack] for pack in packs if pack is not None), default=0) for packs in rounds)


@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=5), world=st.integers(1, 3))
def test_no_other_way_of_dealing_is_faster(costs, world):
    count = -(-len(costs) // world)
    ways = product(range(count), repeat=len(costs))
    rounds = ([[pack for pack, place in enumerate(way) if place == r] for r in range(count)] for way in ways)
    fastest = min(duration(costs, way) for way in rounds if max(map(len, way)) <= world)
    assert duration(costs, zip(*divide(costs, world), strict=True)) == fastest


@given(costs=costs, world=st.integers(1, 9))
def test_totals_differ_by_at_most_the_longest_pack(costs, world):
    totals = [sum(costs[pack] for pack in share if pack is not None) for share in divide(costs, world)]
    assert max(totals) - min(totals) <= max(costs, default=0)


def test_no_rank_at_all_is_refused():
    with pytest.raises(ValueError, match="world is 0"):
        divide([1], 0)


# --------------------------------------------------------------------------------------------------------------- pieces


def test_alone_a_model_stays_as_it_is(tiny):
    model = load(tiny)[0]
    assert parallel.shard(model, ALONE) is model and type(model) is parallel.plain_class(model)


def test_an_idle_pass_gives_every_parameter_a_gradient_of_zero(tiny):
    model = load(tiny)[0]
    parallel.idle_pass(model, gradient=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    parallel.idle_pass(model)
    assert all(bool((parameter.grad == 0).all()) for parameter in model.parameters())


def test_the_norm_is_of_all_gradients_and_the_limit_is_kept():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    assert parallel.clip_gradient(parameters, 1.0) == 0.0
    for parameter, value in zip(parameters, (3.0, 4.0), strict=False):
        parameter.grad = torch.tensor([value, 0.0])
    assert parallel.clip_gradient(parameters, 1.0) == pytest.approx(5.0)
    assert parallel.clip_gradient(parameters, 10.0) == pytest.approx(1.0)
