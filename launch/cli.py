"""The command `safeladder`. A subcommand imports what it needs when it runs, so that help and errors come at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

EXIT_USAGE = 2
RUN = "a run's folder, such as runs/latest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code: 0, 1 found wanting, 2 usage, 78 configuration, 130 interrupted."""
    chosen = _parser().parse_args(arguments)
    # `python -m` finds a user's own actors in the working folder; so must this process, which checks them
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    structlog.configure(  # a run's own logs go to files (launch/logs.py); what a command has to say goes to the terminal
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    run: Callable[[argparse.Namespace], int] = chosen.run_command
    try:
        return run(chosen)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the process boundary
        if chosen.debug or not type(error).__module__.startswith("safeladder."):
            raise  # a defect of ours is shown whole; our own errors say what a user can put right
        print(f"safeladder: {error}", file=sys.stderr)
        return 78 if type(error).__name__ == "ConfigError" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safeladder", description="Post-training in which safety and capability rise together."
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run_command=run)
        return command

    launch = add("launch", _launch, "start a run, or go on with one")
    launch.add_argument("file", nargs="?", help="a cluster.yaml, or `embedded` for the one that comes with the package")
    launch.add_argument("overrides", nargs="*", metavar="key=value", help="such as learner.steps=20")
    launch.add_argument("--resume", metavar="RUN", type=Path, help="go on with this run from its newest checkpoint")
    climb = add("climb", _climb, "climb a ladder: rungs in order, each evaluated before and after and held to its gate")
    climb.add_argument("file", type=Path, help="such as launch/ladder/quickstart.yaml; the same again goes on")
    climb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the ladder, such as settings.policy.dtype=bfloat16"
    )
    climb.add_argument("--from", dest="first", metavar="RUNG", help="begin here; the rungs before are passed over")
    climb.add_argument("--only", metavar="RUNG", help="this rung alone")
    climb.add_argument("--go-on", action="store_true", help="past gates that fail")
    check = add("check", _check, "prove a configuration before anything starts")
    check.add_argument("file", help="a cluster.yaml, or `embedded`")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="as of launch")
    check.add_argument(
        "--elsewhere",
        type=float,
        metavar="GB",
        help="check for another machine, whose devices have so much memory each",
    )
    audit = add("audit", _audit, "prove from a run's files that every task was trained exactly once")
    audit.add_argument("folder", metavar="RUN", type=Path, help=RUN)
    summary = add("summary", _summary, "show what a run came to")
    summary.add_argument("folder", metavar="RUN", type=Path, help=RUN)
    top = add(
        "top", _top, "watch a run, live or afterwards: who does what, who waits for whom, what the training comes to"
    )
    top.add_argument("folder", metavar="RUN", type=Path, help=RUN)
    top.add_argument("--once", action="store_true", help="print it once and end")
    top.add_argument("--json", action="store_true", help="with --once: for programs")
    report = add("report", _report, "write one HTML page about a run, or about several beside each other")
    report.add_argument("folders", metavar="RUN", nargs="+", type=Path, help="a run, or a climb")
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="report.html unless given"
    )
    report.add_argument("--texts", action="store_true", help="with examples, where the run has logged texts")
    metrics = add("metrics", _metrics, "serve a run's metrics to Prometheus, from its logs")
    metrics.add_argument("folder", metavar="RUN", type=Path, help="a live run, or one that has ended")
    metrics.add_argument("--port", type=int, default=9464, help="9464 unless given; 0: any free one")
    metrics.add_argument("--host", default="127.0.0.1", help="where to listen; there is no password")
    export = add("export", _export, "make of a run's logs what other tools open: traces, a timeline, curves")
    export.add_argument("folder", metavar="RUN", type=Path, help=RUN)
    export.add_argument(
        "--to", nargs=2, required=True, metavar=("SINK", "TARGET"), help="perfetto FILE, otlp FILE or ADDRESS, "
        "tensorboard FOLDER, wandb FOLDER, or my_package.my_module:MySink"
    )  # fmt: skip
    _add_ask(add("ask", _ask, "ask a run, and watch the search for an answer"))
    serve = add("serve", _serve, "serve a run to OpenAI clients, and a console for people")
    serve.add_argument("folder", metavar="RUN", type=Path, help="a live run, or one that has ended")
    serve.add_argument("--host", help="where to listen; beyond 127.0.0.1 only with keys")
    serve.add_argument("--port", type=int, help="0: any free one; 8000 where nothing else is said")
    serve.add_argument(
        "--key-file", type=Path, metavar="FILE", help="API keys, a line each: `OWNER KEY`, or a key alone"
    )
    _add_verify(add("verify", _verify, "run a verifier over JSON lines, and measure it where they are labelled"))
    _add_evaluate(add("evaluate", _evaluate, "measure a policy or a remote model by suites, or compare two results"))
    _add_training(
        add("train-verifier", _train_verifier, "train a verifier, and report how it does on rows it never saw")
    )
    demonstrations = add("build-sft", _build_sft, "put demonstrations through their gates, from files or a teacher")
    demonstrations.add_argument("file", nargs="?", type=Path, help="a YAML file; without one, key=value alone")
    demonstrations.add_argument("overrides", nargs="*", metavar="key=value", help="such as files=[mine.jsonl] cap=0.3")
    _add_scenarios(add("scenarios", _scenarios, "write value scenarios from principles, as task records"))
    information = add("mi-peaks", _mi_peaks, "where a thought knows of the answer, before and after a rung")
    information.add_argument("before", metavar="MODEL_BEFORE", help="what policy.model takes")
    information.add_argument("after", metavar="MODEL_AFTER", help="the same")
    information.add_argument("--items", type=Path, required=True, help="records with prompt and reference")
    information.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for mi-peaks.json and mi-peaks.png"
    )
    information.add_argument("--system", help="message before every prompt")
    information.add_argument("--prefix", default="<think>", help="text that every thought continues")
    information.add_argument("--max-new-tokens", type=int, default=96, help="of an answer")
    pictures = add("pictures", _pictures, "put the prompts of task records into pictures, in the way of FigStep")
    pictures.add_argument("files", metavar="FILE", nargs="+", help="task records, or `embedded`")
    pictures.add_argument("--output", type=Path, required=True, help="file of task records")
    for name, run, help in (
        ("why", _why, "the life of a sample: waits, verdicts, rewards, its part in a step, or its end"),
        ("where", _where, "in which queue or lease a work is"),
    ):
        lineage = add(name, run, help)
        lineage.add_argument("folder", metavar="RUN", type=Path, help=RUN)
        lineage.add_argument(
            "id", metavar="ID", help="a work, its number or the end of its id; ID#k: its k-th completion"
        )
    for name, run, help in (
        ("who-waits", _who_waits, "who waits for whom, and the one thing behind it"),
        ("health", _health, "what the health rules find in a run's logs"),
    ):
        add(name, run, help).add_argument("folder", metavar="RUN", type=Path, help=RUN)
    replay = add("replay", _replay, "make a run's steps again from its record, and say where they first differ")
    replay.add_argument("folder", metavar="RUN", type=Path, help=RUN)
    replay.add_argument("--stop-at", type=int, metavar="N", help="make the steps up to N and show N's batch")
    replay.add_argument(
        "--tokens", action="store_true", help="with --stop-at: show prompts and answers, token by token"
    )
    events = add("events", _events, "list the events of the logs: who says each, and what it means")
    events.add_argument("--markdown", action="store_true", help="with their fields, as the page docs/events.md")
    dead = add("dead", _dead, "list what was set aside after failing too often, or put it back")
    dead.add_argument("folder", metavar="RUN", type=Path, help="a live run")
    dead.add_argument("--requeue", metavar="ID", help="put this one back, or `all`")
    keys = add("keys", _keys, "make the keys with which a run's processes know each other")
    keys.add_argument("folder", metavar="DIR", type=Path, help="a folder for them, which `hub.keys` then names")
    keys.add_argument(
        "--config", metavar="FILE", default="embedded", help="the cluster.yaml whose workers get keys; else `embedded`"
    )
    add("schema", _schema, "print the JSON Schema of the wire")
    return parser


