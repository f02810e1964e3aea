"""The images of a record: where they stand in it, what they are, and what of them travels.

A record names its images in `extra`: `image` for one or `images` for a list. In a task file each is the path of a file, a
`data:image/...;base64,` URL, or a map with the key `path` or `data` (base64, with `type` such as image/png beside it). On the wire each
is a `Reference`: the hash of its file, and what must be known of it before it is there. The bytes are in the run's `ImageStore`.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
from msgspec import Meta, Struct

from safeladder.protocol.messages import Record

MAX_BYTES: Final = 20 * 2**20  # of one image's file
MAX_PIXELS: Final = 2**25  # of one image; 100 MB as RGB
MAX_IMAGES: Final = 16  # of one record
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")  # of what is shown to a policy; pillow has decoders that nobody needs
_DATA_URL = re.compile(r"data:(image/[\w.+-]+);base64,(.*)", re.DOTALL)


class ImageError(ValueError):
    """An image that a record names cannot be had, or may not be; the message says which and why."""


@dataclass(frozen=True)
class Image:
    """`type` is the media type, `data` the bytes of the file."""

    type: str
    data: bytes

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return f"data:{self.type};base64,{base64.b64encode(self.data).decode()}"

    @cached_property
    def hash(self) -> str:
        return hash_of(self.data)


class Reference(Struct, frozen=True):
    """An image of a record on the wire. `hash`: BLAKE2b of its file. width, height: in pixels, as the file says."""

    hash: Annotated[str, Meta(pattern="^[0-9a-f]{40}$")]
    type: Annotated[str, Meta(max_length=100)]
    bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)]
    width: Annotated[int, Meta(ge=1, le=MAX_PIXELS)]
    height: Annotated[int, Meta(ge=1, le=MAX_PIXELS)]


def hash_of(data: bytes) -> str:
    return blake2b(data, digest_size=20).hexdigest()


# ------------------------------------------------------------------------------------------------------ of a record


def has_images(record: Record) -> bool:
    return bool(named(record))


def named(record: Record) -> dict[str, Any]:
    """What the record has for its images, by the field that holds it, in order."""
    one, several = record.extra.get("image"), record.extra.get("images")
    found = {"image": one} if one else {}
    listed = several if isinstance(several, list) else [several]
    return {**found, **{f"images[{index}]": entry for index, entry in enumerate(listed) if entry}}


def replaced(record: Record, entries: Sequence[Any]) -> Record:
    """The record with `entries` for its images."""
    extra = {name: value for name, value in record.extra.items() if name not in ("image", "images")}
    return msgspec.structs.replace(record, extra={**extra, "images": list(entries)})


def images(record: Record) -> list[Image]:
    """The record's images, read. Raises ImageError."""
    return [read(entry) for entry in named(record).values()]


def references(record: Record) -> list[Reference]:
    """The images of a record that came over the wire. Raises ImageError for one that is no reference, or too many."""
    entries = named(record)
    _check_count(entries)
    try:
        found = [msgspec.convert(entry, Reference) for entry in entries.values()]
    except msgspec.ValidationError as error:
        raise ImageError(f"{record.id!r} names an image that is no reference to the run's store: {error}") from None
    for reference in found:
        _check_bounds(reference.bytes, reference.width, reference.height)
    return found


def check(record: Record, folder: Path) -> Record:
    """The record with its paths made absolute, relative ones from `folder`, and every image looked at without being decoded.

    Raises ImageError naming the field.
    """
    entries = named(record)
    _check_count(entries)
    placed = []
    for field, entry in entries.items():
        try:
            placed.append(_placed(entry, folder))
            _look(placed[-1])
        except ImageError as error:
            raise ImageError(f"field `{field}`: {error}") from None
    return replaced(record, placed) if placed else record


def _look(entry: Any) -> None:
    """Raises ImageError for an image whose size, kind or number of pixels is wrong; of a file its header is read and no more."""
    if (file := _file(entry)) is None:
        refer(read(entry))
        return
    place, _ = file
    try:
        size = place.stat().st_size
        with place.open("rb") as opening:
            _check_bounds(size, *opened(opening).size)
    except OSError as error:
        raise ImageError(f"the image {place} cannot be read: {error.strerror}") from None


def _check_count(entries: dict[str, Any]) -> None:
    if len(entries) > MAX_IMAGES:
        raise ImageError(f"field `images` holds {len(entries)} images, a record has {MAX_IMAGES} at most")


def _placed(entry: Any, folder: Path) -> Any:
    if isinstance(entry, dict):
        return {**entry, "path": _placed(entry["path"], folder)} if isinstance(entry.get("path"), str) else entry
    return str(folder / entry) if isinstance(entry, str) and not _DATA_URL.fullmatch(entry) else entry


# ------------------------------------------------------------------------------------------------------ of a file


def refer(image: Image) -> Reference:
    """What the wire says of an image; its type is what the file is, whatever it is called. Raises ImageError."""
    picture = opened(BytesIO(image.data))
    kind = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}[picture.format]
    _check_bounds(len(image.data), *picture.size)
    return Reference(image.hash, kind, len(image.data), *picture.size)


def opened(file: BinaryIO) -> Any:
    """The image as pillow opens it: its header is read, its pixels are not yet. Raises ImageError."""
    try:
        from PIL import Image as pillow
        from PIL import UnidentifiedImageError
    except ImportError as error:
        raise ImageError("images need the package pillow: pip install 'safeladder[vision]'") from error
    try:
        return pillow.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"is no image of the kinds {', '.join(FORMATS)}") from None
    except (OSError, ValueError, pillow.DecompressionBombError) as error:
        raise ImageError(f"cannot be opened: {error}") from None


def _check_bounds(size: int, width: int, height: int) -> None:
    if not 1 <= size <= MAX_BYTES:
        raise ImageError(f"an image of {size:,} bytes, {MAX_BYTES:,} may be")
    if (pixels := width * height) > MAX_PIXELS:
        raise ImageError(f"an image of {width} x {height} = {pixels:,} pixels, {MAX_PIXELS:,} may be")


def read(entry: Any) -> Image:
    """The image that an entry of a task file names. Raises ImageError."""
    if (file := _file(entry)) is None:
        kind, text = _inline(entry)
        return Image(kind, _decoded(text))
    place, kind = file
    try:
        if place.stat().st_size > MAX_BYTES:
            raise ImageError(f"the image {place} is larger than {MAX_BYTES} bytes")
        return Image(kind, place.read_bytes())
    except OSError as error:
        raise ImageError(f"the image {place} cannot be read: {error.strerror}") from None


def _file(entry: Any) -> tuple[Path, str] | None:
    """The file that an entry names, and its media type; None for an image that stands in the record itself."""
    path = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(path, str) or _DATA_URL.fullmatch(path):
        return None
    kind = (isinstance(entry, dict) and entry.get("type")) or mimetypes.guess_type(path)[0] or ""
    if not str(kind).startswith("image/"):
        raise ImageError(f"{path[:200]!r} does not look like an image file")
    return Path(path), str(kind)


def _inline(entry: Any) -> tuple[str, str]:
    """Media type and base64 of an image that stands in the record itself."""
    if isinstance(entry, dict) and isinstance(entry.get("data"), str):
        return str(entry.get("type") or "image/png"), entry["data"]
    if isinstance(entry, str) and (match := _DATA_URL.fullmatch(entry)):
        return match[1], match[2]
    raise ImageError(f"an image is a path, a data URL or a map with path or data, not {type(entry).__name__}")


def _decoded(text: str) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"an image in the record is larger than {MAX_BYTES} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ImageError(f"an image in the record is not base64: {error}") from None
