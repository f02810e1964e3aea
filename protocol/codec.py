"""Multipart frames to typed messages and back, with every bound checked before anything is trusted.

`[header][body][raw frame]...`: the header and the body are msgpack maps, the raw frames are the arrays of the works in
the body, in order. Decoding copies nothing: arrays are read-only views of the received frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from safeladder.protocol import messages as m

Frame = bytes | memoryview
BODY_MARGIN_BYTES = 4096  # a lease wraps a work in somewhat more than the submit that brought it
Arrays = dict[str, NDArray[Any]]

# bfloat16 has no numpy type: its bits travel as uint16 and whoever wants the numbers views them as such.
_NUMPY: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _NUMPY.items()}

_encoder = msgspec.msgpack.Encoder()
_headers = msgspec.msgpack.Decoder(m.Header)
_from_worker = msgspec.msgpack.Decoder(m.FromWorker)
_from_hub = msgspec.msgpack.Decoder(m.FromHub)
_payloads = msgspec.msgpack.Decoder(m.Payload)

BodyType = TypeVar("BodyType")


class WireError(ValueError):
    """A message that breaks the wire's rules. `str()` says which rule and by how much, never the content."""


class SchemaMismatch(WireError):
    """The peer speaks another schema."""


@dataclass(slots=True)
class Parcel:
    """A work with the raw frames of its arrays: what is queued, leased and handed on."""

    work: m.Work
    frames: list[Frame] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of payload and arrays."""
        return len(bytes(self.work.payload)) + sum(len(frame) for frame in self.frames)


def pack(payload: m.Payload, arrays: Mapping[str, NDArray[Any]] | None = None, **work: Any) -> Parcel:
    """Makes a parcel of `payload` and named `arrays`; `work` holds the other fields of `Work`.

    Raises WireError for an array of a dtype that may not travel.
    """
    described, frames = [], []
    for name, array in (arrays or {}).items():
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise WireError(f"array {name!r} has dtype {array.dtype}; one of {sorted(m.DTYPES)} may travel")
        contiguous = np.ascontiguousarray(array)
        described.append(m.Array(name=name, dtype=dtype, shape=list(array.shape)))  # type: ignore[arg-type]
        frames.append(contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b"")
    return Parcel(m.Work(payload=msgspec.Raw(_encoder.encode(payload)), arrays=described, **work), list(frames))


def unpack(parcel: Parcel) -> tuple[m.Payload, Arrays]:
    """The typed payload of a parcel and its arrays as read-only views. Raises WireError for a malformed payload."""
    try:
        payload = _payloads.decode(parcel.work.payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"payload of work {parcel.work.id!r}: {error}") from None
    arrays = {}
    for described, frame in zip(parcel.work.arrays, parcel.frames, strict=True):
        array: NDArray[Any] = np.frombuffer(frame, dtype=_NUMPY[described.dtype]).reshape(described.shape)
        array.flags.writeable = False
        arrays[described.name] = array
    return payload, arrays


def works_of(body: Any) -> Sequence[m.Work]:
    """The works that a body carries, in the order of their frames."""
    match body:
        case m.Submit():
            return body.works
        case m.Done():
            return body.outputs
        case m.Fail(partial=m.Work() as work):
            return (work,)
        case m.Lease():
            return (body.work,)
        case m.Reply(work=m.Work() as work):
            return (work,)
        case _:
            return ()


def encode(body: m.Body, sender: str, frames: Iterable[Frame] = (), schema: str = m.SCHEMA) -> list[Frame]:
    """One multipart message. `frames` are those of the body's works, in order."""
    raw = list(frames)
    header = m.Header(schema=schema, sender=sender, frames=len(raw), bytes=sum(len(frame) for frame in raw))
    return [_encoder.encode(header), _encoder.encode(body), *raw]


def check_bounds(parts: Sequence[Frame]) -> None:
    """Raises WireError for a message that a peer would refuse: to be asked before it is sent, and sent again, in vain."""
    _, body, *raw = parts
    if len(body) > m.MAX_BODY_BYTES - BODY_MARGIN_BYTES:
        raise WireError(f"body of {len(body)} bytes, at most {m.MAX_BODY_BYTES - BODY_MARGIN_BYTES}")
    if len(raw) > m.MAX_FRAMES:
        raise WireError(f"{len(raw)} arrays in one message, at most {m.MAX_FRAMES}")
    if (largest := max(map(len, raw), default=0)) > m.MAX_FRAME_BYTES:
        raise WireError(f"an array of {largest} bytes, at most {m.MAX_FRAME_BYTES}")
    if (size := sum(map(len, raw))) > m.MAX_MESSAGE_BYTES:
        raise WireError(f"{size} bytes of arrays in one message, at most {m.MAX_MESSAGE_BYTES}")