def _add_ask(ask: argparse.ArgumentParser) -> None:
    ask.add_argument("text", help="the question")
    ask.add_argument("--run", type=Path, required=True, help="a live run, or one that has ended")
    ask.add_argument("--strategy", default="", help="of policies/search; the searcher's own where none is named")
    ask.add_argument(
        "--option", dest="options", action="append", default=[], metavar="KEY=VALUE", help="of the strategy"
    )
    ask.add_argument(
        "--candidates",
        metavar="N",
        type=int,
        default=4,
        help="answers to choose from, of best_of_n and deliberate; 4 unless given",
    )
    ask.add_argument("--max-new-tokens", metavar="N", type=int, default=128, help="of the answer; 128 unless given")
    ask.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed draws the same; 0 unless given")
    ask.add_argument("--all", action="store_true", help="print every candidate with its score and label")
    ask.add_argument(
        "--json", action="store_true", help="print the answer with its whole tree as JSON, and nothing else"
    )


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("files", metavar="FILE", nargs="+", type=Path, help="JSON lines: docs/verify.md")
    verify.add_argument("--verifier", metavar="NAME", help="a built-in name, or my_package.my_module:MyVerifier")
    verify.add_argument(
        "--option", dest="options", action="append", default=[], metavar="KEY=VALUE", help="of --verifier"
    )
    verify.add_argument("--pool", help="every verifier of this pool, as its file has it, instead of --verifier")
    verify.add_argument(
        "--config", metavar="YAML", default="embedded", help="the cluster.yaml that has the pool; else `embedded`"
    )
    verify.add_argument(
        "--output", metavar="FILE", type=Path, help="file of verdicts; what it holds already is not judged again"
    )
    verify.add_argument(
        "--label", metavar="FIELD", help="the field with 0 or 1, or FIELD=VALUE, which is 1 where it holds"
    )
    verify.add_argument("--positive", choices=("bad", "good"), help="what a 1 of that field means to the verifier")
    verify.add_argument("--prompts", action="store_true", help="judge lines without a response by their prompt alone")
    verify.add_argument("--limit", type=int, metavar="ROWS", help="judge so many rows, evenly spread")
    verify.add_argument(
        "--attacks", nargs="?", const="all", metavar="NAMES", help="`all`, or names with commas between"
    )
    verify.add_argument("--attack-rows", type=int, default=200, metavar="ROWS", help="rows that each attack changes")
    verify.add_argument(
        "--wrappers",
        metavar="FILE",
        type=Path,
        help="templates of the attack `wrapper`: JSON lines, `text` with {prompt}",
    )
    verify.add_argument(
        "--instructions", metavar="FILE", type=Path, help="what the attack `injected` plants: JSON lines, `text`"
    )
    verify.add_argument("--batch", type=int, default=64, metavar="ROWS", help="judged together; 64 unless given")
    verify.add_argument("--timeout-s", metavar="S", type=float, default=600.0, help="for a batch; 600 unless given")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_scenarios(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--principles",
        metavar="FILE",
        type=Path,
        required=True,
        help="JSON lines: domain, category, subcategory, rule_en, rule_zh",
    )
    command.add_argument("--language", choices=("en", "zh"), required=True, help="of the prompts")
    command.add_argument("--count", metavar="N", type=int, required=True, help="records to write")
    command.add_argument("--output", metavar="FILE", type=Path, required=True, help="file of task records")
    command.add_argument("--model", help="a model that writes prompts beside the templates: what policy.model takes")
    command.add_argument("--cache", type=Path, help="where built-in models are kept")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="0 unless given")


