"""The journal: what was appended is read back, a torn tail is cut, damage is an error, and a full disk loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talk import Talk, task

from safeladder.protocol import codec
from safeladder.protocol import journal as j
from safeladder.protocol.board import Board
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.journal import Journal, JournalError

RECORDS: list[j.Record] = [
    j.Booted(1),
    j.submitted(task("w0", 7)),
    j.moved(task("w0", 7, stop=1)),
    j.Dead("w0", 1, 3, "error", kept=True),
    j.Requeued("w0", "w0~1"),
    j.Finished("w0", "done"),
    j.Topic("policy", {"version": 3, "files": ["a"]}),
]


def same(one: j.Record, other: j.Record) -> bool:
    """`Raw` payloads compare by identity, so records are compared as bytes."""
    return j._encoder.encode(one) == j._encoder.encode(other)


def written(path: Path, records: list[j.Record] = RECORDS) -> bytes:
    journal = Journal(path)
    journal.append(records)
    journal.close()
    return path.read_bytes()


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal"
    for record in RECORDS:
        journal = Journal(path)
        journal.append([record])
        journal.close()
    assert all(map(same, j.read(path), RECORDS))
    assert len(Journal(path).recovered) == len(RECORDS)


def test_a_record_is_three_checked_numbers_and_standard_msgpack(tmp_path: Path) -> None:
    content = written(tmp_path / "journal", [j.Finished("w0", "done")])
    assert msgpack.unpackb(content[12:]) == {"type": "finished", "id": "w0", "outcome": "done"}


def test_a_tail_torn_at_any_byte_of_the_last_record_is_cut_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    start = len(written(path, RECORDS[:-1]))
    whole = written(path, RECORDS[-1:])
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path, sync=False)
        assert len(journal.recovered) == len(RECORDS) - 1
        assert (journal.cut_bytes, journal.size, path.stat().st_size) == (length - start, start, start)
        journal.append(RECORDS[-1:])
        journal.close()
        assert path.read_bytes() == whole


def test_zeros_after_the_last_record_are_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    for zeros in (1, 11, 12, 13, 5000):
        path.write_bytes(whole + bytes(zeros))
        journal = Journal(path)
        assert (len(journal.recovered), journal.cut_bytes) == (len(RECORDS), zeros)
        journal.close()


def test_a_bit_flipped_anywhere_before_the_tail_is_an_error_that_names_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ends, content = [], b""
    for record in RECORDS:
        content = written(path, [record])
        ends.append(len(content))
    starts = [0, *ends]
    for position in range(starts[-2]):
        for bit in (0, 7):
            broken = bytearray(content)
            broken[position] ^= 1 << bit
            path.write_bytes(broken)
            record = max(index for index, start in enumerate(starts) if start <= position)
            with pytest.raises(JournalError, match=f"damaged at byte {starts[record]}:"):
                Journal(path)
            assert path.read_bytes() == broken  # nothing is cut, nothing is made worse


def test_a_record_of_another_schema_is_an_error_and_not_a_torn_tail(tmp_path: Path) -> None:
    class Newer(j.Struct, tag="newer"):
        value: int

    written(tmp_path / "journal", [j.Booted(1), Newer(3)])  # type: ignore[list-item]
    with pytest.raises(JournalError, match="another schema at byte"):
        Journal(tmp_path / "journal")


def test_a_second_hub_on_the_same_journal_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal")
    first.append(RECORDS)
    with pytest.raises(JournalError, match="belongs to another running hub"):
        Journal(tmp_path / "journal")
    first.rewrite(RECORDS[:2])
    with pytest.raises(JournalError, match="belongs to another running hub"):
        Journal(tmp_path / "journal")
    first.close()
    assert len(Journal(tmp_path / "journal").recovered) == 2


# ----------------------------------------------------------------------------------------------------------- rewriting


def test_a_rewrite_replaces_the_content_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(RECORDS * 50)
    journal.rewrite(iter(RECORDS[:2] * 1500))  # more than a slice
    journal.append(RECORDS[2:3])
    assert journal.size == path.stat().st_size
    journal.close()
    read = list(j.read(path))
    assert len(read) == 3001
    assert all(map(same, read[-3:], RECORDS[:3]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal"]


@pytest.mark.parametrize("step", ["append", "replace"])
def test_a_rewrite_that_fails_leaves_the_old_file_in_use(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(RECORDS)

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "append" else Path, "fdatasync" if step == "append" else "replace", broken)
        with pytest.raises(JournalError, match="cannot compact"):
            journal.rewrite(RECORDS[:1])
    journal.append(RECORDS[:1])
    journal.close()
    assert len(list(j.read(path))) == len(RECORDS) + 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal"]


def test_a_crash_in_the_middle_of_a_rewrite_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    path.with_suffix(".compacting").write_bytes(b"half a record")
    journal = Journal(path)
    assert len(journal.recovered) == len(RECORDS)
    journal.rewrite(RECORDS[:1])
    journal.close()
    assert len(list(j.read(path))) == 1


# ---------------------------------------------------------------------------------------------------------- full disks

FULL = """
import resource, signal, sys
from pathlib import Path
from safeladder.protocol import journal as j
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = j.Journal(Path(sys.argv[1]))
journal.append([j.Booted(1)])
whole = journal.size
for room in range(0, 60, 7):
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + room, resource.RLIM_INFINITY))
    try:
        journal.append([j.Finished("w" * 30, "done"), j.Finished("v" * 30, "done")])
    except j.JournalError as error:
        assert "File too large" in str(error), error
        assert Path(sys.argv[1]).stat().st_size == journal.size == whole
        try:
            journal.rewrite([j.Finished("w" * 300, "done")])
        except j.JournalError:
            pass
        else:
            raise SystemExit("rewrote without room")
    else:
        raise SystemExit("wrote without room")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append([j.Finished("w" * 30, "done"), j.Finished("v" * 30, "done")])
