"""What other tools get of a run: traces, a timeline, curves and metrics, each from the same hand-made logs."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
from events_of import START, Event, line, status, step, trained, worker

from safeladder.launch import logs
from safeladder.launch.check import sinks
from safeladder.launch.cli import main
from safeladder.launch.config import ConfigError, load
from safeladder.launch.export.feed import Feed, export
from safeladder.launch.export.metrics import TABLE, markdown
from safeladder.launch.export.otlp import OtlpSink
from safeladder.launch.export.perfetto import PerfettoSink
from safeladder.launch.export.sink import sink_class
from safeladder.launch.export.spans import Span, Traces, trace_id

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "00000001-task", "00000002-task"
DEADLINE_S = 20.0


def hop(do: str, at: float, identity: str, **fields: Any) -> dict[str, Any]:
    return {"do": do, "id": identity, "at": at, **fields}


def life(identity: str, at: float) -> list[dict[str, Any]]:
    """A work through two stops; the generator loses it once."""
    return [
        hop("accepted", at, identity, queue="generator", sequence=1),
        hop("leased", at + 1, identity, queue="generator", to="generator/0", wait_s=1.0),
        hop(
            "returned",
            at + 2,
            identity,
            queue="generator",
            by="generator/0",
            service_s=1.0,
            reason="generator/0 exited",
        ),
        hop("leased", at + 2.5, identity, queue="generator", to="generator/0", wait_s=0.5, attempt=2),
        hop("moved", at + 5, identity, queue="learner", by="generator/0", service_s=2.5),
        hop("leased", at + 5, identity, queue="learner", to="learner/0", wait_s=0.0),
        hop("finished", at + 9, identity, by="learner/0", service_s=4.0),
    ]


def events() -> list[Event]:
    """Two works side by side, the second without an end; a step, the hub's state, a warning."""
    rows = [*life(FIRST, 0), *life(SECOND, 0.1)[:-1]]
    columns = {"scores": [0.25, None], "labels": ["Safe", None], "statuses": ["ok", "timeout"], "versions": ["1"]}
    generated = {
        "seconds": 2.5,
        "lengths": [3, 4],
        "finishes": ["stop", "length"],
        "tokens": 7,
        "kept": 0,
        "versions": [0, 0],
    }
    advice = {"advice": "look"}
    found = [
        line("work.hops", 10.0, rows=sorted(rows, key=lambda row: float(row["at"]))),
        line("group.generated", 5.0, "generator", id=FIRST, **generated),
        line("group.judged", 4.9, "generator", id=FIRST, verdicts={"safety": columns}),
        {**trained(1, {"safety": [0.25, None]}, 7.9), "rewards": [0.25, None]},
        step(1, 8.0, step_s=6.0, wait_s=2.0, publish_s=0.5, tokens=7, groups=1, dropped={"stale": 2}, staleness=[0], kl=0.5,
             constraints={"unsafe": {"multiplier": 1.5, "margin": -0.25, "cost": 0.35, "limit": 0.1}}),
        status(6.0, waiting={"learner": 3}, leased=2, workers={"learner/0": worker("learner", leases=2)}),
        {**line("health.warning", 9.0, "launcher", rule="ess_collapse", subject="", found="0.1", **advice), "level": "warning"},
        line("actor.ready", 0.5, "learner", queues=["learner"], credit=4),
    ]  # fmt: skip
    return sorted(found, key=lambda event: str(event["ts"]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    for role in {event["role"] for event in events()}:
        said = [json.dumps(event) + "\n" for event in events() if event["role"] == role]
        (folder / "logs" / f"{role}-0.jsonl").write_text("".join(said))
    return folder


def traced() -> dict[str, list[Span]]:
    """Work -> its spans."""
    traces = Traces("run")
    found = [spans for event in events() for spans in traces.take(event)] + list(traces.rest())
    return {str(spans[0].attributes["safeladder.work"]): spans for spans in found}


# ------------------------------------------------------------------------------------------------------------------ traces


def test_a_trace_leads_from_the_prompt_to_the_gradient_with_waits_and_services() -> None:
    spans = traced()[FIRST]
    told = [(span.name, round(span.begin - START, 3), round(span.end - START, 3), span.error) for span in spans]
    assert told == [
        ("work", 0.0, 9.0, ""),
        ("wait generator", 0.0, 1.0, ""),
        ("generator", 1.0, 2.0, "generator/0 exited"),
        ("wait generator", 2.0, 2.5, ""),
        ("generator", 2.5, 5.0, ""),
        ("wait learner", 5.0, 5.0, ""),
        ("learner", 5.0, 9.0, ""),
        ("step 1", 4.0, 8.0, ""),
    ]
    assert {span.parent for span in spans[1:]} == {spans[0].id} and not spans[0].parent
    assert {span.trace for span in spans} == {trace_id("run", FIRST)}
    assert len({span.id for span in spans}) == len(spans)


def test_a_trace_tells_of_each_completion_its_length_verdict_reward_and_weight() -> None:
    generator, learner = traced()[FIRST][4], traced()[FIRST][7]
    samples = [m.attributes for m in generator.moments if m.name == "sample"]
    assert [(sample["safeladder.tokens"], sample["safeladder.finish"]) for sample in samples] == [
        (3, "stop"),
        (4, "length"),
    ]
    judged = [m.attributes for m in generator.moments if m.name == "verdict"]
    assert [verdict.get("safeladder.score") for verdict in judged] == [0.25, None]
    assert [verdict["safeladder.status"] for verdict in judged] == ["ok", "timeout"]
    assert not traced()[FIRST][2].moments  # the lease that was lost said nothing
    reckoned = [m.attributes for m in learner.moments]
    assert [sample.get("safeladder.reward") for sample in reckoned] == [0.25, None]
    assert reckoned[0]["safeladder.loss_weight"] == 0.1


def test_the_trace_of_a_work_that_has_not_ended_goes_as_far_as_it_has_come() -> None:
    spans = traced()[SECOND]
    assert spans[0].attributes["safeladder.outcome"] == "under way"
    assert [span.name for span in spans if not span.name.startswith("wait")] == [
        "work",
        "generator",
        "generator",
        "learner",
    ]


def test_a_file_of_traces_is_otlp_as_others_read_it(run: Path, tmp_path: Path) -> None:
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="extra [otel]")
    from google.protobuf import json_format

    export(run / "logs", OtlpSink("run", str(tmp_path / "traces.jsonl")))
    request = json.loads((tmp_path / "traces.jsonl").read_text())
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert all(
        re.fullmatch("[0-9a-f]{32}", span["traceId"]) and re.fullmatch("[0-9a-f]{16}", span["spanId"]) for span in spans
    )
    for span in spans:  # protobuf's own JSON has base64 where OTLP's has hexadecimal digits
        for key in ("traceId", "spanId", "parentSpanId"):
            span.pop(key, None)
    read = json_format.ParseDict(request, proto.ExportTraceServiceRequest())
    assert len(read.resource_spans[0].scope_spans[0].spans) == sum(map(len, traced().values()))


class Collector:
    """A real HTTP server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.bodies.append((self.path, body, self.headers.get("content-encoding", "")))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_a_collector_gets_the_same_spans_as_the_file(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="extra [otel]")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    collector = Collector()
    try:
        export(run / "logs", OtlpSink("run", f"http://127.0.0.1:{collector.server.server_port}"))
    finally:
        collector.close()
    export(run / "logs", OtlpSink("run", str(tmp_path / "traces.jsonl")))
    filed = json.loads((tmp_path / "traces.jsonl").read_text())["resourceSpans"][0]["scopeSpans"][0]["spans"]
    [(path, body, encoding)] = collector.bodies
    assert (path, encoding) == ("/v1/traces", "")
    sent = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    assert [
        (s.trace_id.hex(), s.span_id.hex(), s.parent_span_id.hex(), s.name, str(s.start_time_unix_nano), str(s.end_time_unix_nano))
        for s in sent
    ] == [
        (s["traceId"], s["spanId"], s.get("parentSpanId", ""), s["name"], s["startTimeUnixNano"], s["endTimeUnixNano"])
        for s in filed
    ]  # fmt: skip
    assert [len(s.events) for s in sent] == [len(s["events"]) for s in filed]


# ---------------------------------------------------------------------------------------------------------------- timeline


@pytest.fixture
def timeline(run: Path, tmp_path: Path) -> list[dict[str, Any]]:
    assert main(["export", str(run), "--to", "perfetto", str(tmp_path / "trace.json")]) == 0
    found: list[dict[str, Any]] = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    return found


def test_the_timeline_is_of_the_form_that_viewers_read(timeline: list[dict[str, Any]]) -> None:
    needs = {
        "M": {"args"},
        "X": {"ts", "dur"},
        "C": {"ts", "args"},
        "i": {"ts", "s"},
        **{phase: {"ts", "id", "cat"} for phase in "stf"},
    }
    for entry in timeline:
        assert {"ph", "pid", "tid", "name"} | needs[entry["ph"]] <= set(entry)
        assert entry.get("ts", 0) >= 0 and entry.get("dur", 0) >= 0
    named = [entry["pid"] for entry in timeline if entry["ph"] == "M"]
    assert len(named) == len(set(named)) and {entry["pid"] for entry in timeline} == set(named)


def test_slices_of_a_row_do_not_overlap_and_every_lease_is_one(timeline: list[dict[str, Any]]) -> None:
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for entry in timeline:
        if entry["ph"] == "X":
            rows.setdefault((entry["pid"], entry["tid"]), []).append((entry["ts"], entry["ts"] + entry["dur"]))
    for stretches in rows.values():
        stretches.sort()
        assert all(after[0] >= before[1] for before, after in itertools.pairwise(stretches))
    leases = [entry for entry in timeline if entry.get("cat") == "lease" and entry["ph"] == "X"]
    assert sorted(entry["name"] for entry in leases) == [FIRST] * 3 + [SECOND] * 3
    assert [entry["args"]["ended"] for entry in leases if entry["name"] == SECOND] == ["returned", "moved", "held"]


def test_arrows_lead_along_a_work_from_slice_to_slice(timeline: list[dict[str, Any]]) -> None:
    arrows: dict[int, list[dict[str, Any]]] = {}
    for entry in timeline:
        if entry["ph"] in "stf":
            arrows.setdefault(entry["id"], []).append(entry)
    assert sorted("".join(entry["ph"] for entry in flow) for flow in arrows.values()) == ["stf", "stt"]
    slices = [entry for entry in timeline if entry["ph"] == "X"]
    for entry in (entry for flow in arrows.values() for entry in flow):
        assert [s for s in slices if (s["pid"], s["tid"]) == (entry["pid"], entry["tid"]) and s["ts"] == entry["ts"]]


def test_the_timeline_has_counters_phases_and_warnings(timeline: list[dict[str, Any]]) -> None:
    counters = {entry["name"]: entry["args"]["value"] for entry in timeline if entry["ph"] == "C"}
    assert (counters["waiting in learner"], counters["kl"]) == (3, 0.5)
    phases = {entry["name"]: entry["dur"] / 1e6 for entry in timeline if entry.get("cat") == "phase"}
    assert phases == pytest.approx({"wait 1": 2.0, "train 1": 3.5, "publish 1": 0.5})
    assert [entry["name"] for entry in timeline if entry["ph"] == "i"] == ["health.warning"]


# ----------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_are_named_by_the_rules_and_stand_in_the_page_and_only_they_in_the_dashboard() -> None:
    for metric in TABLE:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name) and not metric.name.endswith(
            ("_total", "_count", "_sum", "_bucket")
        )
        assert "millis" not in metric.name and not metric.name.endswith(("_ms", "_s", "_percent"))
        assert metric.kind != "histogram" or metric.name.endswith(("_seconds", "_versions"))
    assert markdown() in (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    dashboard = json.loads((ROOT / "docs" / "monitor" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    names = {metric.shown for metric in TABLE} | {
        f"{metric.shown}_{part}"
        for metric in TABLE
        if metric.kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    labels = {metric.shown: set(metric.labels) for metric in TABLE}
    for expression in asked:
        used = set(re.findall(r"safeladder_\w+", expression))
        assert used and used <= names, expression
        if by := re.search(r"by \(([^)]*)\)", expression):
            own = set.union(*(labels[re.sub("_(bucket|sum|count)$", "", name)] for name in used))
            assert set(re.split(r",\s*", by[1])) <= own | {"le"}, expression


@pytest.fixture
def scraped(run: Path) -> Iterator[dict[str, float]]:
    """`name{labels}` -> value, over HTTP."""
    client = pytest.importorskip("prometheus_client", reason="not installed: pip install prometheus-client")
    from prometheus_client.parser import text_string_to_metric_families

    from safeladder.launch.export.metrics import Metrics

    assert client
    metrics = Metrics("run", "127.0.0.1", 0)
    for event in events():
        metrics.take(event)
    with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=DEADLINE_S) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    metrics.close()
    yield {
        "".join([sample.name, *(f",{key}={value}" for key, value in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_scrape_says_what_the_logs_say(scraped: dict[str, float]) -> None:
    expected = {
        "safeladder_step": 1,
        "safeladder_reference_kl_nats": 0.5,
        "safeladder_constraint_margin,constraint=unsafe": -0.25,
        "safeladder_trained_tokens_total": 7,
        "safeladder_dropped_groups_total,reason=stale": 2,
        "safeladder_generated_tokens_total,process=generator/0": 7,
        "safeladder_verdicts_total,status=timeout,verifier=safety": 1,
        "safeladder_queue_works,queue=learner": 3,
        "safeladder_process_leases,process=learner/0": 2,
        "safeladder_process_resident_memory_bytes,process=hub/0": 50_000_000,
        "safeladder_process_up,process=learner/0": 1,
        "safeladder_leases_ended_total,how=returned,queue=generator": 2,
        "safeladder_work_wait_seconds_count,queue=generator": 4,
        "safeladder_step_duration_seconds_sum": 6.0,
        "safeladder_health_warnings_total,rule=ess_collapse": 1,
        "safeladder_warnings_total,event=health.warning,process=launcher/0": 1,
        "safeladder_last_event_timestamp_seconds": START + 10.0,
    }
    assert {name: scraped.get(name) for name in expected} == pytest.approx(expected)
    assert scraped["safeladder_work_wait_seconds_sum,queue=generator"] == pytest.approx(3.0)


# ------------------------------------------------------------------------------------------------------------------ curves


def test_tensorboard_reads_back_the_figures_of_each_step(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    assert main(["export", str(run), "--to", "tensorboard", str(tmp_path / "board")]) == 0
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    names = board.Tags()["tensors"]
    assert {"training/kl", "off_policy/ess", "family/safety", "constraint/unsafe/margin", "dropped/stale"} <= set(names)
    [point] = board.Tensors("training/kl")
    assert (point.step, float(make_ndarray(point.tensor_proto))) == (1, 0.5)
    assert point.wall_time == pytest.approx(START + 8.0)


def test_wandb_writes_offline_and_sends_nothing(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="extra [wandb]")
    from wandb.proto import wandb_internal_pb2

    assert main(["export", str(run), "--to", "wandb", str(tmp_path / "curves")]) == 0
    [written] = (tmp_path / "curves" / "wandb").glob("offline-run-*/*.wandb")
    figures = dict[str, Any]()
    for data in records_of(written.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        figures |= {"/".join([item.key, *item.nested_key]): json.loads(item.value_json) for item in record.history.item}
    assert any(name.endswith("training/kl") and value == 0.5 for name, value in figures.items()), figures


def records_of(store: bytes) -> Iterator[bytes]:
    """Of a file in the log format of LevelDB, with the header of 7 bytes that W&B gives it: parts in blocks of 32 KiB, each part with
    its checksum (4 bytes), length (2) and kind (whole, first, middle or last of a record)."""
    place, record = 7, b""
    while place + 7 <= len(store):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        length, kind = int.from_bytes(store[place + 4 : place + 6], "little"), store[place + 6]
        record += store[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


# -------------------------------------------------------------------------------------------------------- the sinks at work


class Kept:
    """A user's own sink."""

    LIVE_TARGET: ClassVar[str | None] = "kept"

    def __init__(self, run: str, target: str) -> None:
        self.seen: list[tuple[str, int]] = []
        self.enough = threading.Event()

    def take(self, event: Event) -> None:
        self.seen.append((event["event"], event["seq"]))
        if event["event"] == "run.finished":
            self.enough.set()

    def close(self) -> None:
        self.seen.append(("closed", -1))


class Broken(Kept):
    def take(self, event: Event) -> None:
        raise OSError("no room")


def test_a_sink_that_fails_is_left_out_and_told_of_while_the_others_get_every_line_once(tmp_path: Path) -> None:
    log = logs.configure("run", "launcher", 0, tmp_path / "launcher-0.jsonl")
    log.info("run.moving", seconds=1.0)
    logs.flush()
    good = Kept("run", "")
    feed = Feed(tmp_path, [("bad", Broken("run", "")), ("good", good)])
    log.info("run.finished", code=0, reason="done")
    assert good.enough.wait(DEADLINE_S)
    feed.close()
    assert good.seen[-1] == ("closed", -1) and ("run.moving", 0) in good.seen
    assert len(good.seen) == len(set(good.seen))
    failed = [
        json.loads(text) for text in (tmp_path / "launcher-0.jsonl").read_text().splitlines() if "sink.failed" in text
    ]
    assert [(event["sink"], event["error"]) for event in failed] == [("bad", "OSError: no room")]


def test_a_check_names_a_sink_that_cannot_be_and_finds_a_users_own() -> None:
    config = load(
        ROOT / "tests" / "tiny.yaml",
        ["watch.sinks=[tensorbord,perfetto,'otlp=http://collector:4318',test_exports:Kept,test_exports:START]"],
    )
    said = [(finding.key, finding.message) for finding in sinks(config)]
    assert [key for key, _ in said] == ["watch.sinks[0]", "watch.sinks[1]", "watch.sinks[4]"]
    assert (
        "did you mean 'tensorboard'" in said[0][1]
        and "export RUN --to perfetto" in said[1][1]
        and "no safeladder" in said[2][1]
    )
    assert sink_class("test_exports:Kept") is Kept


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for kind in (OtlpSink, PerfettoSink):
        with pytest.raises(ConfigError, match="cannot be written"):
            kind("run", str(tmp_path / "file" / "trace.json"))
