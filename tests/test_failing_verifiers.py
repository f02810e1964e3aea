"""Verifiers that go wrong in the middle of a run: no reward comes of it, the groups concerned are counted, and the run goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Running

HERE = Path(__file__).parent
DEADLINE_S = 200.0  # of each wait: processes start slowly on a busy machine
sys.path.insert(0, str(HERE / "verifiers" / "judges"))

from model_server import Answer, ModelServer, says  # noqa: E402 - a stand-in that tests of judges use too

FAMILY = "{route: [generator, faulty, remote, learner], terms: {faulty: 1.0, safety: 1.0}}"


class Trouble:
    """A run that two verifiers serve, one in a process of its own and one remote, with the faults that befall them."""

    def __init__(self, folder: Path) -> None:
        self.mode = folder / "mode"
        self.remote = "work"
        self.mode.write_text("work")
        self.server = ModelServer(self.answer)
        self.settings = (
            "learner.steps=100000",
            "learner.checkpoint_every=2",
            "learner.reference_kl=0",
            *(f"pools.{pool}.replicas=0" for pool in ("searcher", "reference", "rules")),
            *(f"recipe.families.{label}={FAMILY}" for label in ("normal", "safety", "general_rule", "knowledge_rule")),
            "pools.faulty={actor: 'safeladder.actors.verifier:VerifierPool', credit: 4}",
            f"pools.faulty.options={{verifiers: {{'faulty_verifier:Faulty': {{mode_file: {self.mode}}}}}, timeout_s: 1.0, tries: 1}}",
            "pools.remote={actor: 'safeladder.actors.verifier:VerifierPool', credit: 4}",
            "pools.remote.options={timeout_s: 1.0, tries: 1, cache: {entries: 0}, verifiers: {safety_judge: "
            f"{{remote: {{address: '{self.server.address}', model: judge, backoff_s: 0.01}}}}}}}}",
        )

    def answer(self, number: int) -> Answer:
        if self.remote == "hang":
            self.server.release.wait(5)
        if self.remote == "nonsense":
            return [says("1.0"), says(None), (200, {}, b"{"), (500, {}, b"")][number % 4]
        return says("Safe without risk")


def after(running: Running, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Waits for a step, begun from now on, of which that holds."""
    seen = running.steps
    running.until(
        lambda: any(holds(step) for step in running.events("learner", "step.completed")[seen + 1 :]), DEADLINE_S
    )


def test_verifiers_that_hang_talk_nonsense_or_die_earn_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{os.environ.get('PYTHONPATH', '')}")
    trouble = Trouble(tmp_path)
    with trouble.server, Running(tmp_path, *trouble.settings) as running:
        after(running, lambda step: step["unjudged_groups"] == 0)
        for mode in ("nonsense", "hang"):
            trouble.mode.write_text(mode)
            after(running, lambda step: step["unjudged_groups"] > 0)
            trouble.mode.write_text("work")
            running.kill(
                "faulty"
            )  # a call that hangs would hold its successor for ever: a process is what can be replaced
            after(running, lambda step: step["unjudged_groups"] == 0)
        for mode in ("nonsense", "hang"):
            trouble.remote = mode
            after(running, lambda step: step["unjudged_groups"] > 0)
            trouble.remote = "work"
            after(running, lambda step: step["unjudged_groups"] == 0)
        running.interrupt()
        assert running.wait() == 130, running.said()
        steps = running.events("learner", "step.completed")
        failed = [event["status"] for role in ("faulty", "remote") for event in running.events(role, "verdict.failed")]
        audit = running.audit()
    assert audit.returncode == 0, audit.stdout
    assert {"error", "timeout"} <= set(failed)
    # A sample that both have judged earns 0.5 + 1; whatever else were in these means would have come of a failure.
    assert {step["reward_mean"] for step in steps} <= {1.5, None}
    assert {step["channels"]["faulty"] for step in steps} <= {0.5, None}
    assert {step["channels"]["safety"] for step in steps} <= {1.0, None}
    for step in steps:
        judged = step["samples"] - step["unjudged_samples"]
        assert (step["reward_mean"] is None) == (judged == 0)
        assert (step["unjudged_samples"] == 0) == (step["unjudged_groups"] == 0)
    assert running.summary()["restarts"] == 2
