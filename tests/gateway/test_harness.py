"""An evaluation harness that knows nothing of this project, inspect, through the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateways import Serving

pytest.importorskip("inspect_ai", reason="inspect is not installed: the extra `inspect`")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate, prompt_template

SUMS = [(one, other) for one in range(2, 6) for other in range(3, 7)]


@pytest.mark.parametrize("model", ["policy", "policy+best_of_n"])
def test_a_harness_completes_a_set_of_tasks(served: Serving, tmp_path: Path, model: str, monkeypatch) -> None:
    monkeypatch.setenv("SAFELADDER_API_KEY", "none needed")
    monkeypatch.setenv("SAFELADDER_BASE_URL", f"{served.address()}/v1")
    task = Task(
        dataset=[Sample(input=f"What is {one} + {other}?", target=str(one + other)) for one, other in SUMS],
        solver=[prompt_template("{prompt} Answer with a number."), generate()],
        scorer=match(numeric=True),
    )
    (log,) = eval(
        task,
        model=f"openai-api/safeladder/{model}",
        log_dir=str(tmp_path),
        display="none",
        max_tokens=16,
        max_connections=8,
        time_limit=120,
    )
    assert log.status == "success", log.error
    assert log.results.total_samples == log.results.completed_samples == len(SUMS)
    assert all(sample.output.choices and sample.scores for sample in log.samples)
    usage = log.stats.model_usage[f"openai-api/safeladder/{model}"]
    assert usage.input_tokens > 0 and usage.output_tokens > 0
