"""The hub's own word about a live run: who is there, what waits in which queue. For a run that has ended there is none."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

from safeladder.launch.config import ConfigError
from safeladder.launch.rundir import RunDirectory, is_live
from safeladder.protocol.transport import Link, LinkError

JOIN_S = 3.0
ANSWER_S = 2.0


class Live:
    """Asks the hub of the run in `path` for its status, for as long as the run lives. Blocks at most `JOIN_S` + `ANSWER_S` a call."""

    def __init__(self, path: Path) -> None:
        self._run = RunDirectory(path)
        self._link: Link | None = None
        self.problem = ""

    def is_live(self) -> bool:
        """Whether a launcher holds the run's lock. False for a folder that has logs but was never a run of ours."""
        try:
            return is_live(self._run)
        except (ConfigError, FileNotFoundError):
            return False

    def status(self) -> dict[str, Any] | None:
        """The hub's answer to the query `status`; None where it did not come, `problem` then says why."""
        from safeladder.launch.ask import client  # half a second of imports, for a live run only

        try:
            if self._link is None:
                self._link = client(self._run, "client", JOIN_S)  # a name for which keys exist
            self.problem = ""
            return self._link.query("status").result(ANSWER_S)
        except (LinkError, ConfigError, TimeoutError, concurrent.futures.TimeoutError) as error:
            self.problem = f"the hub did not answer: {error or 'too late'}"
            self.close()
            return None

    def close(self) -> None:
        if self._link is not None:
            self._link.close("done", 1.0)
            self._link = None