def _add_training(training: argparse.ArgumentParser) -> None:
    training.add_argument("file", metavar="CONFIG", type=Path, help="YAML with `kind:` and what that kind takes")
    training.add_argument(
        "overrides", nargs="*", metavar="key=value", help="not of kind `heads`, which has the options"
    )
    training.add_argument("--data", type=Path, help="heads: folder of the sets, in place of the configuration's")
    training.add_argument("--out", type=Path, help="heads: where the result goes, without suffix")
    training.add_argument("--cache", type=Path, help="heads: folder that keeps encoded texts for a second training")
    training.add_argument("--no-folds", action="store_true", help="heads: no trainings without some sources")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("file", nargs="?", help="a YAML file of settings, or the first key=value")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as policy=runs/latest suites=[safety]"
    )
    evaluate.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two folders of results: B less A")
    evaluate.add_argument("--parts", action="store_true", help="show families, categories and languages too")
    evaluate.add_argument("--json", action="store_true", help="print JSON and no table")


def _evaluate(chosen: argparse.Namespace) -> int:
    from safeladder.launch.evaluation.command import run

    return run(chosen)


def _train_verifier(chosen: argparse.Namespace) -> int:
    from safeladder.launch import train_verifier
    from safeladder.launch.config import parse

    heads = train_verifier.kind_of(parse(chosen.file), chosen.file) == "heads"
    train_verifier.refuse_unread(heads, chosen.overrides, [chosen.data, chosen.out, chosen.cache, chosen.no_folds])
    if heads:
        found = train_verifier.train_heads(chosen.file, chosen.data, chosen.out, chosen.cache, not chosen.no_folds)
        train_verifier.show_heads(found, sys.stdout)
        return 0
    # here the progress is what there is to see
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(20))
    planned = train_verifier.plan(chosen.file, chosen.overrides)
    report = planned.train(planned.config)
    print(report.markdown())
    print(f"written to {report.folder}")
    return 0


