"""Python imports a module of this name at every start: so each process of a run of `overhead.py` is switched."""

import switched_logging  # noqa: F401
