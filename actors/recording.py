"""The learner's record of what it was handed (`run.record`), written by a thread of its own.

`handed` waits for nobody. `stepped` waits until the step's messages are written, so that what is not yet on its way to the disk is
never more than what the learner holds anyway. A full record (`run.record_max_bytes`) or a disk that refuses ends the recording with
an event, and the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safeladder.actors.actor import Delivery
from safeladder.protocol import record as r


class Recorder:
    """Writes one record. Methods are for the event loop, except the constructor."""

    def __init__(self, path: Path, max_bytes: int, log: Any) -> None:
        """Raises RecordError for a record that is damaged: going on in it would be in vain."""
        self._log, self._max_bytes = log, max_bytes
        self._file: r.RecordFile | None = r.RecordFile(path, max_bytes)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._submitted: list[Future[None]] = []
        log.info("record.opened", path=str(path), bytes=self._file.size, cut_bytes=self._file.cut_bytes)
        if self._file.closed:
            self._close(self._file.closed)

    def began(self, boot: str, step: int, head: str) -> None:
        """To be called before anything is handed."""
        self._submit(lambda: r.Began(boot, step, head))

    def handed(self, delivery: Delivery, lease_s: float) -> None:
        """To be called before anything is done with the delivery: its arrays are written from where they lie."""
        parts = delivery.message(lease_s)
        self._submit(lambda: r.Handed([bytes(part) for part in parts]))

    async def stepped(self, mark: r.Stepped) -> None:
        """To be called after the step's line is in the ledger and before it is part of a checkpoint."""
        await self._run(self._append, lambda: mark)
        for future in self._submitted:
            future.result()  # they have ended before; a defect comes to light here
        self._submitted.clear()

    async def sync(self) -> None:
        """What was recorded outlives a power cut when this returns."""
        await self._run(self._sync)

    async def close(self) -> None:
        await self._run(self._sync)
        if self._file is not None:
            self._file.close()
        self._writer.shutdown()

    def _submit(self, make: Callable[[], r.Record]) -> None:
        self._submitted.append(self._writer.submit(self._append, make))

    async def _run(self, call: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, call, *arguments)

    # ------------------------------------------------------------------------------------------------- the thread

    def _append(self, make: Callable[[], r.Record]) -> None:
        if self._file is None:
            return
        try:
            try:
                self._file.append(make())
            except r.RecordFull:
                reason = f"run.record_max_bytes, {self._max_bytes} bytes, is reached"
                self._file.append(r.Closed(reason))
                self._close(reason)
        except OSError as error:
            self._give_up(error)

    def _sync(self) -> None:
        if self._file is not None:
            try:
                self._file.sync()
            except OSError as error:
                self._give_up(error)

    def _close(self, reason: str) -> None:
        assert self._file is not None
        self._log.warning("record.closed", reason=reason, bytes=self._file.size)
        self._file.close()
        self._file = None

    def _give_up(self, error: OSError) -> None:
        assert self._file is not None
        self._log.warning("record.failed", error=error.strerror or str(error))
        self._file.close()
        self._file = None