def _mi_peaks(chosen: argparse.Namespace) -> int:
    from safeladder.launch.mi_peaks import Request, analyse, said

    names = ("before", "after", "items", "out", "system", "prefix", "max_new_tokens")
    print(said(analyse(Request(**{name: getattr(chosen, name) for name in names}))))
    return 0


def _scenarios(chosen: argparse.Namespace) -> int:
    from safeladder.launch.scenarios import Request, scenarios

    given = {
        name: getattr(chosen, name) for name in ("principles", "language", "count", "output", "model", "cache", "seed")
    }
    count, leaves = scenarios(Request(**given))
    print(f"{count} scenarios over {leaves} leaves written to {chosen.output}")
    return 0


def _build_sft(chosen: argparse.Namespace) -> int:
    from safeladder.launch.demonstrations.build import build, load

    given = [str(chosen.file)] if chosen.file is not None and "=" in str(chosen.file) else []
    built = build(load(None if given else chosen.file, [*given, *chosen.overrides]), sys.stderr)
    print(json.dumps(built.report(), indent=1, ensure_ascii=False))
    return 0


def _pictures(chosen: argparse.Namespace) -> int:
    from safeladder.launch.pictures import write

    print(f"{write(chosen.files, chosen.output)} records written to {chosen.output}")
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    import dataclasses

    from safeladder.launch import verify_table
    from safeladder.launch.verify import Request, verify

    names = [field.name for field in dataclasses.fields(Request)]
    report = verify(Request(**{name: getattr(chosen, name) for name in names}), sys.stderr)
    if chosen.json:
        print(json.dumps(report.plain(), indent=1, ensure_ascii=False))
    else:
        verify_table.show(report, sys.stdout)
    return 1 if report.malformed else 0


