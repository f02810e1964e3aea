"""Whole runs through real processes: what a user is promised of a run, clean, under faults, and interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import transformers
from running import COMMAND, Running, safeladder

from safeladder.launch import catalogue, diagnosis, lineage
from safeladder.launch.events import Tail
from safeladder.launch.export.spans import trace_id
from safeladder.policies.ledger import Ledger

ROLES = ("generator", "learner", "hub", "rules", "feeder", "reference", "searcher")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Running:
    with Running(tmp_path_factory.mktemp("clean"), "watch.sinks=[otlp]") as running:
        assert running.wait() == 0, running.said()
        return running


def test_a_clean_run_makes_every_step_within_the_staleness_bound(clean: Running) -> None:
    summary = clean.summary()
    assert summary["exit"] == {"code": 0, "reason": "done"}
    assert summary["steps"] == summary["versions_published"] == 6
    assert summary["staleness"]["max"] <= 1
    assert summary["restarts"] == 0
    assert {record["name"].split("/")[0] for record in summary["processes"]} == set(ROLES)
    assert all(step["reward_mean"] is not None for step in summary["per_step"])


def test_a_clean_run_passes_its_audit(clean: Running) -> None:
    audit = clean.audit()
    assert audit.returncode == 0, audit.stdout


def test_a_run_admits_no_more_than_it_trains(clean: Running) -> None:
    assert clean.events("feeder", "groups.admitted")[-1]["cursor"] == 6 * 2


def test_the_logs_of_a_clean_run_hold_nothing_but_what_the_catalogue_says(clean: Running) -> None:
    lines = list(Tail(clean.run.path / "logs").read())
    assert [problem for line in lines for problem in catalogue.problems(line)] == []
    assert {"work.hops", "hub.status", "group.judged", "group.trained", "step.completed"} <= {e["event"] for e in lines}
    assert not [e for e in lines if e["event"] == "group.texts"]  # texts are logged when asked for
    assert not [e for e in lines if "rationales" in str(e.get("verdicts"))]


def test_why_answers_for_every_sample_and_the_counts_are_the_ledgers(clean: Running) -> None:
    history = lineage.History.read(clean.run)
    assert lineage.count(clean.run) == {"trained": len(history.steps)} and len(history.steps) == 6 * 2
    for life in lineage.lives(clean.run).values():
        if life.training:
            hops = [hop["do"] for hop in life.hops]
            assert hops == ["accepted", *["leased", "moved"] * 3, "leased", "finished"]
            assert life.samples == 4
    for identity in history.steps:
        said = "\n".join(lineage.why(clean.run, f"{identity}#3"))
        assert f"{identity}#3: trained, at step" in said
        assert all(
            word in said for word in ("takes it from rules after a wait of", "#3 reward", "advantage", "loss weight")
        )


def test_a_live_sink_has_a_trace_from_prompt_to_gradient_of_every_sample(clean: Running) -> None:
    history = lineage.History.read(clean.run)
    lines = (clean.run.path / "export" / "traces.jsonl").read_bytes().splitlines()
    traces: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        for span in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            traces.setdefault(span["traceId"], []).append(span)
    for identity in history.steps:
        names = [span["name"] for span in traces[trace_id("run", identity)]]
        stops = [f"{kind}{queue}" for queue in ("generator", "rules", "reference", "learner") for kind in ("wait ", "")]
        assert names == ["work", *stops, f"step {history.steps[identity].step + 1}"]
    assert not clean.events("launcher", "sink.failed")


def test_a_clean_run_breaks_no_health_rule_and_its_last_word_is_no_fault(clean: Running) -> None:
    told = [event for event in clean.events("launcher") if event["event"] == "health.warning"]
    assert told == [] and list(diagnosis.health(clean.run)) == []
    answer = safeladder("who-waits", str(clean.run.path))
    assert answer.returncode == 0 and "learner/0" in answer.stdout, answer.stderr


def test_the_last_checkpoint_opens_in_transformers_alone(clean: Running) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(clean.run.checkpoints / "step-00000006")
    assert model.config.vocab_size > 0


def test_a_finished_run_answers_questions_with_its_checkpoint(clean: Running) -> None:
    answer = safeladder("ask", "What is 2 + 2?", "--run", str(clean.run.path), "--all")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("version") == 4  # every candidate is shown with the weights that wrote it
    assert (
        answer.stderr.count("step 1 #") == 4 and "form " in answer.stderr
    )  # and was, with its scores, when it was judged


def test_a_finished_run_is_served_to_clients_until_it_is_interrupted(clean: Running, tmp_path: Path) -> None:
    command = [*COMMAND, "serve", str(clean.run.path), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    ) as serving:
        try:
            assert serving.stdout is not None
            said = serving.stdout.readline()  # comes with the address, or at the end of the process
            address = said.partition(" at ")[2].partition(" ")[0]
            body = {"model": "policy", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 5}
            json_type = {"content-type": "application/json"}
            asked = Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), json_type)
            with urlopen(asked, timeout=60) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 5, said
            with urlopen(f"{address}/", timeout=60) as page:
                assert b"SafeLadder console" in page.read()
            serving.send_signal(signal.SIGINT)
            assert serving.wait(60) == 0
        finally:
            serving.kill()


PULLED = (
    "weights={delta: true, full_every: 3, serve: 'tcp://127.0.0.1:*'}",
    "pools.generator.options={max_sequences: 8, max_tokens: 8192, pull_weights: true}",
)


def test_every_role_may_be_killed_once_and_every_task_is_trained_once(tmp_path: Path) -> None:
    """The generator takes its weights from the learner's server, as deltas, and its successor catches up from there."""
    with Running(tmp_path, "learner.steps=20", *PULLED) as running:
        for role in ROLES:
            before = running.steps
            running.until(lambda before=before: running.steps > before)  # type: ignore[misc]
            running.kill(role)
        assert running.wait() == 0, running.said()
        summary = running.summary()
        assert summary["restarts"] == len(ROLES)
        assert summary["steps"] == 20
        assert summary["staleness"]["max"] <= 1
        pulled = {event["version"] for event in running.events("generator", "weights.pulled")}
        attested = running.events("generator", "weights.attested")
        assert {event["version"] for event in attested} <= pulled
        assert all(event["passed"] for event in attested) and attested
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout
        history = lineage.History.read(running.run)
        assert lineage.count(running.run)["trained"] == len(history.steps) == 20 * 2
        told = [line for line in Tail(running.run.path / "logs").read() if list(catalogue.problems(line))]
        assert told == []


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with Running(tmp_path, "learner.steps=500", "learner.checkpoint_every=50", "pools.learner.credit=200") as running:
        running.until(lambda: running.steps >= 3)
        running.interrupt()
        assert running.wait() == 130, running.said()
        made = running.summary()["steps"]
        assert running.audit().returncode == 0, running.audit().stdout
    with Running(tmp_path, f"learner.steps={made + 4}", resume=running.run.path) as resumed:
        assert resumed.wait() == 0, resumed.said()
        steps = [event["step"] for event in resumed.events("learner", "step.completed")]
        assert steps == list(range(1, made + 5))  # none made again: the interrupted run had committed its last one
        audit = resumed.audit()
        assert audit.returncode == 0, audit.stdout


