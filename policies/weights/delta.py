"""What changed between two versions of a tensor, bit for bit, in few bytes.

An element has changed when its bits have, whatever number they stand for: NaN payloads and -0.0 are kept like any other value. Of each
tensor with a change two things are stored:

    where   "gaps"  elements skipped before each changed one, a byte each; 255 means 255 and more to come
            "mask"  one bit an element, lowest bit first
            "all"   nothing: every element has an entry
    what    the difference of the bit patterns as integers, modulo 2^bits and folded to small numbers (0, -1, 1, -2, ... ->
            0, 1, 2, 3, ...), split into planes: all lowest bytes first, then all second ones, ...

whichever of the three is smallest before compression; where a sample of the elements has mostly changed, "all" without
counting. A step of an optimizer at a small learning rate moves most elements of a bfloat16 tensor by no bit and the others by one
unit in the last place, so that `where` is short and `what` hardly anything; in float32 nearly everything moves, and what is saved
are the upper planes, which are zero.

Each piece is then compressed by zlib (level 1, runs and Huffman only: on these pieces smaller than its search for repetitions, and
twice as fast; zstd at level 1 was four times as fast and no smaller, which was not worth a dependency), and stored as it is where
that gains nothing: the first byte of a piece says which.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]  # unsigned integers: the bits of a tensor's elements, flat
Where = Literal["gaps", "mask", "all"]

STORED, DEFLATED = b"\0", b"\1"
SAMPLE_BYTES: Final = 2**16  # what is tried before a piece is compressed whole
WORTH: Final = 0.9  # compressed size of the sample, over its own, up to which compression pays
SAMPLE_ELEMENTS: Final = 2**14  # compared before all are
MOSTLY: Final = 0.9  # share of them that has changed, from which on nobody looks for the others
BLOCK: Final = 2**20  # elements looked at together: what is computed on them stays in the processor's cache


class DeltaError(ValueError):
    """Pieces that are no delta of the tensor they are meant for; says what is wrong with them."""


def difference(old: Bits, new: Bits) -> dict[str, bytes]:
    """The pieces that make `new` out of `old` (same type and length): {} when nothing changed."""
    stride = max(1, len(new) // SAMPLE_ELEMENTS)
    if len(new) and (old[::stride] != new[::stride]).mean() > MOSTLY:
        return {"all": _packed_values(new - old)}
    changed = _changed(old, new)
    if not len(changed):
        return {}
    gaps = _gap_count(changed)
    kinds: dict[Where, int] = {
        "gaps": gaps,
        "mask": (len(new) + 7) // 8,
        "all": (len(new) - len(changed)) * new.itemsize,
    }
    where = min(kinds, key=lambda kind: kinds[kind])
    if where == "all":
        return {"all": _packed_values(new - old)}
    place = _gaps(changed) if where == "gaps" else _mask(changed, len(new))
    return {where: _compressed(place.tobytes()), "what": _packed_values(new[changed] - old[changed])}


def apply(bits: Bits, pieces: dict[str, bytes]) -> int:
    """Changes `bits` in place as `pieces` say; returns how many elements changed. Raises DeltaError, and then the content
    of `bits` is undefined."""
    if pieces.keys() == {"all"}:
        bits += _values(pieces["all"], len(bits), bits.dtype)
        return len(bits)
    if pieces.keys() == {"gaps", "what"}:
        changed = _from_gaps(_expanded(pieces["gaps"], len(bits)))
    elif pieces.keys() == {"mask", "what"}:
        changed = _from_mask(_expanded(pieces["mask"], (len(bits) + 7) // 8), len(bits))
    else:
        raise DeltaError(f"the pieces are {sorted(pieces)}")
    if len(changed) and int(changed[-1]) >= len(bits):
        raise DeltaError(f"element {int(changed[-1])} is to change, there are {len(bits)}")
    bits[changed] += _values(pieces["what"], len(changed), bits.dtype)
    return len(changed)


# ---------------------------------------------------------------------------------------------------------------- where


def _changed(old: Bits, new: Bits) -> NDArray[np.intp]:
    """Indices of the elements that differ, ascending."""
    found = [
        np.flatnonzero(old[start : start + BLOCK] != new[start : start + BLOCK]) + start
        for start in range(0, len(new), BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.intp), *found])


def _gap_count(changed: NDArray[np.intp]) -> int:
    return len(changed) + int(((np.diff(changed, prepend=-1) - 1) // 255).sum())


def _gaps(changed: NDArray[np.intp]) -> NDArray[np.uint8]:
    skipped = np.diff(changed, prepend=-1) - 1
    ends = np.cumsum(skipped // 255 + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, 255, np.uint8)
    gaps[ends] = skipped % 255
    return gaps


def _from_gaps(raw: bytes) -> NDArray[np.intp]:
    gaps = np.frombuffer(raw, np.uint8)
    if not len(gaps) or gaps[-1] == 255:
        raise DeltaError("the gaps end in the middle of one")
    ends = np.flatnonzero(gaps != 255)
    return np.cumsum(gaps, dtype=np.intp)[ends] + np.arange(len(ends))


def _mask(changed: NDArray[np.intp], length: int) -> NDArray[np.uint8]:
    mask = np.zeros(length, np.bool_)
    mask[changed] = True
    return np.packbits(mask, bitorder="little")


def _from_mask(raw: bytes, length: int) -> NDArray[np.intp]:
    if len(raw) != (length + 7) // 8:
        raise DeltaError(f"the mask has {len(raw)} bytes, {length} elements need {(length + 7) // 8}")
    return np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little"))


# ----------------------------------------------------------------------------------------------------------------- what


def _packed_values(difference: Bits) -> bytes:
    """Planes of the folded differences, one after the other, each with its compressed size in 8 bytes before it."""
    signed = difference.view(np.dtype(f"i{difference.itemsize}"))
    folded = ((signed << 1) ^ (signed >> (8 * signed.itemsize - 1))).astype(signed.dtype.newbyteorder("<"))
    octets = folded.view(np.uint8).reshape(len(folded), -1)
    pieces = [_compressed(np.ascontiguousarray(octets[:, plane]).tobytes()) for plane in range(octets.shape[1])]
    return b"".join(part for piece in pieces for part in (len(piece).to_bytes(8, "little"), piece))


def _values(packed: bytes, count: int, dtype: np.dtype[Any]) -> Bits:
    octets = np.empty((count, dtype.itemsize), np.uint8)
    start = 0
    for plane in range(dtype.itemsize):
        size = int.from_bytes(packed[start : start + 8], "little")
        start += 8
        raw = _expanded(packed[start : start + size], count)
        start += size
        if len(raw) != count:
            raise DeltaError(f"plane {plane} has {len(raw)} values, {count} elements change")
        octets[:, plane] = np.frombuffer(raw, np.uint8)
    if start != len(packed):
        raise DeltaError(f"{len(packed) - start} bytes follow the last plane")
    folded = octets.reshape(-1).view(np.dtype(f"<u{dtype.itemsize}")).astype(dtype)
    one = dtype.type(1)
    values: Bits = (folded >> one) ^ (~(folded & one) + one)
    return values


def _compressed(raw: bytes) -> bytes:
    if raw and len(_deflated(raw[:SAMPLE_BYTES])) > WORTH * len(raw[:SAMPLE_BYTES]):
        return STORED + raw
    return DEFLATED + _deflated(raw)


def _deflated(raw: bytes) -> bytes:
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return compressor.compress(raw) + compressor.flush()


def _expanded(piece: bytes, limit: int) -> bytes:
    """What was compressed; more than `limit` bytes of it are refused before they exist."""
    if piece[:1] == STORED:
        return piece[1:]
    if piece[:1] != DEFLATED:
        raise DeltaError(f"a piece begins with {piece[:1]!r}")
    expander = zlib.decompressobj()
    try:
        raw = expander.decompress(piece[1:], limit + 1)
    except zlib.error as error:
        raise DeltaError(f"a piece cannot be expanded: {error}") from None
    if len(raw) > limit or not expander.eof or expander.unused_data:
        raise DeltaError(f"a piece holds more or less than it should ({limit} bytes at most)")
    return raw
