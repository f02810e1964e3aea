"""Runs of an experiment as lines of JSON: what is there is not run again, and a page's results are written between its marks."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # a run: `settings`, the fields that tell it from others, and what it came to
Key = tuple[Any, ...]


def finished(results: Path, fields: Sequence[str], settings: Callable[[str], Any]) -> dict[Key, Record]:
    """Runs that are there by their `fields`, the first of which is the name.

    `settings` gives today's for a name, None for one that is not of the experiment; a run with others is left out.
    """
    found = {}
    for line in results.read_text().splitlines() if results.exists() else []:
        record = json.loads(line)
        todays = settings(record["name"])
        if todays is not None and record["settings"] == json.loads(json.dumps(todays)):
            found[tuple(record[field] for field in fields)] = record
    return found


def execute(
    results: Path,
    run: Callable[..., Record],
    missing: Mapping[Key, tuple[Any, ...]],
    jobs: int,
    said: Callable[[Record], str],
    minutes: float = float("inf"),
) -> None:
    """Makes the runs that are missing, `run(*arguments)` in processes of their own, and appends each when it is done.

    After `minutes` none is begun any more; the next call goes on from there.
    """
    end = time.monotonic() + 60 * minutes
    waiting = list(missing.values())
    running = set()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        while running or (waiting and time.monotonic() < end):
            while waiting and len(running) < jobs and time.monotonic() < end:
                running.add(pool.submit(run, *waiting.pop(0)))
            future = next(as_completed(running))
            running.remove(future)
            record = future.result()
            with results.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            print(said(record), flush=True)


def put_between(page: Path, begin: str, end: str, parts: Sequence[str]) -> None:
    """Replaces what stands between two lines of a page. Raises ValueError when it lacks its marks."""
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} must hold the lines {begin!r} and {end!r} once")
    before, rest = text.split(begin)
    page.write_text(before + "\n\n".join([begin, *parts, end]) + rest.split(end)[1])
