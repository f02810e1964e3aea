"""The pictures of a process: decoded and cut once, as long as there is room for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from safeladder.policies.vision.families import Picture, name_of
from safeladder.policies.vision.processor import Processor
from safeladder.protocol.images import Image, ImageError

ROOM_BYTES: Final = 2**28


def _nothing(hash: str) -> bytes:
    raise ImageError(f"there is no place to read the image {hash} from")


class Gallery:
    """Pictures by the hash of their files; the least recently used go when they have more than `room` bytes. Thread-safe."""

    def __init__(self, processor: Processor, read: Callable[[str], bytes] = _nothing, room: int = ROOM_BYTES) -> None:
        """read: the file of a hash; raises ImageError where there is none."""
        self.processor = processor
        self._read, self._room, self._bytes = read, room, 0
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        # of every picture that was ever here: a prompt is named more often than it is computed
        self._tokens: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, hashes: Sequence[str]) -> list[Picture]:
        """The pictures of these hashes. Raises ImageError."""
        return [self._known(hash) or self._hang(hash, Image("", self._read(hash))) for hash in hashes]

    def named(self, prompt_ids: Sequence[int], hashes: Sequence[str]) -> list[int]:
        """See `Processor.named`; the images are those of the hashes. Raises ImageError, VisionError."""
        unknown = [hash for hash in hashes if hash not in self._tokens]
        self.of(unknown)
        return self.processor.named(prompt_ids, [(name_of(hash), self._tokens[hash]) for hash in hashes])

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
            self._tokens[hash] = picture.tokens
            if hash not in self._pictures:
                self._pictures[hash] = picture
                self._bytes += picture.bytes
            while self._bytes > self._room and len(self._pictures) > 1:
                _, gone = self._pictures.popitem(last=False)
                self._bytes -= gone.bytes
        return picture