def test_a_finite_data_set_ends_the_run_with_every_task_trained(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        "".join(f'{{"id": "t{n}", "label": "normal", "prompt": "Say {n}.", "reference": null}}\n' for n in range(5))
    )
    finite = (
        f"data.tasks=[{tasks}]",
        "data.epochs=1",
        "learner.steps=100",
        "logs={texts: true, max_bytes: 4096, keep: 1000}",
    )
    with Running(tmp_path, *finite) as running:
        assert running.wait() == 0, running.said()
        said = "\n".join(lineage.why(running.run, "0"))
        assert "was asked: 'Say" in said and "answered #3:" in said  # as `logs.texts` asks
        assert len(list((running.run.path / "logs").glob("hub-0.jsonl.*"))) > 1  # and what was rotated is read too
        assert lineage.count(running.run) == {"trained": 5}
        assert running.summary()["steps"] == 3  # batches of 2, 2 and 1
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout


LEARNING = (
    "policy.lora={rank: 4}",
    "pools.learner.options={ranks: 2, ranks_timeout_s: 60}",
    "learner.objective=cpgd",
    "learner.filters={k3: {high: 5.0}}",
    "learner.minibatches=2",
    "learner.length_advantage={cale: {beta: 0.1}}",
    "constraints={long: {limit: 0.5, window: 16, min_episodes: 4}}",
    "recipe.families.normal.terms={repetition: {weight: 1.0, qualifies: 0.2}, length: 1.0}",
    "recipe.families.normal.costs={long: {verifier: length, label: over}}",
    "data.families={normal: 1}",
)


def test_adapters_on_two_ranks_under_a_constraint_survive_the_death_of_a_rank(tmp_path: Path) -> None:
    with Running(tmp_path, *LEARNING) as running:
        running.until(lambda: running.steps >= 3)
        os.kill(running.events("learner-rank", "rank.joined", replica=1)[-1]["pid"], signal.SIGKILL)
        assert running.wait() == 0, running.said()
        summary = running.summary()
        assert (summary["steps"], summary["restarts"]) == (6, 1)
        steps = running.events("learner", "step.completed")
        assert {step["updates"] for step in steps} == {2}
        assert all(step["constraints"]["long"]["limit"] == 0.5 for step in steps)
        assert steps[-1]["constraints"]["long"]["episodes"] == 16
        folder = running.run.checkpoints / "step-00000006"
        assert (folder / "adapter.safetensors").exists()
        assert transformers.AutoModelForCausalLM.from_pretrained(folder).config.vocab_size > 0
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout


