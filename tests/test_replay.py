"""A recorded run of real processes is made again from its record to the same bits; what is not its record is refused or named."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from running import Running, safeladder
from structlog.testing import capture_logs

from safeladder.actors.actor import Delivery
from safeladder.actors.recording import Recorder
from safeladder.launch import catalogue, lineage
from safeladder.launch.events import Tail
from safeladder.launch.replay import Recorded, Replay, ReplayError, batch, told
from safeladder.launch.rundir import RunDirectory
from safeladder.protocol import codec, framing
from safeladder.protocol import messages as m
from safeladder.protocol import record as r

STEPS = 8
ROUTE = "route: [generator, rules, learner]"
SPREAD = ("normal", "general_rule", "knowledge_rule")
SETTINGS = (
    "run.record=true",
    "learner.reference_kl=0",
    "learner.dynamic_sampling=true",  # groups of `safety` that have no spread are dropped
    *(f"recipe.families.{label}={{{ROUTE}, terms: {{length: 1}}}}" for label in SPREAD),
    f"recipe.families.safety={{{ROUTE}, terms: {{repetition: 1}}}}",  # random text hardly ever repeats itself
    "data.families={normal: 2, safety: 1}",
    *(f"pools.{pool}.replicas=0" for pool in ("searcher", "reference")),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that was killed with all its processes and resumed."""
    folder = tmp_path_factory.mktemp("recorded")
    with Running(folder, "learner.steps=1000", *SETTINGS) as running:
        running.until(lambda: running.steps >= 3)
    with Running(folder, f"learner.steps={STEPS}", resume=running.run.path) as resumed:
        assert resumed.wait() == 0, resumed.said()
    return resumed.run


@pytest.fixture
def copy(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """The same run, for a test that changes its record."""
    return RunDirectory(
        Path(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("lock", "weights")))
    )


def rewrite(run: RunDirectory, change: Callable[[r.Record], list[r.Record]]) -> None:
    """Puts other records, whose checksums are right, in the place of each."""
    changed = [new for old, _, _ in r.read(run.record) for new in change(old)]
    run.record.write_bytes(b"".join(framing.frame(msgspec.msgpack.encode(record)) for record in changed))


def outcome(run: RunDirectory) -> list[str]:
    with Replay(run) as replay:
        return list(told(replay, None))


def test_a_recorded_run_replays_to_the_same_weights_through_a_crash_and_a_resume(run: RunDirectory) -> None:
    assert sum(isinstance(record, r.Began) for record, _, _ in r.read(run.record)) == 2
    answer = safeladder("replay", str(run.path))
    assert answer.returncode == 0, answer.stderr + answer.stdout
    *steps, weights = answer.stdout.splitlines()
    assert [line.partition(":")[0] for line in steps] == [f"step {n}" for n in range(1, STEPS + 1)]
    assert all(": the same" in line for line in steps) and "and as step-00000008" in steps[-1]
    assert weights.startswith("weights: sha256:")


def test_a_replay_that_stops_at_a_step_shows_its_batch_as_the_run_has_trained_it(run: RunDirectory) -> None:
    with Replay(run) as replay:
        list(told(replay, 3))
        assert replay.made is not None
        entry, shown = replay.made.step.entry, "\n".join(batch(replay.made, replay.tokenizer))
        without = "\n".join(batch(replay.made))
    trained = {
        event["id"]: event
        for event in Tail(run.path / "logs", "learner-*.jsonl").read()
        if event["event"] == "group.trained" and event["published"] == entry.published
    }
    assert set(trained) == set(entry.ids)
    for event in trained.values():
        for k, reward in enumerate(event["rewards"]):
            weight, advantage = event["loss_weights"][k], event["advantages"][k]
            channels = ", ".join(f"{name} {values[k]:.4g}" for name, values in event["channels"].items())
            assert f"#{k} reward {reward:.4g} ({channels}), advantage {advantage:.4g}, " in shown
            assert f", loss weight {weight:.4g}, " in shown
    assert "    prompt: '<|im_start|>'" in shown and "prompt: " not in without
    assert "1 versions old" in shown or "0 versions old" in shown


def test_a_step_that_came_to_something_else_is_the_first_difference(copy: RunDirectory) -> None:
    def change(record: r.Record) -> list[r.Record]:
        other = isinstance(record, r.Stepped) and record.step == 5
        return [msgspec.structs.replace(record, loss=record.loss + 1e-12) if other else record]

    rewrite(copy, change)
    *steps, _ = outcome(copy)
    assert len(steps) == 5 and "the same" in steps[3] and "differs: loss was" in steps[4]


def test_a_record_of_which_a_token_was_changed_is_refused(copy: RunDirectory) -> None:
    def change(record: r.Record) -> list[r.Record]:
        if not isinstance(record, r.Handed):
            return [record]
        _, body, parcels = codec.decode_from_hub(record.parts)
        payload, arrays = codec.unpack(parcels[0])
        if isinstance(payload, m.Group):
            place = [array.name for array in body.work.arrays].index("completion_ids")
            ids = arrays["completion_ids"].copy()
            ids[0] += 1
            record.parts[2 + place] = ids.tobytes()
        return [record]

    rewrite(copy, change)
    with pytest.raises(ReplayError, match=r"no batch with the digest \w+ for step 1, .* it was changed"):
        outcome(copy)


