"""Released judges and guards by name: which verifier speaks for each, and where its weights are.

A name here, with or without its owner, stands wherever a verifier's name does: `verifiers: {SafeWork-RM-Safety-7B: {}}`. The weights are
found as any model's: in the hub's cache, or over the network. A folder of one's own goes into `model`, a server into `remote`.
"""

from __future__ import annotations

from typing import Any, Final

# hub id -> verifier
KNOWN: Final = {
    "AI45Research/SafeWork-RM-Safety-7B": "safety_judge",
    "AI45Research/SafeWork-RM-Value-72B": "value_judge",
    "AI45Research/SafeWork-RM-Knowledge-72B": "knowledge_judge",
    "meta-llama/Llama-Guard-3-8B": "guard",
    "meta-llama/Llama-Guard-3-1B": "guard",
    "allenai/wildguard": "guard",
    "google/shieldgemma-2b": "guard",
    "google/shieldgemma-9b": "guard",
    "google/shieldgemma-27b": "guard",
    "Qwen/Qwen3Guard-Gen-0.6B": "guard",
    "Qwen/Qwen3Guard-Gen-4B": "guard",
    "Qwen/Qwen3Guard-Gen-8B": "guard",
}
_BY_NAME: Final = {alias.lower(): model for model in KNOWN for alias in (model, model.partition("/")[2])}


def known(name: str) -> tuple[str, dict[str, Any]] | None:
    """The verifier and the options that a released model's name stands for; None for any other name. Upper case does not matter."""
    model = _BY_NAME.get(name.lower())
    return None if model is None else (KNOWN[model], {"model": model})
