"""Reads a SentencePiece model file: its pieces with their scores, and its character map.

Only what the encoder's file holds is read, in the layout that it has: field 1 a piece (1 text, 2 score), field 3 the normaliser
(2 the compiled character map).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def read(data: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces in the order of their ids, each with its log probability, and the compiled character map."""
    pieces: list[tuple[str, float]] = []
    charsmap = b""
    for field, value in _fields(data):
        if field == 1:
            inner = dict(_fields(value))
            (score,) = struct.unpack("<f", inner[2]) if 2 in inner else (0.0,)
            pieces.append((inner[1].decode("utf-8"), score))
        elif field == 3:
            charsmap = dict(_fields(value)).get(2, charsmap)
    return pieces, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of one protobuf message that hold bytes or 32-bit numbers; numbers of other kinds are passed over."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
            continue
        if kind == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[kind]
        if kind != 1:
            yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
