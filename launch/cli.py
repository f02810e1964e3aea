"""The command `safeladder`. A subcommand imports what it needs when it runs, so that help and errors come at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

EXIT_USAGE = 2


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
    check = add("check", _check, "prove a configuration before anything starts")
    check.add_argument("file")
    check.add_argument("overrides", nargs="*", metavar="key=value")
    audit = add("audit", _audit, "prove from a run's files that every task was trained exactly once")
    audit.add_argument("folder", metavar="RUN", type=Path)
    summary = add("summary", _summary, "show what a run came to")
    summary.add_argument("folder", metavar="RUN", type=Path)
    top = add(
        "top", _top, "watch a run, live or afterwards: who does what, who waits for whom, what the training comes to"
    )
    top.add_argument("folder", metavar="RUN", type=Path)
    top.add_argument("--once", action="store_true", help="print it once and end")
    top.add_argument("--json", action="store_true", help="with --once: for programs")
    report = add("report", _report, "write one HTML page about a run, or about several beside each other")
    report.add_argument("folders", metavar="RUN", nargs="+", type=Path)
    report.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    report.add_argument("--texts", action="store_true", help="with examples, where the run has logged texts")
    ask = add("ask", _ask, "ask the searcher of a run")
    ask.add_argument("text")
    ask.add_argument("--run", type=Path, required=True)
    ask.add_argument("--candidates", type=int, default=4, help="answers that are sampled and judged")
    ask.add_argument("--all", action="store_true", help="show every candidate with its score and label")
    _add_verify(add("verify", _verify, "run a verifier over JSON lines, and measure it where they are labelled"))
    train = add("train-verifier", _train_verifier, "train a verifier, and report how it does on rows it never saw")
    train.add_argument("file", metavar="CONFIG", type=Path, help="YAML with `kind:` and what that kind takes")
    train.add_argument("overrides", nargs="*", metavar="key=value")
    _add_scenarios(add("scenarios", _scenarios, "write value scenarios from principles, as task records"))
    dead = add("dead", _dead, "list what was set aside after failing too often, or put it back")
    dead.add_argument("folder", metavar="RUN", type=Path)
    dead.add_argument("--requeue", metavar="ID", help="put this one back, or `all`")
    keys = add("keys", _keys, "make the keys with which a run's processes know each other")
    keys.add_argument("folder", metavar="DIR", type=Path)
    keys.add_argument("--config", default="embedded", help="the cluster.yaml whose workers get keys")
    add("schema", _schema, "print the JSON Schema of the wire")
    return parser


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("files", metavar="FILE", nargs="+", type=Path)
    verify.add_argument("--verifier", metavar="NAME", help="a built-in name, or my_package.my_module:MyVerifier")
    verify.add_argument("--option", dest="options", action="append", default=[], metavar="KEY=VALUE")
    verify.add_argument("--pool", help="every verifier of this pool, instead of --verifier")
    verify.add_argument("--config", default="embedded", help="the cluster.yaml that has the pool")
    verify.add_argument("--output", type=Path, help="file of verdicts; what it holds already is not judged again")
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
        "--wrappers", type=Path, help="templates of the wrapper attack: JSON lines, `text` with {prompt}"
    )
    verify.add_argument("--instructions", type=Path, help="what the injection attack plants: JSON lines, `text`")
    verify.add_argument("--batch", type=int, default=64, metavar="ROWS")
    verify.add_argument("--timeout-s", type=float, default=600.0, help="for a batch")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_scenarios(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--principles", type=Path, required=True, help="JSON lines: domain, category, subcategory, rule_en, rule_zh"
    )
    command.add_argument("--language", choices=("en", "zh"), required=True)
    command.add_argument("--count", type=int, required=True)
    command.add_argument("--output", type=Path, required=True, help="file of task records")
    command.add_argument("--model", help="a model that writes prompts beside the templates: what policy.model takes")
    command.add_argument("--cache", type=Path, help="where built-in models are kept")
    command.add_argument("--seed", type=int, default=0)


def _train_verifier(chosen: argparse.Namespace) -> int:
    from safeladder.launch.train_verifier import plan

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(20)
    )  # here the progress is what there is to see
    planned = plan(chosen.file, chosen.overrides)
    report = planned.train(planned.config)
    print(report.markdown())
    print(f"written to {report.folder}")
    return 0


def _scenarios(chosen: argparse.Namespace) -> int:
    from safeladder.launch.scenarios import Request, scenarios

    given = {
        name: getattr(chosen, name) for name in ("principles", "language", "count", "output", "model", "cache", "seed")
    }
    count, leaves = scenarios(Request(**given))
    print(f"{count} scenarios over {leaves} leaves written to {chosen.output}")
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
    from safeladder.launch.check import check, failed, show
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
    findings = check(config)
    if failed(findings):
        show(findings, sys.stderr)
        return 78
    if folder is None:
        folder = runs.create(config)
    print(f"run {folder.path}")
    outcome = runs.launch(config, folder, sys.stdout)
    summary.show(summary.load(folder), sys.stdout)
    return outcome.code


def _check(chosen: argparse.Namespace) -> int:
    from safeladder.launch.check import check, failed, show
    from safeladder.launch.config import load

    findings = check(load(chosen.file, chosen.overrides))
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


def _ask(chosen: argparse.Namespace) -> int:
    from safeladder.launch.ask import ask
    from safeladder.launch.rundir import RunDirectory
    from safeladder.protocol.messages import Question

    answer = ask(RunDirectory(chosen.run), Question(chosen.text, candidates=chosen.candidates))
    print(answer.text)
    for candidate in answer.candidates if chosen.all else []:
        score = "not accepted" if candidate.score is None else f"{candidate.score:.3f}"
        print(f"\n[{score}, {candidate.label or 'no label'}, version {candidate.version}] {candidate.text}")
    return 0


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