def decode_from_worker(parts: Sequence[Frame]) -> tuple[m.Header, m.FromWorker, list[Parcel]]:
    """Reads a message to the hub. Raises WireError, SchemaMismatch."""
    return _decode(parts, _from_worker)


def decode_from_hub(parts: Sequence[Frame]) -> tuple[m.Header, m.FromHub, list[Parcel]]:
    """Reads a message from the hub. Raises WireError, SchemaMismatch."""
    return _decode(parts, _from_hub)


def _decode(
    parts: Sequence[Frame], decoder: msgspec.msgpack.Decoder[BodyType]
) -> tuple[m.Header, BodyType, list[Parcel]]:
    if len(parts) < 2:
        raise WireError(f"a message has a header and a body, this one has {len(parts)} frame(s)")
    if len(parts) - 2 > m.MAX_FRAMES:
        raise WireError(f"{len(parts) - 2} raw frames, at most {m.MAX_FRAMES} may travel together")
    if len(parts[0]) > m.MAX_HEADER_BYTES:
        raise WireError(f"header of {len(parts[0])} bytes, at most {m.MAX_HEADER_BYTES}")
    if len(parts[1]) > m.MAX_BODY_BYTES:
        raise WireError(f"body of {len(parts[1])} bytes, at most {m.MAX_BODY_BYTES}")
    # msgspec raises UnicodeDecodeError (a ValueError, no DecodeError) for bad UTF-8, RecursionError for deep nesting
    try:
        header = _headers.decode(parts[0])
    except (ValueError, RecursionError) as error:
        raise WireError(f"unreadable header: {error}") from None
    if header.schema != m.SCHEMA:
        raise SchemaMismatch(f"{header.sender or 'peer'} speaks schema {header.schema!r}, this side {m.SCHEMA!r}")
    raw = parts[2:]
    size = sum(len(frame) for frame in raw)
    if (header.frames, header.bytes) != (len(raw), size):
        raise WireError(f"header announces {header.frames} frames of {header.bytes} bytes, got {len(raw)} of {size}")
    if size > m.MAX_MESSAGE_BYTES:
        raise WireError(f"{size} bytes of raw frames, at most {m.MAX_MESSAGE_BYTES}")
    try:
        body = decoder.decode(parts[1])
    except (ValueError, RecursionError) as error:
        raise WireError(f"unreadable body: {error}") from None
    return header, body, _deal(works_of(body), raw)


def _deal(works: Sequence[m.Work], raw: Sequence[Frame]) -> list[Parcel]:
    """Gives every work its frames and checks each frame against its description."""
    parcels, position = [], 0
    for work in works:
        frames = list(raw[position : position + len(work.arrays)])
        position += len(work.arrays)
        if len(frames) != len(work.arrays):
            raise WireError(f"work {work.id!r} describes {len(work.arrays)} arrays, {len(frames)} frames are left")
        if work.stop >= len(work.route):
            raise WireError(f"work {work.id!r} stands at stop {work.stop} of a route of {len(work.route)}")
        for array, frame in zip(work.arrays, frames, strict=True):
            expected = m.DTYPES[array.dtype]
            span = expected
            for size in array.shape:  # Python integers: no overflow, whatever the shape says
                expected *= size
                span *= max(size, 1)  # numpy counts so, and refuses an empty array with huge other sides
            if expected != len(frame):
                raise WireError(f"array {array.name!r} of {work.id!r} describes {expected} bytes, has {len(frame)}")
            if span > m.MAX_FRAME_BYTES:
                raise WireError(f"array {array.name!r} of {work.id!r} spans {span} bytes, at most {m.MAX_FRAME_BYTES}")
        parcels.append(Parcel(work, frames))
    if position != len(raw):
        raise WireError(f"{len(raw)} raw frames for works that describe {position}")
    return parcels
