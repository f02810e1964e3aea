"""The pictures of a process: decoded and cut once, as long as there is room for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from safeladder.policies.vision.families import Picture
from safeladder.policies.vision.processor import Processor
from safeladder.protocol.images import Image

ROOM_BYTES = 2**28


class Gallery:
    """Pictures by the hash of their files; the least recently used go when they have more than `room` bytes. Thread-safe."""

    def __init__(
        self, processor: Processor, read: Callable[[str], bytes] | None = None, room: int = ROOM_BYTES
    ) -> None:
        """read: the file of a hash, for `of`; raises ImageError where there is none."""
        self.processor = processor
        self._read, self._room, self._bytes = read, room, 0
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, hashes: Sequence[str]) -> list[Picture]:
        """The pictures of these hashes. Raises ImageError."""
        assert self._read is not None, "a gallery without files to read is given images"
        read = self._read
        return [self._known(hash) or self._hang(hash, Image("", read(hash))) for hash in hashes]

    def look(self, images: Sequence[Image]) -> list[Picture]:
        """The pictures of these files. Raises ImageError."""
        return [self._known(image.hash) or self._hang(image.hash, image) for image in images]

    def _known(self, hash: str) -> Picture | None:
        with self._lock:
            if hash in self._pictures:
                self._pictures.move_to_end(hash)
            return self._pictures.get(hash)

    def _hang(self, hash: str, image: Image) -> Picture:
        picture = self.processor.picture(image)
        with self._lock:
            if hash not in self._pictures:
                self._pictures[hash] = picture
                self._bytes += picture.bytes
            while self._bytes > self._room and len(self._pictures) > 1:
                _, gone = self._pictures.popitem(last=False)
                self._bytes -= gone.bytes
        return picture