def _launch(chosen: argparse.Namespace) -> int:
    from safeladder.launch import run as runs
    from safeladder.launch import summary
    from safeladder.launch.check import failed, show
    from safeladder.launch.checked import checked
    from safeladder.launch.config import load

    overrides = list(chosen.overrides)
    if chosen.resume is not None:  # then the first positional is an override too
        overrides = ([chosen.file] if chosen.file else []) + overrides
        folder, config = runs.reopen(chosen.resume, overrides)
    elif chosen.file is None:
        print(
            "safeladder: launch needs a FILE (`embedded` is the one that comes with the package) or --resume RUN",
            file=sys.stderr,
        )
        return EXIT_USAGE
    else:
        folder, config = None, load(chosen.file, overrides)
    with runs.forking(config) as prefork:
        findings = checked(config, prefork)
        if failed(findings):
            show(findings, sys.stderr)
            return 78
        if folder is None:
            folder = runs.create(config)
        print(f"run {folder.path}")
        outcome = runs.launch(config, folder, sys.stdout, prefork)
    summary.show(summary.load(folder), sys.stdout)
    return outcome.code


def _climb(chosen: argparse.Namespace) -> int:
    from safeladder.launch.ladder.climb import Climb, Request
    from safeladder.launch.ladder.files import read

    climb = Climb(read(chosen.file, chosen.overrides), sys.stdout)
    return climb.run(Request(chosen.first, chosen.only, chosen.go_on))


def _check(chosen: argparse.Namespace) -> int:
    from safeladder.launch import planner
    from safeladder.launch.check import check, failed, show
    from safeladder.launch.config import load

    config = load(chosen.file, chosen.overrides)
    elsewhere = None if chosen.elsewhere is None else chosen.elsewhere * 1e9
    planned = planner.plan(config)
    if planned.models or planned.unknown:
        planner.show(planned, elsewhere or planner.device_bytes(), sys.stdout)
    findings = check(config, elsewhere)
    show(findings, sys.stdout)
    return 1 if failed(findings) else 0


def _audit(chosen: argparse.Namespace) -> int:
    from safeladder.launch.audit import audit, holds, show
    from safeladder.launch.rundir import RunDirectory

    findings = audit(RunDirectory(chosen.folder))
    show(findings, sys.stdout)
    return 0 if holds(findings) else 1


def _summary(chosen: argparse.Namespace) -> int:
    from safeladder.launch import summary
    from safeladder.launch.rundir import RunDirectory

    summary.show(summary.load(RunDirectory(chosen.folder)), sys.stdout)
    return 0


def _top(chosen: argparse.Namespace) -> int:
    from safeladder.launch.top import once

    if not chosen.once and not chosen.json:
        from safeladder.launch.top.app import Monitor

        Monitor(once.opened(chosen.folder)).run()
        return 0
    view, shown = once.now(chosen.folder)
    if chosen.json:
        print(once.as_json(shown))
    else:
        once.show(view, shown, sys.stdout)
    return 0


def _report(chosen: argparse.Namespace) -> int:
    from safeladder.launch.report.write import write

    print(write(chosen.folders, chosen.out, chosen.texts))
    return 0


