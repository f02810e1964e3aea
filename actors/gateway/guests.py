"""Images that clients send: in the run's folder of guests as long as a request that shows them is at work, then gone.

They are not in the folder of the run's own images, which stay: what a client sends can neither fill the disk nor stand in for a record's.
Generators and verifiers on a host that does not see the run's folder cannot show them; such a request ends in an error.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from safeladder.protocol.image_store import ImageStore
from safeladder.protocol.images import Image, refer


class GuestImages:
    """Of one gateway, which alone writes and removes below `folder`."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # what a gateway of this name left when it was killed
        self._store = ImageStore(folder)
        self._held: Counter[str] = Counter()

    async def hold(self, images: Sequence[Image]) -> tuple[list[dict[str, Any]], Callable[[], None]]:
        """References to the images, which are in the store until the function that comes with them is called.

        Raises ImageError for what is no image or too large, OSError for a disk that takes no more.
        """
        references = [await asyncio.to_thread(refer, image) for image in images]
        hashes = [reference.hash for reference in references]
        self._held.update(hashes)

        def release() -> None:
            for hash in hashes:
                self._held[hash] -= 1
                if self._held[hash] <= 0:
                    del self._held[hash]
                    self._store.path(hash).unlink(missing_ok=True)

        try:
            for image in images:
                await asyncio.to_thread(self._store.put, image.data)
        except BaseException:  # the client may have gone meanwhile
            release()
            raise
        return [msgspec.to_builtins(reference) for reference in references], release
