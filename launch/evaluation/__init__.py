"""`safeladder evaluate`: what a policy is worth, by suites, with intervals. docs/evaluate.md."""

from safeladder.launch.evaluation.run import Report, evaluate
from safeladder.launch.evaluation.settings import Answering, Endpoint, EngineSection, Settings
from safeladder.launch.evaluation.statistics import Measure

__all__ = ["Answering", "Endpoint", "EngineSection", "Measure", "Report", "Settings", "evaluate"]