@pytest.mark.parametrize(("policy", "eta"), [("windowed", 2), ("drop", 1)])
def test_a_policy_of_staleness_trains_once_and_within_its_bound_through_crashes(
    tmp_path: Path, policy: str, eta: int
) -> None:
    with Running(
        tmp_path,
        "learner.steps=10",
        f"staleness={{policy: {policy}, eta: {eta}, max_in_flight: 12}}",
        "pools.generator.replicas=2",
        "pools.learner.credit=40",
    ) as running:
        for role in ("learner", "generator"):
            before = running.steps
            running.until(lambda before=before: running.steps > before + 1)  # type: ignore[misc]
            running.kill(role)
        assert running.wait() == 0, running.said()
        summary = running.summary()
        assert (summary["steps"], summary["restarts"]) == (10, 2)
        assert summary["staleness"]["max"] <= eta
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout


def test_dynamic_sampling_fills_every_batch_with_groups_that_teach(tmp_path: Path) -> None:
    """`length` alone earns many groups the same for all their completions: those are set aside and made up for."""
    with Running(
        tmp_path,
        "recipe.families.normal.terms={length: 1.0}",
        "data.families={normal: 1}",
        "learner.dynamic_sampling=true",
        "sampling.max_new_tokens=12",
        "pools.rules.options={verifiers: {repetition: {}, length: {max_characters: 20, buffer: 4}}}",
        "pools.searcher.replicas=0",
        "pools.learner.credit=400",
    ) as running:
        running.until(lambda: running.steps >= 2)
        running.kill("learner")
        assert running.wait() == 0, running.said()
        steps = running.events("learner", "step.completed")
        assert {step["groups"] for step in steps} == {2}
        assert {step["zero_spread_groups"] for step in steps} == {0}
        assert sum(step["uninformative"] for step in steps) > 0
        history, counts = lineage.History.read(running.run), lineage.count(running.run)
        assert counts["trained"] == len(history.steps) and counts["dropped"] == len(history.dropped) > 0
        some = next(iter(history.dropped))
        said = "\n".join(lineage.why(running.run, some))
        assert f"{some}: dropped, the learner did not train it: uninformative" in said and "#0 reward" in said
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout


def test_dynamic_sampling_ends_a_run_whose_tasks_teach_nothing(tmp_path: Path) -> None:
    with Running(
        tmp_path,
        "recipe.families.normal.terms={length: 1.0}",
        "data.families={normal: 1}",
        "learner.dynamic_sampling=true",
        "learner.max_uninformative=6",
        "pools.rules.options={verifiers: {repetition: {}, length: {max_characters: 100000, buffer: 10}}}",
        "pools.searcher.replicas=0",
        "pools.learner.credit=60",
        "pools.learner.restart={max: 0, per_s: 60, backoff_s: 1}",
    ) as running:
        assert running.wait() != 0
        said = re.search(r"learner\.max_uninformative: (\d+) groups in a row", running.said())
        assert said and int(said[1]) > 6, running.said()


def test_a_verifier_pool_that_stays_dead_is_named_in_the_log_without_being_asked(tmp_path: Path) -> None:
    with Running(tmp_path, "learner.steps=1000", "pools.rules.restart={max: 5, per_s: 60, backoff_s: 60}") as running:
        running.until(lambda: running.steps >= 1)
        running.kill("rules")
        running.until(lambda: "missing" in {told["kind"] for told in running.events("launcher", "run.stalled")}, 60.0)
        assert "rules/0 should" in running.events("launcher", "run.stalled")[-1]["cause"]
        answer = safeladder("who-waits", str(running.run.path))
        assert "missing: no process takes from 'rules'" in answer.stdout, answer.stderr


DELIBERATION = (
    "policy.prefix='<think>'",
    "sampling={samples: 4, max_new_tokens: 500}",
    "learner={steps: 2, batch: 2, checkpoint_every: 2, token_budget: 4096}",
    "recipe.families.search={route: [searcher, rules, reference, learner], terms: {deliberation: 1.0}}",
    "recipe.families.search.costs.false_certain={verifier: deliberation, label: false certain}",
    "recipe.families.search.costs.unreliable={verifier: reliability, label: unreliable}",
    "constraints.false_certain={limit: 0.1, method: multiplicative, init: 0.5, rate: 0.5, min_episodes: 1, acts_on: unreliable}",
    "pools.rules.options.verifiers={deliberation: {}, reliability: {}, repetition: {}, length: {}}",
    "pools.generator.actor='scripted:Scripted'",
    "pools.searcher.credit=8",
)


