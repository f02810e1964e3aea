"""Images by the hash of their files, in a folder of the run: `images/ab/abcdef...`.

The feeder puts an image there once, however many records and epochs name it; messages carry the hash. A file appears under its name whole,
never changes, and whoever reads it verifies the hash, so any number of processes may read and write one folder. A host that does not
see the run's folder has one of its own, which fills with what its processes ask the feeder for (`actors/image_source.py`).
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Final

from safeladder.protocol.images import ImageError, hash_of

SERVED: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{40}")  # what `chunks` may serve of a store's folder


class ImageStore:
    """The store in `folder`, which need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, hash: str) -> Path:
        return self.folder / self.name(hash)

    @staticmethod
    def name(hash: str) -> str:
        """Of the file below the folder."""
        return f"{hash[:2]}/{hash}"

    def put(self, data: bytes) -> str:
        """Stores a file and returns its hash; one that is there is left as it is. Raises OSError."""
        hash = hash_of(data)
        place = self.path(hash)
        if place.exists():
            return hash
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=place.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
            Path(partial).replace(place)
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise
        return hash

    def read(self, hash: str) -> bytes:
        """The bytes of that hash. Raises ImageError when they are not here, or are others."""
        return read_verified(self.path(hash), hash)


def read_verified(place: Path, hash: str) -> bytes:
    """The bytes of a file that has this hash. Raises ImageError when it is not there, or holds others."""
    try:
        data = place.read_bytes()
    except OSError as error:
        raise ImageError(f"the image {hash} cannot be read from {place}: {error.strerror}") from None
    if hash_of(data) != hash:
        raise ImageError(f"{place} does not hold the image of that hash: it was altered")
    return data
