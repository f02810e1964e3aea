"""Who may connect: ZeroMQ's authentication requests, answered from the run's allow-list."""

from __future__ import annotations

from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator


class AllowList(ThreadAuthenticator):
    """Serves the sockets of one context; the user id of a connection is its worker's name."""

    def __init__(self, context: zmq.Context[Any], allowed: dict[str, str]) -> None:
        """allowed: public key -> worker name."""
        super().__init__(context)
        self._names = allowed
        self.configure_curve_callback(domain="*", credentials_provider=self)

    def callback(self, domain: str, key: bytes) -> bool:
        return key.decode() in self._names

    def curve_user_id(self, client_public_key: bytes) -> str:
        return self._names[super().curve_user_id(client_public_key)]
