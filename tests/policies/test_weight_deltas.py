"""A delta gives back every bit; what does not follow from what a reader has, or was not made by this run, is refused."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies import weights
from safeladder.policies.tensors import bits_of
from safeladder.policies.weights import Publisher, Reader, WeightsError, delta, folder, manifest, retire
from safeladder.policies.weights.publishing import stream_of

KEY, OTHER = b"k" * 32, b"o" * 32
DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8, torch.float8_e4m3fn)
# a quiet and a signalling NaN with payloads, -0.0, a denormal, an infinity, in bfloat16 and float32
ODD = {torch.bfloat16: [0x7FC1, 0x7F81, 0x8000, 0x0001, 0x7F80], torch.float32: [0x7FC00123, 0x7F800001, 1 << 31, 1]}


def bits(tensor: torch.Tensor) -> list[int]:
    return bits_of(tensor).tolist()


def tensor_of(pattern: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.empty(len(pattern), dtype=dtype)
    bits_of(tensor)[:] = pattern
    return tensor


@st.composite
def changes(draw):
    """An old and a new state of one tensor of any bits, of which few, many or all change, a little or wholly."""
    dtype = draw(st.sampled_from(DTYPES))
    unsigned = np.dtype(f"u{dtype.itemsize}")
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    length = draw(st.sampled_from([0, 1, 7, 300, 3000]))
    top = np.iinfo(unsigned).max
    old = random.integers(0, top, length, unsigned, endpoint=True)
    where = random.random(length) < draw(st.sampled_from([0.0, 0.002, 0.1, 0.6, 1.0]))
    if draw(st.booleans()):
        new = np.where(where, old + random.choice(np.array([1, 2, top], unsigned), length), old).astype(unsigned)
    else:
        new = np.where(where, random.integers(0, top, length, unsigned, endpoint=True), old).astype(unsigned)
    odd = np.array(ODD.get(dtype, []), unsigned)[:length]
    new[: len(odd)] = odd
    return tensor_of(old, dtype), tensor_of(new, dtype)


@settings(max_examples=120, deadline=None)
@given(pair=changes())
def test_any_change_of_any_bits_comes_back_exactly(pair):
    old, new = pair
    pieces = delta.difference(bits_of(old), bits_of(new))
    rebuilt = old.clone()
    if pieces:
        delta.apply(bits_of(rebuilt), pieces)
    assert bits(rebuilt) == bits(new)


@settings(max_examples=60, deadline=None)
@given(pair=changes(), data=st.data())
def test_damaged_pieces_raise_a_named_error_or_are_something_else_but_never_run_over(pair, data):
    old, new = pair
    pieces = delta.difference(bits_of(old), bits_of(new))
    if not pieces:
        return
    kind = data.draw(st.sampled_from(sorted(pieces)))
    content = bytearray(pieces[kind])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    rebuilt = old.clone()
    try:
        delta.apply(bits_of(rebuilt), {**pieces, kind: bytes(content)})
    except delta.DeltaError:
        return
    assert len(bits(rebuilt)) == len(bits(new))


# --------------------------------------------------------------------------------------------------------- chains


def states(count: int, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    """Weights that move a little from one to the next."""
    generator = torch.Generator().manual_seed(5)
    state = {"a": torch.randn(40, 50, generator=generator), "b": torch.randn(31, generator=generator)}
    found = []
    for _ in range(count):
        moved = torch.rand(40, 50, generator=generator) < 0.03
        state = {"a": torch.where(moved, state["a"] * 1.01, state["a"]), "b": state["b"]}
        found.append({name: tensor.to(dtype) for name, tensor in state.items()})
    return found


def chain(directory, count: int, full_every: int = 4, key: bytes | None = KEY):
    """Publishes versions 1 to `count`; gives their states by version."""
    publisher = Publisher(directory, key, full_every)
    made = dict(enumerate(states(count), 1))
    for version, state in made.items():
        publisher.publish(stream_of(state), version, step=version)
    return made


def same(tensors, state) -> bool:
    return tensors.keys() == state.keys() and all(bits(tensors[name]) == bits(state[name]) for name in state)


def test_a_reader_that_follows_and_one_that_comes_late_have_the_same_bits(tmp_path):
    made = chain(tmp_path, 7)
    bases = {version: weights.read(tmp_path, version, KEY).base for version in made}
    assert bases == {1: None, 2: 1, 3: 2, 4: 3, 5: None, 6: 5, 7: 6}
    follower = Reader(KEY)
    for version, state in made.items():
        assert same(follower.read(folder(tmp_path, version))[1], state)
    assert same(Reader(KEY).read(folder(tmp_path, 7))[1], made[7])
    skipped = Reader(KEY)
    skipped.read(folder(tmp_path, 2))
    assert same(skipped.read(folder(tmp_path, 4))[1], made[4])
    assert same(skipped.read(folder(tmp_path, 7))[1], made[7])


def test_a_delta_of_a_small_step_is_small(tmp_path):
    chain(tmp_path, 2)
    full, small = (weights.read(tmp_path, version, KEY).bytes for version in (1, 2))
    assert small < 0.1 * full


def test_weights_that_move_everywhere_are_published_full(tmp_path):
    publisher = Publisher(tmp_path, KEY, full_every=4)
    random = torch.Generator().manual_seed(1)
    made = [{"a": torch.randn(1000, generator=random)} for _ in range(3)]
    for version, state in enumerate(made):
        assert publisher.publish(stream_of(state), version).base is None
    assert same(Reader(KEY).read(folder(tmp_path, 2))[1], made[2])


def test_weights_are_published_in_the_type_that_was_asked_for(tmp_path):
    publisher = Publisher(tmp_path, KEY, full_every=4)
    made = states(3)
    for version, state in enumerate(made):
        publisher.publish(stream_of({**state, "count": torch.tensor([version])}, torch.bfloat16), version)
    _, tensors = Reader(KEY).read(folder(tmp_path, 2))
    assert tensors["count"].tolist() == [2]
    assert bits(tensors["a"]) == bits(made[2]["a"].bfloat16())


def test_retiring_keeps_what_a_late_reader_needs(tmp_path):
    made = chain(tmp_path, 7)
    assert retire(tmp_path, keep=2, key=KEY) == [1, 2, 3, 4]
    assert weights.versions(tmp_path) == [5, 6, 7]
    assert same(Reader(KEY).read(folder(tmp_path, 7))[1], made[7])


def test_a_publication_that_failed_is_followed_by_a_full_one(tmp_path):
    publisher = Publisher(tmp_path, KEY, full_every=9)
    made = states(3)
    publisher.publish(stream_of(made[0]), 1)
    with pytest.raises(WeightsError, match="never reused"):
        publisher.publish(stream_of(made[1]), 1)
    assert publisher.publish(stream_of(made[2]), 2).base is None


# ------------------------------------------------------------------------------------------------------- refusals


def test_what_a_stranger_publishes_is_refused_by_name(tmp_path):
    state = states(1)[0]
    weights.publish(state, tmp_path, 1)
    weights.publish(state, tmp_path, 2, key=OTHER)
    weights.publish(state, tmp_path, 3, key=KEY)
    for version, message in ((1, "unsigned"), (2, "signed with key")):
        with pytest.raises(WeightsError, match=message):
            Reader(KEY).read(folder(tmp_path, version))
    with pytest.raises(WeightsError, match=r"weights.key is needed"):
        Reader().read(folder(tmp_path, 3))
    forged = weights.read_manifest(folder(tmp_path, 3), KEY)
    forged = msgspec.structs.replace(forged, digest="sha256:" + "0" * 64)
    (folder(tmp_path, 3) / "manifest.json").write_bytes(manifest.encoded(forged))
    with pytest.raises(WeightsError, match="altered"):
        Reader(KEY).read(folder(tmp_path, 3))


def test_a_gap_and_another_base_are_refused_and_the_reader_goes_on_with_the_next_full_version(tmp_path):
    made = chain(tmp_path / "ours", 5)
    chain(tmp_path / "theirs", 3)
    ours = tmp_path / "ours"
    shutil.rmtree(folder(ours, 2))
    reader = Reader(KEY)
    reader.read(folder(ours, 1))
    with pytest.raises(WeightsError, match="difference to version 2, which cannot be had"):
        reader.read(folder(ours, 3))
    shutil.copytree(folder(tmp_path / "theirs", 2), folder(ours, 2))
    with pytest.raises(WeightsError, match="another version 2 than the one that is here"):
        reader.read(folder(ours, 3))
    assert same(reader.read(folder(ours, 5))[1], made[5])


@pytest.mark.parametrize("damage", ["torn", "altered", "missing"])
def test_a_damaged_delta_is_refused_and_the_reader_catches_up_once_it_is_whole(tmp_path, damage):
    made = chain(tmp_path, 3)
    reader = Reader(KEY)
    reader.read(folder(tmp_path, 2))
    file = folder(tmp_path, 3) / "delta.safetensors"
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-3] if damage == "torn" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"delta.safetensors|cannot read"):
        reader.read(folder(tmp_path, 3))
    file.write_bytes(whole)
    assert same(reader.read(folder(tmp_path, 3))[1], made[3])


def test_tensors_stay_as_verified_when_somebody_writes_into_the_folder_afterwards(tmp_path):
    made = chain(tmp_path, 1)
    _, tensors = Reader(KEY).read(folder(tmp_path, 1))
    file = folder(tmp_path, 1) / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-64, 2)
        opened.write(b"\xff" * 64)
    assert same(tensors, made[1])
