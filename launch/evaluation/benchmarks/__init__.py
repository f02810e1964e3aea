"""Public benchmarks: readers of their files, and the scoring that each prescribes.

One of your own is a `Benchmark` in one file, named in `benchmarks` as `my_module:MyBenchmark: PATH`. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.benchmarks.base import Benchmark
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.suite import Suite
from safeladder.protocol.messages import Record
from safeladder.protocol.naming import nearest

_HERE: Final = "safeladder.launch.evaluation.benchmarks"
BENCHMARKS: Final[Mapping[str, str]] = {
    "mm_safetybench": f"{_HERE}.attacks:MmSafetyBench",
    "harmbench": f"{_HERE}.attacks:HarmBench",
    "salad_bench": f"{_HERE}.attacks:SaladBench",
    "beavertails": f"{_HERE}.attacks:BeaverTails",
    "figstep": f"{_HERE}.attacks:FigStep",
    "jailbreakv": f"{_HERE}.attacks:JailbreakV",
    "mssbench": f"{_HERE}.mssbench:MssBench",
    "siuo": f"{_HERE}.siuo:Siuo",
    "vlsbench": f"{_HERE}.vlsbench:VlsBench",
    "xstest": f"{_HERE}.xstest:XsTest",
    "flames": f"{_HERE}.flames:Flames",
    "mask": f"{_HERE}.mask:Mask",
    "m3oralbench": f"{_HERE}.m3oralbench:M3oralBench",
    "wmdp": f"{_HERE}.choices:Wmdp",
    "mmmu": f"{_HERE}.choices:Mmmu",
    "gpqa": f"{_HERE}.choices:Gpqa",
    "gaokao_mm": f"{_HERE}.choices:GaokaoMm",
    "math_500": f"{_HERE}.mathematics:Math500",
    "olympiadbench": f"{_HERE}.mathematics:OlympiadBench",
    "mathvista": f"{_HERE}.mathematics:MathVista",
    "ifeval": f"{_HERE}.instructions:IfEval",
    "mm_ifeval": f"{_HERE}.instructions:MmIfEval",
}


def read(name: str, place: Path) -> list[Record]:
    """The benchmark's records, marked as its own. Raises ConfigError naming file, row and field."""
    found = kind(name).read(place)
    if not found:
        raise ConfigError(f"benchmarks.{name}: no item in {place}")
    return found


def suites(settings: Settings) -> list[Suite]:
    """One suite a benchmark that the settings name."""
    found: Sequence[Suite] = [kind(name)(settings) for name in settings.benchmarks]
    return list(found)


def kind(name: str) -> type[Benchmark]:
    """Raises ConfigError naming the nearest known one."""
    module_name, colon, class_name = BENCHMARKS.get(name, name).partition(":")
    if not colon:
        raise ConfigError(f"benchmarks: there is no benchmark {name!r}{nearest(name, BENCHMARKS)}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"benchmarks: {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise ConfigError(f"benchmarks: {name!r} is no Benchmark")
    return found
