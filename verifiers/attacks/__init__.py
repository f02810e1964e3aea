"""Ways to make a judged text look like what it is not. Each is one function in a module of its own; what is known of the text stays true.

`ATTACKS` names them. Those marked ours are not in the reference; they are encodings that filters are commonly passed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from safeladder.verifiers.attacks.base64_text import base64_text
from safeladder.verifiers.attacks.injected import injected
from safeladder.verifiers.attacks.leet import leet
from safeladder.verifiers.attacks.mirrored import mirrored
from safeladder.verifiers.attacks.padding import padding
from safeladder.verifiers.attacks.politeness import politeness
from safeladder.verifiers.attacks.refuse_then_comply import refuse_then_comply
from safeladder.verifiers.attacks.words import Attack, Material, Words
from safeladder.verifiers.attacks.wrapper import wrapper
from safeladder.verifiers.attacks.zero_width import zero_width

__all__ = ["ATTACKS", "OURS", "Attack", "Material", "Words"]

ATTACKS: Final[Mapping[str, Attack]] = {
    "refuse_then_comply": refuse_then_comply,
    "politeness": politeness,
    "padding": padding,
    "wrapper": wrapper,
    "injected": injected,
    "mirrored": mirrored,
    "base64": base64_text,
    "leet": leet,
    "zero_width": zero_width,
}
OURS: Final = frozenset({"base64", "leet", "zero_width"})
