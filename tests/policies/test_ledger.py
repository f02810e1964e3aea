import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.ledger import ROOT, Entry, Ledger, LedgerError, VersionCounter, repeated


def entry(step, parent, ids, dropped=(), version=0):
    ids = list(ids)
    return Entry(
        step=step,
        version=version,
        published=version + 1,
        boot="boot-1",
        parent=parent,
        ids=ids,
        sequences=list(range(len(ids))),
        dropped=list(dropped),
        staleness=[0] * len(ids),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "learner" / "ledger.jsonl"


def test_what_was_appended_is_read_back(path):
    ledger = Ledger(path)
    first = ledger.append(entry(0, ROOT, ["a", "b"]))
    second = ledger.append(entry(1, first, ["c"], dropped=["d"]))
    ledger.close()
    again = Ledger(path, read_only=True)
    assert [e.ids for e in again.lineage(second)] == [["a", "b"], ["c"]]
    assert again.consumed(second) == {"a", "b", "c", "d"}
    assert again.trained(second) == {"a", "b", "c"}
    assert again.consumed(first) == {"a", "b"}
    assert again.lineage(ROOT) == []
    assert again.entries() == ledger.entries()


def test_a_rolled_back_branch_is_kept_but_does_not_count(path):
    ledger = Ledger(path)
    first = ledger.append(entry(0, ROOT, ["a"]))
    lost = ledger.append(entry(1, first, ["b"]))
    second = ledger.append(entry(1, first, ["b"], version=5))
    assert lost != second
    assert ledger.consumed(second) == {"a", "b"}
    assert len(ledger) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda head: entry(1, head, ["a"]), "consume again: a"),
        (lambda head: entry(1, head, ["x", "x"]), "consume again: x"),
        (lambda head: entry(1, head, ["x"], dropped=["a"]), "consume again: a"),
        (lambda head: entry(2, head, ["x"]), "step 1 would"),
        (lambda head: entry(1, "0" * 32, ["x"]), "unknown parent"),
        (lambda head: Entry(1, 0, 1, "b", head, ["x"], []), "one sequence"),
    ],
)
def test_an_entry_that_would_break_the_history_is_refused_and_not_written(path, wrong, message):
    ledger = Ledger(path)
    head = ledger.append(entry(0, ROOT, ["a"]))
    size = path.stat().st_size
    with pytest.raises(LedgerError, match=message):
        ledger.append(wrong(head))
    assert path.stat().st_size == size


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 10_000))
def test_a_torn_last_line_is_as_if_never_written(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "ledger.jsonl"
    ledger = Ledger(path)
    first = ledger.append(entry(0, ROOT, ["a"]))
    standing = path.stat().st_size
    ledger.append(entry(1, first, ["b"]))
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: standing + cut % (len(whole) - standing)])
    assert len(Ledger(path, read_only=True)) == 1
    again = Ledger(path)
    assert path.stat().st_size == standing
    head = again.append(entry(1, first, ["b"]))
    assert again.consumed(head) == {"a", "b"}
    assert path.read_bytes() == whole


def test_a_last_line_whose_blocks_did_not_all_reach_the_disk_is_torn_too(path):
    ledger = Ledger(path)
    first = ledger.append(entry(0, ROOT, ["a"]))
    standing = path.stat().st_size
    ledger.append(entry(1, first, ["b"]))
    ledger.close()
    data = bytearray(path.read_bytes())
    data[standing : standing + 20] = bytes(20)
    path.write_bytes(data)
    assert len(Ledger(path)) == 1


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("altered") / "ledger.jsonl"
    ledger = Ledger(path)
    head = ledger.append(entry(0, ROOT, ["a"]))
    for step in (1, 2):
        head = ledger.append(entry(step, head, [str(step)]))
    ledger.close()
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit  # without the last newline, the last line is a torn one
    path.write_bytes(data)
    with pytest.raises(LedgerError):
        Ledger(path)


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.lists(st.sampled_from(["step", "step", "step", "checkpoint", "crash", "torn"]), max_size=40),
    batch=st.integers(1, 3),
)
def test_every_surviving_history_holds_each_id_once(tmp_path_factory, schedule, batch):
    path = tmp_path_factory.mktemp("history") / "ledger.jsonl"
    ledger, committed, head = Ledger(path), ROOT, ROOT
    queue = [f"work-{number}" for number in range(150)]
    for event in schedule:
        history = ledger.lineage(head)
        if event == "step":
            # What the hub redelivers is whatever this history has not consumed.
            done = ledger.consumed(head)
            ids = [work for work in queue if work not in done][: batch + 1]
            head = ledger.append(entry(len(history), head, ids[:batch], dropped=ids[batch:]))
        elif event == "checkpoint":
            committed = head
        else:
            ledger.close()
            if event == "torn":
                with path.open("ab") as file:
                    file.write(b'{"step": 3, "version"')
            ledger, head = Ledger(path), committed
        for survivor in (committed, head):
            ids = [work for e in ledger.lineage(survivor) for work in (*e.ids, *e.dropped)]
            assert repeated(ids) == []
            assert ids == queue[: len(ids)]
            assert [e.step for e in ledger.lineage(survivor)] == list(range(len(ledger.lineage(survivor))))
    ledger.close()


def test_an_unknown_head_is_an_error(path):
    with pytest.raises(LedgerError, match="no entry"):
        Ledger(path).lineage("f" * 32)


def test_a_reader_sees_no_half_line_and_cannot_write(path):
    writer = Ledger(path)
    head = writer.append(entry(0, ROOT, ["a"]))
    reader = Ledger(path, read_only=True)
    with pytest.raises(LedgerError, match="opened for reading"):
        reader.append(entry(1, head, ["b"]))
    assert not Ledger(path.parent / "none.jsonl", read_only=True).entries()
    assert not (path.parent / "none.jsonl").exists()


def test_a_version_is_never_used_twice_also_not_after_a_crash(tmp_path):
    path = tmp_path / "versions.jsonl"
    counter = VersionCounter(path)
    assert counter.newest == 0
    assert [counter.next(step) for step in (1, 2, 3)] == [1, 2, 3]
    counter.close()
    with path.open("ab") as file:
        file.write(b'{"version":4,')
    after = VersionCounter(path)
    assert after.next(step=2) == 4  # rolled back to step 1, then stepped again
    assert [after.step_of(version) for version in (0, 3, 4)] == [0, 3, 2]
    with pytest.raises(LedgerError, match="never given out"):
        after.step_of(9)


def test_a_version_is_durable_before_it_is_used(tmp_path):
    """A process that dies right after it got a number has left that number on the disk."""
    path = tmp_path / "versions.jsonl"
    script = (
        "import os, sys, pathlib; from safeladder.policies.ledger import VersionCounter;"
        "print(VersionCounter(pathlib.Path(sys.argv[1])).next(step=1), flush=True); os._exit(9)"
    )
    given_out = [
        int(
            subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, timeout=60, text=True).stdout
        )
        for _ in range(3)
    ]
    assert given_out == [1, 2, 3]


def test_the_ledger_can_be_read_without_torch():
    script = "import sys, safeladder.policies.ledger, safeladder.policies.recipe, safeladder.policies.staleness;"
    script += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
