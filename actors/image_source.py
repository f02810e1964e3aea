"""Where a process gets the images of a record from: the run's store where its folder can be seen, else pulled from the feeder.
Those that a gateway's client shows are in the run's folder of guests while they are needed.

What was pulled is kept in this host's own copy of the run's folder, so that it comes once. Called on a thread: it may wait for the
network, never longer than `silence_s` without a byte. If the feeder dies meanwhile, the pull goes on with its successor, which serves
at the same address.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from safeladder.launch.rundir import RunDirectory
from safeladder.protocol import chunk_shell
from safeladder.protocol.chunks import ChunkError
from safeladder.protocol.image_store import ImageStore, read_verified
from safeladder.protocol.images import Image, ImageError, Reference, references
from safeladder.protocol.keys import WorkerKeys, load_worker
from safeladder.protocol.messages import Record

if TYPE_CHECKING:
    from safeladder.actors.actor import Actor


class ImageSource:
    """Of one actor. Safe for use by several threads: two that want one image pull it twice and store it once."""

    def __init__(self, actor: Actor, silence_s: float = 30.0) -> None:
        self._link, self._silence_s = actor.link, silence_s
        run = RunDirectory(actor.context.directory)
        self.store, self._guests = ImageStore(run.images), run.guests
        folder = actor.config.hub.keys
        self._keys = load_worker(Path(folder), actor.context.name) if folder else None
        self._log = structlog.get_logger()

    def fetch(self, record: Record) -> list[Reference]:
        """The record's images, each of which is in the store afterwards. Raises ImageError."""
        found = references(record)
        for reference in found:
            if not self.path(reference.hash).exists():
                self._pull(reference)
        return found

    def path(self, hash: str) -> Path:
        """Where the image is: in the store, or with those that a gateway's client shows; of one that is in neither, in the store."""
        stored = self.store.path(hash)
        shown = (folder / self.store.name(hash) for folder in self._guests.glob("*")) if not stored.exists() else ()
        return next((place for place in shown if place.exists()), stored)

    def images(self, record: Record) -> list[Image]:
        """The record's images, read and verified. Raises ImageError."""
        return [Image(each.type, read_verified(self.path(each.hash), each.hash)) for each in self.fetch(record)]

    def _pull(self, reference: Reference) -> None:
        announced = self._link.state.get("images", {})
        endpoint, public = announced.get("serve"), announced.get("serve_key")
        if not endpoint:
            raise ImageError(
                f"the image {reference.hash} is not in {self.store.folder}, and the feeder serves none: "
                "set data.serve to an address of its host"
            )
        keys = WorkerKeys(self._keys.public, self._keys.secret, public.encode()) if self._keys and public else None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / reference.hash
            try:
                chunk_shell.pull(
                    endpoint, self.store.name(reference.hash), file, reference.bytes, keys, silence_s=self._silence_s
                )
                stored = self.store.put(file.read_bytes())
            except (ChunkError, OSError) as error:
                raise ImageError(f"cannot pull the image {reference.hash}: {error}") from error
        if stored != reference.hash:
            raise ImageError(f"{endpoint} gave another file for the image {reference.hash}")
        self._log.info("image.pulled", hash=reference.hash, bytes=reference.bytes)
