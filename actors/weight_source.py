"""Where a generator gets publications from: the learner's folder where it can be seen, else pulled from the learner's server.

A pull fetches the announced version and, of a delta, the versions that it rests on, back to one that is here. Each manifest is verified
before its tensors are fetched. What was fetched in part stays and is gone on with at the next try; a publication appears under
its own name once it is whole. Called on a thread of its own: it may wait for the network, never longer than `silence_s` without a byte.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from safeladder.policies.weights import MANIFEST, Manifest, WeightsError, folder, read_manifest, retire
from safeladder.policies.weights.manifest import MAX_MANIFEST_BYTES
from safeladder.protocol import chunk_shell
from safeladder.protocol.chunks import ChunkError
from safeladder.protocol.keys import WorkerKeys


class WeightSource:
    """Publications by announcement (the value of the topic `policy`). Not safe for use by several threads at once."""

    def __init__(
        self, home: Path, key: bytes, keys: WorkerKeys | None = None, always_pull: bool = False, silence_s: float = 30.0
    ) -> None:
        """home: where what was pulled is kept. key: the run's secret. keys: of the connection. always_pull: also what can be seen."""
        self._home, self._key, self._keys = home, key, keys
        self._always_pull, self._silence_s = always_pull, silence_s
        self._log = structlog.get_logger()
        self.stop = threading.Event()  # ends a pull that is under way

    def find(self, announced: Mapping[str, Any]) -> Path:
        """The folder of the announced publication on this host. Raises WeightsError."""
        there = Path(announced["directory"])
        if there.is_dir() and not self._always_pull:
            return there
        endpoint = announced.get("serve")
        if not endpoint:
            raise WeightsError(
                f"{there} cannot be seen from here and the learner serves no weights: set weights.serve to an address of its host"
            )
        keys = self._server_keys(announced.get("serve_key"))
        try:
            return self._pull(endpoint, int(announced["version"]), keys)
        except (ChunkError, OSError) as error:
            raise WeightsError(f"cannot pull version {announced['version']}: {error}") from error

    def _server_keys(self, public: str | None) -> WorkerKeys | None:
        """Our pair, and the learner's public key in the place of the hub's, as the hub has told it."""
        if self._keys is None or public is None:
            return None
        return WorkerKeys(self._keys.public, self._keys.secret, public.encode())

    def _pull(self, endpoint: str, version: int, keys: WorkerKeys | None) -> Path:
        """Pulls `version` and what it rests on, the bases first in place."""
        self._home.mkdir(parents=True, exist_ok=True)
        begun, came = time.monotonic(), 0
        wanted: int | None = version
        chain: list[tuple[Manifest, Path]] = []
        while wanted is not None and not folder(self._home, wanted).exists():
            partial = self._home / f"partial-{wanted:08d}" / folder(self._home, wanted).name
            partial.mkdir(parents=True, exist_ok=True)
            came += self._fetch(endpoint, partial, MANIFEST, MAX_MANIFEST_BYTES, keys)
            manifest = self._verified(partial)
            chain.append((manifest, partial))
            wanted = manifest.base
        for manifest, partial in reversed(chain):
            came += self._fetch(endpoint, partial, manifest.file, manifest.bytes, keys)
            partial.rename(folder(self._home, manifest.version))
            partial.parent.rmdir()
        self._log.info(
            "weights.pulled",
            version=version,
            publications=len(chain),
            bytes=came,
            seconds=round(time.monotonic() - begun, 3),
        )
        return folder(self._home, version)

    def _fetch(self, endpoint: str, partial: Path, name: str, limit: int, keys: WorkerKeys | None) -> int:
        served = f"{partial.name}/{name}"
        return chunk_shell.pull(endpoint, served, partial / name, limit, keys, self._silence_s, self.stop)

    def _verified(self, partial: Path) -> Manifest:
        try:
            return read_manifest(partial, self._key)
        except WeightsError:
            shutil.rmtree(partial.parent)  # not to be gone on with
            raise

    def settle(self, version: int, loaded: bool) -> None:
        """Tells how `version` fared: what was pulled before a loaded one may go, and one that could not be loaded must."""
        if not self._home.is_dir():
            return
        if loaded:
            retire(self._home, 1, key=self._key)
            for partial in self._home.glob("partial-*"):
                shutil.rmtree(partial)
        elif folder(self._home, version).exists():
            shutil.rmtree(folder(self._home, version))
