"""Who may ask: API keys, compared in constant time and never logged, and the check that a browser was not sent here by another site."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from safeladder.launch.config import ConfigError

ENVIRONMENT: Final = "SAFELADDER_API_KEYS"
SHORTEST_KEY: Final = 16  # characters
ANYBODY: Final = "anybody"  # the owner of requests where there are no keys


class Access:
    """The keys that open the gateway, by owner. Without any, everybody on this machine may ask."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys`: owner -> key. Raises ConfigError for one that is too short to be a secret."""
        for owner, key in keys.items():
            if len(key) < SHORTEST_KEY:
                raise ConfigError(f"the API key of {owner!r} is shorter than {SHORTEST_KEY} characters")
        self._digests = {owner: sha256(key.encode()).digest() for owner, key in keys.items()}

    @property
    def open(self) -> bool:
        return not self._digests

    def owner(self, authorization: str | None) -> str | None:
        """Whose key an `Authorization` header holds; None for nobody's. Every key is compared, whichever fits."""
        if self.open:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        digest = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [owner for owner, known in self._digests.items() if hmac.compare_digest(known, digest)]
        return found[0] if found and scheme.lower() == "bearer" else None


def load(file: str | None) -> Access:
    """Keys of `file`, a line each: `OWNER KEY`, or a key alone; and those of SAFELADDER_API_KEYS, with commas between.

    Raises ConfigError for a file that cannot be read, or is there to hold keys and holds none.
    """
    keys = {}
    if file is not None:
        try:
            lines = Path(file).expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of API keys {file} cannot be read: {error}") from None
        rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not rows:
            raise ConfigError(f"the file of API keys {file} holds none; a line is `OWNER KEY`, or a key alone")
        for number, row in enumerate(rows, 1):
            if len(row) > 2:
                raise ConfigError(f"{file}: key number {number} is not `OWNER KEY`, or a key alone")
            keys[row[0] if len(row) == 2 else f"key-{number}"] = row[-1]
    named = [key.strip() for key in os.environ.get(ENVIRONMENT, "").split(",") if key.strip()]
    return Access(keys | {f"environment-{number}": key for number, key in enumerate(named, 1)})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what binds to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(header: str) -> str:
    """The host of a `Host` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