def _metrics(chosen: argparse.Namespace) -> int:
    from safeladder.launch.export.feed import Feed
    from safeladder.launch.export.metrics import Metrics
    from safeladder.launch.top.once import opened

    view = opened(chosen.folder)
    served = Metrics(view.path.name, chosen.host, chosen.port)
    feed = Feed(view.path / "logs", [("metrics", served)])
    print(f"metrics of {view.path.name} at http://{chosen.host}:{served.port}/metrics; Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()
    finally:
        feed.close()
    return 0


def _export(chosen: argparse.Namespace) -> int:
    from safeladder.launch.export.feed import export
    from safeladder.launch.export.sink import sink_class
    from safeladder.launch.top.once import opened

    run, (name, target) = opened(chosen.folder).path, chosen.to
    count = export(run / "logs", sink_class(name)(run.name, target))
    print(f"{count} events of {run.name} to {name}: {target}")
    return 0


def _ask(chosen: argparse.Namespace) -> int:
    import msgspec

    from safeladder.launch.ask import ask
    from safeladder.launch.ask_report import Report
    from safeladder.launch.rundir import RunDirectory
    from safeladder.launch.verify import options_of
    from safeladder.protocol.messages import Question

    question = Question(
        chosen.text,
        candidates=chosen.candidates,
        max_new_tokens=chosen.max_new_tokens,
        seed=chosen.seed,
        strategy=chosen.strategy,
        options=options_of(chosen.options),
    )
    report = Report(sys.stderr)
    answer = ask(RunDirectory(chosen.run), question, None if chosen.json else report.step)
    if chosen.json:
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return 0
    report.finish(answer)
    print(answer.text)
    for candidate in answer.candidates if chosen.all else []:
        score = "not accepted" if candidate.score is None else f"{candidate.score:.3f}"
        print(f"\n[{score}, {candidate.label or 'no label'}, version {candidate.version}] {candidate.text}")
    return 0


def _serve(chosen: argparse.Namespace) -> int:
    from safeladder.launch.gateway import given_options, serve
    from safeladder.launch.rundir import RunDirectory

    def tell(address: str) -> None:
        print(f"serving {chosen.folder} at {address} (OpenAI clients: {address}/v1); Ctrl-C ends it", flush=True)

    serve(RunDirectory(chosen.folder), given_options(chosen.host, chosen.port, chosen.key_file), tell)
    return 0


def _events(chosen: argparse.Namespace) -> int:
    from safeladder.launch.catalogue import EVENTS, markdown

    if chosen.markdown:
        print(markdown(), end="")
        return 0
    for event in EVENTS.values():
        print(f"{event.name:26}{event.said_by}: {event.meaning}")
    return 0


def _why(chosen: argparse.Namespace) -> int:
    from safeladder.launch.lineage import why
    from safeladder.launch.rundir import RunDirectory

    for line in why(RunDirectory(chosen.folder), chosen.id):
        print(line)
    return 0


def _where(chosen: argparse.Namespace) -> int:
    import time

    from safeladder.launch.lineage import where
    from safeladder.launch.rundir import RunDirectory

    print(where(RunDirectory(chosen.folder), chosen.id, time.time()))
    return 0


def _who_waits(chosen: argparse.Namespace) -> int:
    import time

    from safeladder.launch.diagnosis import who_waits
    from safeladder.launch.rundir import RunDirectory, is_live

    run = RunDirectory(chosen.folder)
    waits = who_waits(run, time.time() if is_live(run) else None)
    print(f"{waits.kind}: {waits.cause}")
    for line in waits.waits:
        print(f"  {line}")
    return 0


def _health(chosen: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from safeladder.launch.diagnosis import health
    from safeladder.launch.rundir import RunDirectory

    found = list(health(RunDirectory(chosen.folder)))
    for at, step, finding, lasts in found:
        when = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
        after = "" if step is None else f", after step {step}"
        print(f"{when}{after}: {finding.rule} {finding.subject}: {finding.found}{'' if lasts else ' (over)'}")
        print(f"  {finding.advice}")
    if not found:
        print("no rule is broken")
    return 1 if any(lasts for _, _, _, lasts in found) else 0


def _replay(chosen: argparse.Namespace) -> int:
    from safeladder.launch.replay import Replay, batch, told
    from safeladder.launch.rundir import RunDirectory

    with Replay(RunDirectory(chosen.folder)) as replay:
        for line in told(replay, chosen.stop_at):
            print(line, flush=True)
        made = replay.made
        assert made is not None
        if chosen.stop_at is not None:
            for line in batch(made, replay.tokenizer if chosen.tokens else None):
                print(line)
        return 1 if made.difference else 0


def _dead(chosen: argparse.Namespace) -> int:
    from safeladder.launch.ask import dead_letters
    from safeladder.launch.rundir import RunDirectory

    print(json.dumps(dead_letters(RunDirectory(chosen.folder), chosen.requeue), indent=2, ensure_ascii=False))
    return 0


def _keys(chosen: argparse.Namespace) -> int:
    from safeladder.launch.config import load
    from safeladder.launch.processes import worker_names
    from safeladder.protocol.keys import create

    for path in create(chosen.folder, worker_names(load(chosen.config))):
        print(path)
    return 0


def _schema(chosen: argparse.Namespace) -> int:
    from safeladder.protocol.messages import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
