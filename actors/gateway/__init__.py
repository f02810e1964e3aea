"""The gateway: an OpenAI-compatible door to a run, for any client, and a console for people (docs/gateway.md)."""

from safeladder.actors.gateway.actor import Gateway

__all__ = ["Gateway"]