def test_a_work_that_came_again_while_it_was_trained_does_not_confuse_the_replay(copy: RunDirectory) -> None:
    """As after a restart of the hub: sampled anew, handed on before the step's mark, and not what was trained."""

    def change(record: r.Record) -> list[r.Record]:
        if not isinstance(record, r.Handed):
            return [record]
        again = r.Handed([*record.parts])
        body = codec.decode_from_hub(record.parts)[1]
        names = [array.name for array in body.work.arrays]
        if "completion_ids" not in names:
            return [record]
        place = 2 + names.index("completion_ids")
        again.parts[place] = bytes(len(again.parts[place]))
        return [record, again]

    rewrite(copy, change)
    assert all(": the same" in line for line in outcome(copy)[:-1])


def test_a_flipped_bit_is_damage_with_its_place(copy: RunDirectory) -> None:
    content = bytearray(copy.record.read_bytes())
    content[len(content) // 2] ^= 1
    copy.record.write_bytes(content)
    with pytest.raises(r.RecordError, match="is damaged at byte"):
        Recorded.read(copy)


def test_a_torn_tail_is_named_and_what_stands_before_it_is_replayed(copy: RunDirectory) -> None:
    last = max(end for record, _, end in r.read(copy.record) if isinstance(record, r.Stepped))
    copy.record.write_bytes(copy.record.read_bytes()[: last - 3])
    with Replay(copy) as replay:
        lines = told(replay, None)
        assert all(": the same" in next(lines) for _ in range(STEPS - 1))
        with pytest.raises(
            ReplayError, match=rf"does not have step {STEPS} of {STEPS}: \d+ bytes at its end.* are torn"
        ):
            next(lines)


def test_a_record_that_was_full_is_replayed_as_far_as_it_goes_and_says_why_no_further(copy: RunDirectory) -> None:
    stepped: list[int] = []

    def change(record: r.Record) -> list[r.Record]:
        if len(stepped) == 4:
            return []
        if isinstance(record, r.Stepped):
            stepped.append(record.step)
        return [record, r.Closed("it was full")] if len(stepped) == 4 else [record]

    rewrite(copy, change)
    with pytest.raises(ReplayError, match=r"does not have step \d of 8: it was full"):
        outcome(copy)


def test_why_answers_for_every_sample_trained_or_not_and_the_counts_are_the_ledgers(run: RunDirectory) -> None:
    history = lineage.History.read(run)
    assert history.steps and history.dropped and set(history.dropped.values()) == {"uninformative"}
    counts = lineage.count(run)
    assert (counts["trained"], counts["dropped"]) == (len(history.steps), len(history.dropped))
    works = [life for life in lineage.lives(run).values() if life.training]
    assert counts.total() == len(works)  # and so each has one outcome
    for life in works:
        kind, _ = lineage.outcome(life, history)
        for sample in range(life.samples):
            first, *rest = lineage.why(run, f"{life.id}#{sample}")
            assert first.startswith(f"{life.id}#{sample}: {kind}, ") and rest
            assert any("sampled with versions" in line for line in rest)
            assert any(f"#{sample} reward" in line for line in rest) == (kind in ("trained", "dropped", "undone"))


def test_the_logs_of_a_recorded_run_are_of_the_catalogue(run: RunDirectory) -> None:
    lines = list(Tail(run.path / "logs").read())
    assert [problem for line in lines for problem in catalogue.problems(line)] == []
    assert len([line for line in lines if line["event"] == "record.opened"]) == 2


# ----------------------------------------------------------------------------------------------------- the recorder


def delivery(number: int) -> Delivery:
    group = m.Group(m.Record(f"t{number}", "normal", "Say it."), m.Sampling(), number)
    arrays: dict[str, Any] = {"prompt_ids": np.arange(1000, dtype=np.int32), "lengths": np.zeros(0, np.int32)}
    parcel = codec.pack(group, arrays, id=f"{number}", route=["learner"], stop=0)
    payload, read = codec.unpack(parcel)
    return Delivery(number, 1, parcel.work, payload, read, None)  # type: ignore[arg-type]


def test_a_record_holds_messages_as_they_are_on_the_wire_up_to_its_bound(tmp_path: Path) -> None:
    async def record(numbers: range) -> list[Any]:
        with capture_logs() as logged:
            import structlog

            recorder = Recorder(tmp_path / "record", 20_000, structlog.get_logger())
            for number in numbers:
                recorder.handed(delivery(number), 30.0)
            await recorder.stepped(r.Stepped("hash", 1, 0.5, 1.0))
            await recorder.close()
        return [event["event"] for event in logged]

    assert asyncio.run(record(range(3))) == ["record.opened"]
    assert asyncio.run(record(range(3, 9))) == ["record.opened", "record.closed"]
    assert asyncio.run(record(range(9, 10))) == ["record.opened", "record.closed"]  # what is closed stays closed
    found = [record for record, _, _ in r.read(tmp_path / "record")]
    assert isinstance(found[-1], r.Closed) and "record_max_bytes" in found[-1].reason
    assert (tmp_path / "record").stat().st_size < 20_000 + 200
    handed = [codec.decode_from_hub(record.parts) for record in found if isinstance(record, r.Handed)]
    assert [body.work.id for _, body, _ in handed] == ["0", "1", "2", "3"]
    assert codec.unpack(handed[2][2][0])[1]["prompt_ids"].tolist() == list(range(1000))
