"""Tensors are made one at a time, written as the safetensors library reads them, and gathered to the end."""

from __future__ import annotations

import hashlib
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from test_weights import tensor_sets

from safeladder.policies.tensors import FORMAT_NAMES, Part, Stream, assign, write


def stream(tensors):
    return Stream({name: Part.of(tensor) for name, tensor in tensors.items()})


@settings(max_examples=60, deadline=None)
@given(tensors=tensor_sets(), note=st.dictionaries(st.text("abcé", max_size=4), st.text(max_size=9), max_size=3))
def test_the_library_reads_back_what_was_written(tensors, note, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    digest = write(path, stream(tensors), note)
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    back = load_file(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == note


def test_every_named_type_survives_and_others_are_refused(tmp_path):
    tensors = {str(dtype): torch.arange(3).to(dtype) for dtype in FORMAT_NAMES}
    write(tmp_path / "all", stream(tensors))
    back = load_file(tmp_path / "all")
    assert all(torch.equal(back[name].double(), tensor.double()) for name, tensor in tensors.items())
    assert all(back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with pytest.raises(ValueError, match=r"odd is torch\.complex64"):
        write(tmp_path / "odd", stream({"odd": torch.zeros(1, dtype=torch.complex64)}))


def test_while_one_tensor_is_made_no_other_is_kept(tmp_path):
    made: list[weakref.ref] = []

    def make():
        assert not any(reference() is not None for reference in made)
        tensor = torch.ones(100)
        made.append(weakref.ref(tensor))
        return tensor

    write(tmp_path / "file", Stream({name: Part(torch.float32, (100,), make) for name in "abcd"}))
    assert len(made) == 4


def test_a_stream_that_was_broken_off_goes_on_where_it_stopped():
    tensors = {
        "small": torch.zeros(2, dtype=torch.float16),
        "wide": torch.zeros(2, dtype=torch.float64),
        "a": torch.zeros(3),
    }
    parts = stream(tensors)
    assert parts.bytes == 4 + 16 + 12
    for name, _ in parts:
        assert name == "wide"
        break
    assert list(parts.collected()) == ["a", "small"]
    assert parts.collected() == {}


def test_a_tensor_that_is_not_what_was_announced_is_named():
    with pytest.raises(ValueError, match=r"w came as torch.float32 \[2\], not torch.float32 \[3\]"):
        Stream({"w": Part(torch.float32, (3,), lambda: torch.zeros(2))}).exhaust()


def test_assigning_keeps_the_place_and_the_type():
    target = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    place = target.data_ptr()
    assign(target, torch.ones(2))
    assert target.data_ptr() == place and target.dtype == torch.bfloat16 and bool((target == 1).all())
