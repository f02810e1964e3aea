"""In place of SGLang's compiled kernels: every name can be imported, and calling one fails. See `sitecustomize`."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} is not there on this machine")

    return missing
