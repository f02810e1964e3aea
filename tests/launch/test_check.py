"""`check` finds before the start what would fail or deadlock later."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

from safeladder.launch.check import Finding, check, failed, show
from safeladder.launch.config import load
from safeladder.protocol import keys


def findings(*overrides: str) -> list[Finding]:
    return check(load("embedded", overrides))


def test_the_embedded_file_is_sound() -> None:
    assert [finding for finding in findings() if finding.level == "error"] == []


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["pools.rules.actor=safeladder.actors.verifier:Verifierpool"], "pools.rules", "did you mean 'VerifierPool'"),
        (["pools.rules.actor=no.such.module:X"], "pools.rules", "cannot import"),
        (["pools.generator.options.max_sequence=3"], "pools.generator", "max_sequence"),
        (["pools.mine={command: [./no-such-file]}"], "pools.mine.command", "not found"),
        (["pools.rules.python=/no/such/python"], "pools.rules.python", "not found"),
        (["pools.generator.device=cuda:7"], "pools.generator.device", "there is no 'cuda:7'"),
        (["pools.rules.queues=[rulez]"], "recipe.families.normal.route", "did you mean 'rulez'"),
        (["pools.reference.replicas=0"], "recipe.families.normal.route", "nobody consumes the queue 'reference'"),
        (["recipe.families.normal.route=[generator, rules, safety]"], "recipe.families", "must end in the learner's"),
        (
            ["recipe.families.normal.route=[searcher, rules, safety, learner]"],
            "pools.searcher.options.retriever",
            "nobody consumes the queue 'retriever'",
        ),
        (
            ["constraints.unsafe={limit: 0.1, acts_on: unsave}"],
            "constraints.unsafe.acts_on",
            "no family of the recipe has the cost 'unsave'",
        ),
        (["recipe.families.normal.route=[]"], "recipe.families.normal.route", "is empty"),
        (
            ["recipe.families.normal.route=[generator, rules, reference, learner]"],
            "recipe.families.normal.terms.safety",
            "no pool on this family's route runs the verifier 'safety'",
        ),
        (["recipe.families.normal.terms={boxd: 1}"], "recipe.families.normal.terms.boxd", "did you mean 'boxed'"),
        (
            ["recipe.families.normal.costs={unsafe: {verifier: toxicity, label: Unsafe}}"],
            "recipe.families.normal.costs.unsafe",
            "'toxicity'",
        ),
        (["pools.learner.credit=23"], "pools.learner.credit", "= 24"),
        (["pools.learner.replicas=2"], "pools.learner.replicas", "must be 1"),
        (["staleness.max_in_flight=3"], "staleness.max_in_flight", "can never come together"),
        (["sampling.samples=17"], "sampling.samples", "allows 16 rows"),
        (["hub.bind=tcp://0.0.0.0:0"], "hub.keys", "reached from outside"),
        (["hub.keys=/no/such/folder"], "hub.keys", "no key file"),
        (["data.tasks=[absent.jsonl]"], "data.tasks[0]", "no file absent.jsonl"),
        (["data.families={unheard: 1}"], "data.families.unheard", "no such family"),
        ([f"run.directory={__file__}/runs"], "run.directory", "cannot be written"),
    ],
)
def test_what_would_fail_later_is_an_error_now(overrides: list[str], key: str, said: str) -> None:
    found = [finding for finding in findings(*overrides) if finding.key == key and finding.level == "error"]
    assert any(said in finding.message for finding in found), findings(*overrides)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("staleness.max_in_flight=7", "staleness.max_in_flight"),
        ("sampling.temperature=0", "sampling.temperature"),
        ("sampling.samples=1", "sampling.samples"),
    ],
)
def test_what_works_but_is_hardly_meant_is_a_warning(override: str, key: str) -> None:
    found = findings(override)
    assert [finding.level for finding in found if finding.key == key] == ["warning"]
    assert not failed(found)


def test_a_port_in_use_is_found(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = findings(f"hub.bind=tcp://127.0.0.1:{port}")
        assert [finding.key for finding in found] == ["hub.bind"]
    assert not failed(findings(f"hub.bind=tcp://127.0.0.1:{port}"))


def test_a_key_that_a_worker_lacks_is_named(tmp_path: Path) -> None:
    keys.create(tmp_path / "keys", ["generator/0"])
    found = findings(f"hub.keys={tmp_path / 'keys'}")
    assert [finding.key for finding in found] == ["hub.keys"] and "feeder-0.key" in found[0].message


def test_a_too_long_ipc_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 120)
    assert any("ipc path" in finding.message for finding in findings())


def test_findings_are_shown_errors_first() -> None:
    found = findings("sampling.temperature=0", "pools.learner.credit=1")
    out = io.StringIO()
    show(found, out)
    assert out.getvalue().index("pools.learner.credit") < out.getvalue().index("sampling.temperature")
    assert failed(found)
