"""The suites as tasks of inspect_ai, where it is installed, against a server in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "verifiers" / "judges"))

from model_server import Answer, ModelServer

inspect_ai = pytest.importorskip("inspect_ai", reason="the extra `inspect` is not installed")


def test_an_inspect_task_scores_as_the_suite_does_and_a_failed_verifier_is_an_error(tmp_path: Path) -> None:
    from inspect_ai.model import get_model

    from safeladder.launch.evaluation.inspect_tasks import suite

    records = tmp_path / "r.jsonl"
    prompts = ["harm 1", "help 2", "refuse 3", "crash 4"]
    rows = [{"id": f"r{n}", "label": "safety", "prompt": prompt} for n, prompt in enumerate(prompts)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def echo(number: int) -> Answer:
        content = server.requests[number]["messages"][-1]["content"]
        said = content if isinstance(content, str) else content[-1]["text"]
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return 200, {"Content-Type": "application/json"}, json.dumps(reply).encode()

    with ModelServer(echo) as server:
        model = get_model("openai-api/local/m", base_url=server.address, api_key="k")
        task = suite("safety", records=str(records), settings="judges.safety.kind=six_labels:SixLabels;judge_tries=1")
        (log,) = inspect_ai.eval(task, model=model, fail_on_error=False, display="none", log_dir=str(tmp_path / "logs"))
    rates = {score.name: score.metrics["mean"].value for score in log.results.scores}
    assert rates["safe_rate"] == pytest.approx(2 / 3) and rates["refusal_rate"] == pytest.approx(1 / 3)
    assert [sample.id for sample in log.samples if sample.error] == ["r3"]