def test_a_search_family_is_trained_through_searcher_and_retriever_with_the_environments_tokens_masked(
    tmp_path: Path,
) -> None:
    shutil.copy(Path(__file__).with_name("scripted.py"), tmp_path)  # a run finds modules where it was started
    task = {"label": "search", "prompt": "How many points did the Panthers give up?", "reference": ["308"]}
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"id": f"t{n}", **task}) + "\n" for n in range(8)))
    document = {"id": "sb", "title": "Super Bowl 50", "text": "The Panthers gave up 308 points."}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(document) + "\n")
    retriever = f"{{actor: 'safeladder.actors.retriever:Retriever', options: {{corpus: [{tmp_path}/corpus.jsonl]}}}}"
    with Running(
        tmp_path, *DELIBERATION, f"data.tasks=[{tmp_path}/tasks.jsonl]", f"pools.retriever={retriever}"
    ) as running:
        assert running.wait() == 0, running.said()
        steps = running.events("learner", "step.completed")
        assert [step["step"] for step in steps] == [1, 2]
        made = {event["id"]: event for event in running.events("searcher", "group.deliberated")}
        assert sum(event["environment_tokens"] for event in made.values()) > 0
        trained = [
            made[identity] for entry in Ledger(running.run.ledger, read_only=True).entries() for identity in entry.ids
        ]
        own = [sum(event["own_tokens"] for event in trained[at : at + 2]) for at in (0, 2)]
        assert [step["tokens"] for step in steps] == own
        assert steps[-1]["constraints"]["false_certain"]["episodes"] == 16
        assert steps[-1]["constraints"]["false_certain"]["multiplier"] != 0.5
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout


SEARCHED = (
    "sampling={samples: 4, max_new_tokens: 24}",
    "learner={steps: 1000, batch: 2, checkpoint_every: 2, advantage: {tree: {}}, learning_rate: 1.0e-3}",
    "pools.searcher.credit=8",
    "pools.searcher.options={training: tree, strategy: beam, options: {width: 2, candidates: 2}, step_tokens: 6, delimiters: [], "
    "judges: [rules], dimensions: {form: repetition}}",
    *(
        f"recipe.families.{label}={{route: [searcher, rules, reference, learner], terms: {{repetition: 1.0, length: 1.0}}}}"
        for label in ("normal", "safety", "general_rule", "knowledge_rule")
    ),
)


def test_searched_trees_are_trained_with_credit_by_step_and_the_run_is_served_meanwhile(tmp_path: Path) -> None:
    with Running(tmp_path, *SEARCHED) as running:
        running.until(lambda: running.steps >= 1)
        with _served_live(running) as address:
            before = running.steps
            for model in ("policy", "policy+beam"):
                asked = {"model": model, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 12}
                sent = json.dumps(asked).encode()
                request = Request(f"{address}/v1/chat/completions", sent, {"content-type": "application/json"})
                with urlopen(request, timeout=60) as response:
                    assert json.load(response)["usage"]["completion_tokens"] > 0
            running.until(lambda: running.steps >= before + 2)  # training went on beside it
        running.interrupt()
        assert running.wait() == 130, running.said()
        made = {event["id"]: event for event in running.events("searcher", "group.searched")}
        assert all(event["nodes"] >= event["answers"] for event in made.values())
        assert any(event["shared"] > 0 for event in made.values()), "answers that branch off each other"
        steps = running.events("learner", "step.completed")
        entries = list(Ledger(running.run.ledger, read_only=True).entries())
        assert len(steps) >= 3 and sum(step["trained_tokens"] for step in steps) > 0
        for step, entry in zip(steps, entries, strict=False):
            assert step["tokens"] == sum(made[identity]["trained_tokens"] for identity in entry.ids)
            # the probabilities that came with each token of a tree are the policy's own, up to one version
            assert abs(step["behaviour_kl"]) < 0.05 and step["staleness_max"] <= 1
        assert running.audit().returncode == 0


@contextlib.contextmanager
def _served_live(running: Running) -> Iterator[str]:
    """`safeladder serve` beside a run; what it gives is the address that it tells."""
    command = [*COMMAND, "serve", str(running.run.path), "--port", "0"]
    gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert gateway.stdout is not None
        yield gateway.stdout.readline().partition(" at ")[2].partition(" ")[0]
        gateway.send_signal(signal.SIGINT)
        assert gateway.wait(30) == 0
    finally:
        gateway.kill()
        gateway.wait(30)
