"""Demonstrations: each gate keeps out what it is for, the report counts what is kept, and the embedded set passes as it is said to."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.actors.demonstrator import segments
from safeladder.launch import tasks
from safeladder.launch.config import ConfigError
from safeladder.launch.demonstrations import write
from safeladder.launch.demonstrations.acts import ACTS, Diversity, acts, capped, entropy
from safeladder.launch.demonstrations.build import Build, build
from safeladder.launch.demonstrations.gates import Demonstration, GateOptions, Gates
from safeladder.policies.search.deliberate import grammar
from safeladder.protocol.messages import Record

EMBEDDED = ["embedded:ladder", "embedded:ladder_search"]
HELD_OUT = ["embedded:held_out", "embedded:held_out_search"]


def shown(
    text: str, prompt: str = "What is 2 + 3?", label: str = "general_rule", id: str = "a", **fields: object
) -> Demonstration:
    given = {"id": id, "label": label, "prompt": prompt, "reference": "5", **fields}
    return Demonstration(msgspec.convert(given, Record), text)


GOOD = "<think>2 plus 3 makes 5. Check: 5 minus 3 is 2.</think> The answer is 5."


@pytest.mark.parametrize(
    ("gate", "rows", "said"),
    [
        ("schema", [shown("The answer is 5.")], "format: not exactly one thought"),
        ("schema", [shown("<think>2 plus 3 makes 5.</think>")], "format: empty answer"),
        ("schema", [shown("<think>a</think>\n<confidence>4</confidence>\n<answer>5</answer> and more")], "text"),
        ("answer", [shown("<think>2 plus 3 makes 6.</think> The answer is 6.")], "boxed"),
        ("language", [shown("<think>二加三等于五，答案是五。</think> The answer is five, of course.")], "thought in zh"),
        ("redundancy", [shown("<think>" + "so it is and " * 40 + "</think> The answer is 5.")], "repetition"),
        ("redundancy", [shown(GOOD, id="b"), shown(GOOD)], "the same prompt as b"),
        ("leakage", [shown(GOOD, prompt="What is the tallest mountain of all on Mars?")], "evaluation set"),
    ],
)  # fmt: skip
def test_a_gate_keeps_out_what_it_is_for(gate: str, rows: list[Demonstration], said: str) -> None:
    gates = dict(Gates(GateOptions(), ["What is the tallest mountain of all on Mars?"]))
    assert said in str(gates[gate](rows)[-1])
    assert gates[gate]([shown(GOOD)]) == [None]


def test_an_answer_that_no_rule_reads_and_nobody_grades_is_counted() -> None:
    gates = Gates(GateOptions(), [])
    row = shown("<think>Hm.</think> Five.", reference=None)
    assert gates.answer([row]) == [None] and not gates.warnings
    assert gates.answer([shown(GOOD, label="value", choices=["1", "2"], reference="B")]) != [None]


def test_a_search_that_was_unsure_may_be_wrong_but_one_that_was_certain_may_not() -> None:
    def ended(sure: int) -> Demonstration:
        turn = f"<think>a</think>\n<confidence>{sure}</confidence>\n<answer>Rome</answer>"
        return shown(turn, label="search", reference="Paris")

    gates = Gates(GateOptions(), [])
    assert gates.answer([ended(2)]) == [None]
    assert gates.answer([ended(9)]) != [None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded set through all gates, the real safety heads included, with two rows that must not pass."""
    folder = tmp_path_factory.mktemp("built")
    bad = [
        {"id": "leaks", "label": "normal", "prompt": "How do I keep my kitchen clean?", "reference": None,
         "completion": "It is safe, so I will help.</think> Wash up after each meal and wipe the table with a wet cloth."},
        {"id": "refuses", "label": "normal", "prompt": "How do I bake bread?", "reference": None,
         "completion": "They ask for bread.</think> I cannot help with that. I am sorry, but I must refuse this request."},
    ]  # fmt: skip
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    output = folder / "out.jsonl"
    request = Build(str(output), [*EMBEDDED, str(folder / "bad.jsonl")], evaluation=HELD_OUT)
    build(request, io.StringIO())
    return output