journal.append([j.Finished("x", "done")])
journal.close()
print([getattr(record, "id", "boot")[:1] for record in j.read(Path(sys.argv[1]))])
"""


def test_a_write_that_finds_no_room_leaves_whole_records_and_can_be_tried_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "journal")], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.strip() == "['b', 'w', 'v', 'x']", done.stderr


def test_a_hub_on_a_full_disk_acknowledges_nothing_until_there_is_room(tmp_path: Path) -> None:
    """A round's messages wait for its records, and a failed compaction does not write a round twice."""
    endpoint = f"ipc://{tmp_path}/hub"
    talk = Talk()
    hub = Hub(endpoint, talk.options, tmp_path / "journal")
    effects = hub.core.collect()
    tried = threading.Event()
    stop = threading.Event()
    journal = hub._journal
    assert journal is not None
    real = journal.append

    def full(records: Any) -> None:
        tried.set()
        raise JournalError("cannot write: No space left on device")

    journal.append = full  # type: ignore[method-assign]
    committed: list[bool] = []
    thread = threading.Thread(target=lambda: committed.append(hub._commit(effects, stop)))
    thread.start()
    assert tried.wait(5)
    assert not committed  # and so nothing is sent
    journal.append = real  # type: ignore[method-assign]
    thread.join(5)
    assert committed == [True]
    hub._compact_at = 0
    journal.rewrite = full  # type: ignore[method-assign]
    effects.records = [j.Finished("w0", "done")]
    assert hub._commit(effects, stop)
    hub.close()
    assert [type(record).__name__ for record in j.read(tmp_path / "journal")] == ["Booted", "Finished"]


# --------------------------------------------------------------------------------------------- the books on the disk

STEPS = st.lists(
    st.tuples(st.sampled_from(["submit", "next", "done", "end", "dead", "requeue", "lost", "part"]), st.integers(0, 5)),
    max_size=40,
)


def books(board: Board, durability: str) -> dict[str, Any]:
    """What must survive, in comparable form."""

    def view(parcel: codec.Parcel | None) -> Any:
        return parcel and (
            codec.unpack(parcel)[0],
            parcel.work.route,
            parcel.work.stop,
            [bytes(f) for f in parcel.frames],
        )

    return {
        "live": {
            identity: (
                view(item.root),
                (item.stop, view(item.parcel), item.fence) if durability == "full" else None,
            )
            for identity, item in board.items.items()
        },
        "finished": board.finished,
        "dead": {identity: (view(d.root), d.stop, d.attempts, d.error) for identity, d in board.dead.items()},
    }


@pytest.mark.parametrize("durability", ["ids", "full"])
@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_the_books_are_the_same_from_the_journal_and_from_a_snapshot(
    durability: Any, steps: list[tuple[str, int]]
) -> None:
    board = Board(durability)
    records: list[j.Record] = []
    tokens = iter(range(1, 1000))
    for number, (step, choice) in enumerate(steps):
        leased = [item for item in board.items.values() if item.lease is not None]
        item = leased[choice % len(leased)] if leased else None
        if step == "submit":
            records += board.accept(task(f"w{number}", number, lane=["training", "interactive"][choice % 2]), 0.0)
        elif step == "next":
            queue = ["generator", "verifier", "learner"][choice % 3]
            if (waiting := board.next(queue)) is not None:
                board.lease(waiting, next(tokens))
        elif step == "requeue" and board.dead:
            records += board.requeue(list(board.dead)[choice % len(board.dead)], 0.0)[1]
        elif item is not None and step == "done":
            if item.last_stop:
                records += board.finish(item, "done")
            else:
                records += board.move(item, task(item.id, number, stop=item.stop + 1), 0.0)
        elif item is not None and step == "end":
            records += board.end_early(item, "ended", 0.0)
        elif item is not None and step == "dead":
            records += board.set_aside(item, "broken", 0.0)
        elif item is not None and step == "lost":
            board.release(item, 0.0)
        elif item is not None and step == "part":
            records += board.advance(item, task(item.id, number, stop=item.stop))
            board.release(item, 0.0)
    expected = books(board, durability)
    for source in (records, list(board.snapshot())):
        copy = Board(durability)
        copy.restore(source, 0.0)
        assert books(copy, durability) == expected
        again = Board(durability)
        again.restore(copy.snapshot(), 0.0)
        assert books(again, durability) == expected
