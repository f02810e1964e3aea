"""What comes between files and a fit: duplicates, leakage, split, balance, and the counts of what was removed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.verifiers.measure import figures
from safeladder.verifiers.training.stages import balance, duplicates
from safeladder.verifiers.training.stages.held_out import HeldOut
from safeladder.verifiers.training.stages.leakage import LeakageGate
from safeladder.verifiers.training.stages.prepare import Data, DataError, prepare
from safeladder.verifiers.training.stages.split import part_of

LONG = "The keeper of the lighthouse counted the ships that passed in the night and wrote their names into a blue book."
CHINESE = "守灯塔的老人每天夜里数着经过的船只，把它们的名字一个一个写进一本蓝色的册子里，从不间断。"

words = st.lists(
    st.sampled_from(["the", "keeper", "counted", "ships", "and", "wrote", "names", "into", "a", "blue", "book"]),
    min_size=1,
    max_size=12,
).map(" ".join)


@settings(max_examples=40)
@given(st.lists(words, max_size=12))
def test_no_two_texts_that_are_kept_are_near_and_each_that_is_not_is_near_to_a_kept_one(texts: list[str]) -> None:
    matches = duplicates.near_duplicates(texts, [0] * len(texts), 0.9)
    kept = [index for index, match in enumerate(matches) if match is None]
    hashes = [duplicates.shingles(text) for text in texts]
    for index, match in enumerate(matches):
        if match is not None:
            assert match in kept and match < index
            assert duplicates.jaccard(hashes[index], hashes[match]) >= 0.9
    for one in kept:
        assert all(plainly_different(texts[one], texts[other]) for other in kept if other < one)


def plainly_different(one: str, other: str) -> bool:
    return duplicates.plain(one) != duplicates.plain(other)


@pytest.mark.parametrize("text", [LONG, CHINESE])
def test_a_small_change_is_near_and_spelling_of_space_and_case_is_exact(text: str) -> None:
    assert duplicates.exact_duplicates([text, "  " + text.upper() + "\n", text + "!"]) == [0, 0, 2]
    assert duplicates.near_duplicates([text, text + "!", "something else altogether"], "aaa", 0.8) == [None, 0, None]


def test_near_texts_of_different_classes_are_both_kept() -> None:
    assert duplicates.near_duplicates([LONG, LONG + " not"], [1, 0]) == [None, None]


def test_the_similarity_is_that_of_the_sets() -> None:
    one, other = duplicates.shingles("abcdefg"), duplicates.shingles("abcdefh")
    assert duplicates.jaccard(one, other) == pytest.approx(2 / 4)
    assert duplicates.jaccard(duplicates.shingles("ab"), duplicates.shingles("AB ")) == 1.0


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        (LONG.upper(), "exact"),
        (LONG.replace("blue", "green"), "near"),
        (
            f"He said: {LONG} Then he put out the lamp and slept.",
            "overlap",
        ),
        (f"他说：{CHINESE}然后他熄了灯，关上窗户，走下楼梯，一直睡到第二天中午才醒来。", "overlap"),
        ("The keeper of the lighthouse slept.", None),
        ("", None),
    ],
)
def test_what_an_evaluation_set_holds_is_found_whole_nearly_and_in_large_part(text: str, leak: str | None) -> None:
    assert LeakageGate([LONG, CHINESE, ""]).leak(text) == leak


@given(st.text(min_size=1, max_size=30), st.sampled_from(["a", "b"]))
def test_the_split_is_decided_by_the_prompt_and_by_held_out_sources(prompt: str, source: str) -> None:
    assert part_of(prompt, source, ["b"]) == ("test" if source == "b" else part_of(prompt))


def test_parts_have_the_shares_asked_for() -> None:
    counts = Counter(part_of(f"prompt {n}", validation=0.1, test=0.2) for n in range(4000))
    assert counts["test"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert counts["validation"] / 4000 == pytest.approx(0.1, abs=0.03)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1)), min_size=1, max_size=60))
def test_within_a_cell_classes_weigh_the_same_or_are_of_one_size(rows: list[tuple[str, int]]) -> None:
    cells, classes = [cell for cell, _ in rows], [kind for _, kind in rows]
    weights = balance.weights(classes, cells)
    assert sum(weights) == pytest.approx(len(rows))
    kept = balance.downsampled(classes, cells)
    assert kept == sorted(set(kept))
    for cell in set(cells):
        shares = Counter[int]()
        for weight, (own, kind) in zip(weights, rows, strict=True):
            shares[kind] += weight if own == cell else 0  # type: ignore[assignment]
        present = {kind for own, kind in rows if own == cell}
        assert len({round(shares[kind], 6) for kind in present}) == 1
        assert len({sum(rows[i] == (cell, kind) for i in kept) for kind in present}) == 1


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_what_was_removed_is_counted_by_reason_and_the_rest_is_trained_on(tmp_path: Path) -> None:
    lines = [
        {
            "prompt": f"question {n} about {n * 7919}",
            "response": f"answer {n * 104729} in full",
            "harmful": n % 2,
            "source": "s",
        }
        for n in range(60)
    ]
    lines += [lines[0], {**lines[1], "harmful": 0}, {**lines[4], "response": LONG}]
    data = Data(
        files=[write(tmp_path / "rows.jsonl", lines)],
        evaluation=[write(tmp_path / "test.jsonl", [{"prompt": "x", "response": LONG}])],
    )
    found = prepare(data)
    assert {reason: found.removed[reason] for reason in ("exact duplicate", "contradiction", "leak, exact")} == {
        "exact duplicate": 1,
        "contradiction": 2,
        "leak, exact": 1,
    }
    assert sum(found.counts().values()) + found.removed["balance"] == 59 - found.removed["near duplicate"]
    truths = Counter(row.truth for row in found.train)
    assert truths[0] == truths[1] > 0
    prompts = [{row.record.prompt for row in part} for part in (found.train, found.validation, found.test)]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


def test_a_held_out_source_is_never_trained_on(tmp_path: Path) -> None:
    lines = [
        {"prompt": f"p{n}", "response": f"r{n * 7919}", "harmful": n // 2 % 2, "source": "ab"[n % 2]} for n in range(80)
    ]
    found = prepare(Data(files=[write(tmp_path / "rows.jsonl", lines)], held_out_sources=["b"]))
    assert {row.record.source for row in found.train} == {"a"}
    assert sum(row.record.source == "b" for row in found.test) == 40


def test_data_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        prepare(Data())
    with pytest.raises(DataError, match=r"bad.jsonl:1: field `response`"):
        prepare(Data(files=[write(tmp_path / "bad.jsonl", [{"prompt": "p"}])]))
    with pytest.raises(DataError, match="no row has a label"):
        prepare(Data(files=[write(tmp_path / "bare.jsonl", [{"prompt": "p", "response": "r"}])]))


def test_the_report_says_the_same_as_json_and_as_a_page(tmp_path: Path) -> None:
    import numpy as np

    measured = figures(np.array([1.0, 0.0]), np.array([0.9, 0.1]))
    HeldOut(
        "cost",
        tmp_path / "new",
        {"train": 1234},
        {"leak, near": 3},
        {"all": measured},
        {"pairs": float("nan")},
        ["A note."],
    ).write()
    page = (tmp_path / "new" / "report.md").read_text()
    assert (
        "1,234" in page
        and "leak, near | 3" in page
        and "| all | 2 | 1 | 1.000 (0.342 to 1.000) |" in page
        and "A note." in page
    )
    plain = json.loads((tmp_path / "new" / "report.json").read_text())
    assert plain["figures"]["all"]["auroc"] == 1.0 and plain["numbers"] == {"pairs": None}