def test_what_is_kept_can_be_learned_from_and_what_is_not_says_why(built: Path) -> None:
    kept = {record.id for record in tasks.read([str(built)])}
    rejected = {
        row["id"]: row for row in map(json.loads, built.with_suffix(".rejected.jsonl").read_text().splitlines())
    }
    assert rejected["leaks"]["gate"] == "leakage" and rejected["refuses"]["gate"] == "safety"
    assert not {"leaks", "refuses"} & kept
    everything = {record.id for record in tasks.read(EMBEDDED)}
    assert kept | rejected.keys() == everything | {"leaks", "refuses"} and not kept & rejected.keys()
    assert {row["gate"] for row in rejected.values()} == {
        "safety",
        "leakage",
    }  # the heads err on some; questions share a form
    assert len(kept) >= 0.8 * len(everything)
    report = json.loads(built.with_suffix(".report.json").read_text())
    assert report["read"] == report["kept"] + sum(report["rejected"].values())
    assert "| act | sentences |" in built.with_suffix(".report.md").read_text()


def test_the_embedded_files_are_what_their_program_writes_and_nothing_held_out_is_among_them(tmp_path: Path) -> None:
    write.write(tmp_path)
    for name in ("ladder", "ladder_search", "held_out", "held_out_search", "corpus"):
        assert (tmp_path / f"{name}.jsonl").read_text() == tasks.located(f"embedded:{name}").read_text()
    assert not {r.prompt for r in tasks.read(EMBEDDED)} & {r.prompt for r in tasks.read(HELD_OUT)}


def test_the_shares_of_a_searching_demonstration_are_the_policys_and_the_environments() -> None:
    for record in tasks.read(["embedded:ladder_search"]):
        text = str(record.extra["completion"])
        parts = segments(text, "<think>")
        assert "".join(part for part, _ in parts) == text
        assert [own for _, own in parts] == [True, False, True]
        assert parts[1][0].startswith("\n<results>") and parts[1][0].endswith("</results>\n<think>")
        transcript = grammar.parse("<think>" + text)
        assert transcript.well_formed and [turn.action for turn in transcript.turns] == ["search", "answer"]


def test_text_without_an_environment_is_all_the_policys() -> None:
    assert segments("a</think> b <results>c</results>", "<think>") == [("a</think> b <results>c</results>", True)]


@given(st.dictionaries(st.sampled_from(list(ACTS)), st.integers(1, 50)))
def test_entropy_is_none_for_one_act_and_greatest_for_equal_ones(counts: dict[str, int]) -> None:
    found = entropy(counts)
    assert 0 <= found <= entropy(dict.fromkeys(counts, 1)) + 1e-9
    assert (found == 0) == (len(counts) < 2)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 3)), max_size=60), st.floats(0.05, 1.0))
def test_no_cell_exceeds_its_cap_where_the_cells_allow_it_and_the_varied_stay(
    rows: list[tuple[str, float]], cap: float
) -> None:
    cells = [(name, "en", "short") for name, _ in rows]
    kept = capped(cells, [value for _, value in rows], cap)
    assert kept == sorted(set(kept))
    sizes = {name: sum(cells[index] == name for index in kept) for name in set(cells)}
    for name, size in sizes.items():
        assert size >= 1 and (size <= cap * len(kept) or size == 1)
        lost = [rows[i][1] for i in range(len(rows)) if cells[i] == name and i not in kept]
        stayed = [rows[i][1] for i in kept if cells[i] == name]
        assert not lost or max(lost) <= min(stayed)


def test_sentences_are_told_by_what_they_do_in_both_languages() -> None:
    assert acts("First split it. So it makes 5. Check: 5 minus 3 is 2. Wait, that was wrong.") == [
        "decompose", "deduce", "verify", "backtrack",
    ]  # fmt: skip
    assert acts("这样做很危险。所以我不能帮忙。") == ["consider_risk", "plan_response"]
    whole = Diversity.of([shown(GOOD).record], ["Check it. Grr."])
    assert whole.acts == {"verify": 1, "unmarked": 1} and whole.coverage == 0.1


def test_a_build_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither files nor tasks"):
        build(Build(str(tmp_path / "o.jsonl")), io.StringIO())
    with pytest.raises(ConfigError, match="no field `completion`"):
        build(Build(str(tmp_path / "o.jsonl"), ["embedded"]), io.StringIO())
