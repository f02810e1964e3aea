"""The images of a record: where they stand in it, and what they are.

A record names its images in `extra`: `image` for one or `images` for a list. Each is the path of a file, a `data:image/...;base64,` URL, or
a map with the key `path` or `data` (base64, with `type` such as image/png beside it).
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from safeladder.protocol.messages import Record

MAX_BYTES: Final = 20 * 2**20
_DATA_URL = re.compile(r"data:(image/[\w.+-]+);base64,(.*)", re.DOTALL)


class ImageError(ValueError):
    """An image that a record names cannot be read; the message says which and why."""


@dataclass(frozen=True)
class Image:
    """`type` is the media type, `data` the bytes of the file."""

    type: str
    data: bytes

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return f"data:{self.type};base64,{base64.b64encode(self.data).decode()}"

    @property
    def digest(self) -> bytes:
        return blake2b(self.data, digest_size=16).digest()


def has_images(record: Record) -> bool:
    return bool(_named(record))


def images(record: Record) -> list[Image]:
    """The record's images, read. Raises ImageError."""
    return [_read(entry) for entry in _named(record)]


def _named(record: Record) -> list[Any]:
    one, several = record.extra.get("image"), record.extra.get("images")
    if several is not None and not isinstance(several, list):
        several = [several]
    return [entry for entry in [one, *(several or [])] if entry]


def _read(entry: Any) -> Image:
    if isinstance(entry, dict) and isinstance(entry.get("data"), str):
        return Image(str(entry.get("type") or "image/png"), _decoded(entry["data"]))
    path = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(path, str):
        raise ImageError(f"an image is a path, a data URL or a map with path or data, not {type(entry).__name__}")
    if match := _DATA_URL.fullmatch(path):
        return Image(match[1], _decoded(match[2]))
    file = Path(path)
    kind = mimetypes.guess_type(file.name)[0] or ""
    if not kind.startswith("image/"):
        raise ImageError(f"{path[:200]!r} does not look like an image file")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ImageError(f"the image {path} is larger than {MAX_BYTES} bytes")
        return Image(kind, file.read_bytes())
    except OSError as error:
        raise ImageError(f"the image {path} cannot be read: {error.strerror}") from None


def _decoded(text: str) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"an image in the record is larger than {MAX_BYTES} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ImageError(f"an image in the record is not base64: {error}") from None
