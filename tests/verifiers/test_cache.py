"""The cache: a verdict stands for the same judgement, wherever it comes up again, and a failure for none."""

from __future__ import annotations

import base64
import dataclasses
import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.cache import CacheOptions, VerdictCache, key, name_of
from safeladder.verifiers.contract import Item
from safeladder.verifiers.rules.match import MatchRule

RECORD = Record(id="r", label="x", prompt="p", reference="4", extra={"a": 1})
ITEM = Item(RECORD, "text")
RULE = MatchRule(MatchRule.Options())


def verdict(status: str = "ok", sample: int = 0) -> Verdict:
    score = 1.0 if status == "ok" else None
    return Verdict(sample, "match", "1", "rules", status, score=score)  # type: ignore[arg-type]


def with_record(**changes: object) -> Item:
    return dataclasses.replace(ITEM, record=msgspec.structs.replace(RECORD, **changes))


DIFFERENT = {
    "prompt": with_record(prompt="q"),
    "reference": with_record(reference="5"),
    "family": with_record(label="jailbreak"),
    "choices": with_record(choices=["a"]),
    "extra": with_record(extra={"a": 2}),
    "text": dataclasses.replace(ITEM, text="texts"),
    "language": dataclasses.replace(ITEM, language="zh"),
    "finish": dataclasses.replace(ITEM, finish="length"),
    "step": dataclasses.replace(ITEM, step=0),
    "begin": dataclasses.replace(ITEM, step=0, begin=1),
}


def test_everything_that_a_verdict_depends_on_is_in_the_key() -> None:
    class Newer(MatchRule):
        version = "2"

    names = [key(RULE, ITEM), *(key(RULE, item) for item in DIFFERENT.values())]
    names += [key(MatchRule(MatchRule.Options(mode="exact")), ITEM), key(Newer(MatchRule.Options()), ITEM)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "same",
    [
        dataclasses.replace(ITEM, sample=3),
        dataclasses.replace(ITEM, certainty=0.3),
        with_record(id="other"),
        with_record(source="s"),
    ],
)
def test_what_it_does_not_depend_on_is_not(same: Item) -> None:
    assert key(RULE, same) == key(RULE, ITEM)


def test_the_certainty_counts_for_verifiers_that_read_it() -> None:
    rule = MatchRule(MatchRule.Options())
    rule.reads_certainty = True
    assert key(rule, dataclasses.replace(ITEM, certainty=0.3)) != key(rule, dataclasses.replace(ITEM, certainty=0.4))


def test_images_count_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    by_path = with_record(extra={"image": str(file)})
    inline = with_record(extra={"images": [{"data": base64.b64encode(b"one").decode()}]})
    first = key(RULE, by_path)
    assert first == key(RULE, inline)
    file.write_bytes(b"two")
    assert key(RULE, by_path) != first


def test_an_item_that_cannot_be_named_has_no_name() -> None:
    assert name_of(RULE, with_record(extra={"image": "/nowhere/at/all.png"})) is None
    assert name_of(RULE, with_record(extra={"a": object()})) is None


@pytest.mark.parametrize(("status", "kept"), [("ok", True), ("abstain", True), ("timeout", False), ("error", False)])
def test_only_judgements_are_kept(tmp_path: Path, status: str, kept: bool) -> None:
    for path in (None, str(tmp_path / "v.db")):
        cache = VerdictCache(CacheOptions(path=path))
        cache.put(b"k", verdict(status))
        assert (cache.get(b"k", ITEM) is not None) is kept
        cache.close()


def test_a_verdict_comes_back_about_the_sample_that_asks() -> None:
    cache = VerdictCache(CacheOptions())
    cache.put(b"k", verdict(sample=1))
    found = cache.get(b"k", dataclasses.replace(ITEM, sample=5))
    assert found is not None and found.sample == 5
    assert (cache.hits, cache.misses) == (1, 0)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_the_least_recently_used_leaves_first(uses: list[int], entries: int) -> None:
    cache = VerdictCache(CacheOptions(entries=entries))
    recent: list[int] = []
    for use in uses:
        name = bytes([use])
        assert (cache.get(name, ITEM) is not None) is (use in recent)
        cache.put(name, verdict())
        recent = [*(one for one in recent if one != use), use][-entries:]


def test_a_file_serves_a_later_process_and_is_bounded(tmp_path: Path) -> None:
    options = CacheOptions(entries=2, path=str(tmp_path / "deep" / "v.db"), disk_entries=5)
    first = VerdictCache(options)
    for number in range(20):
        first.put(bytes([number]), verdict())
    first.close()
    second = VerdictCache(options)
    assert second.get(bytes([19]), ITEM) is not None
    assert second.get(bytes([0]), ITEM) is None
    second.close()
    with sqlite3.connect(tmp_path / "deep" / "v.db") as file:
        assert file.execute("SELECT count(*) FROM verdicts").fetchone()[0] <= 5


def test_a_damaged_file_costs_verdicts_and_never_the_work(tmp_path: Path) -> None:
    path = tmp_path / "v.db"
    path.write_bytes(b"this is no database" * 100)
    cache = VerdictCache(CacheOptions(path=str(path)))
    cache.put(b"k", verdict())
    assert cache.get(b"k", ITEM) is not None  # from memory
    cache.close()
    entry = VerdictCache(CacheOptions(path=str(tmp_path / "w.db")))
    entry.put(b"k", verdict())
    entry.close()
    with sqlite3.connect(tmp_path / "w.db") as file:
        file.execute("UPDATE verdicts SET verdict = ?", (b"\xc1",))
    assert VerdictCache(CacheOptions(path=str(tmp_path / "w.db"))).get(b"k", ITEM) is None


def test_no_entries_turn_it_off() -> None:
    cache = VerdictCache(CacheOptions(entries=0))
    cache.put(b"k", verdict())
    assert cache.get(b"k", ITEM) is None
