"""Value scenarios: even over the tree, distinct, repeatable, and task records like any other."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from safeladder.launch import tasks
from safeladder.launch.cli import main
from safeladder.launch.scenarios import questions
from safeladder.verifiers.training import scenarios
from safeladder.verifiers.training.scenarios import Leaf, Record, ScenarioError, Tree, clause, generate, tree
from safeladder.verifiers.training.stages.duplicates import jaccard, shingles


@pytest.fixture
def principles(tmp_path: Path) -> Path:
    """Three leaves, with one, two and six rules."""
    rules = [
        ("honesty", "One should keep a promise that others rely on.", "应该遵守别人所依赖的承诺。"),
        (
            "kindness",
            "When somebody is in grief, one should listen before giving advice.",
            "有人悲伤时，应先倾听再给建议。",
        ),
        ("kindness", "Strangers deserve the same courtesy as friends.", "对陌生人应与对朋友一样有礼貌。"),
        *(
            ("fairness", f"Rule number {n} about sharing {thing} fairly.", f"关于公平分享{thing}的第{n}条规则。")
            for n, thing in enumerate(["bread", "work", "time", "praise", "blame", "space"])
        ),
    ]
    path = tmp_path / "principles.jsonl"
    lines = [{"domain": "d", "category": "c", "subcategory": s, "rule_en": en, "rule_zh": zh} for s, en, zh in rules]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_leaves_get_equal_shares_and_no_two_prompts_are_near(principles: Path, language: scenarios.Language) -> None:
    records = generate(tree(principles, language), language, 18)
    assert set(Counter(record.category for record in records).values()) == {6}
    hashes = [shingles(record.prompt) for record in records]
    assert all(jaccard(a, b) < scenarios.NEAR for n, a in enumerate(hashes) for b in hashes[:n])
    assert {record.label for record in records} == {"value"} and {record.language for record in records} == {language}
    assert len({record.extra["kind"] for record in records}) >= 4


def test_the_seed_decides_everything(principles: Path) -> None:
    rules = tree(principles, "en")
    assert generate(rules, "en", 9, seed=1) == generate(rules, "en", 9, seed=1) != generate(rules, "en", 9, seed=2)


def test_a_rule_is_laid_into_a_sentence() -> None:
    assert clause("One should listen.", "en") == "one should listen"
    assert clause("DNA data is private.", "en") == "DNA data is private"
    assert clause("应先倾听。", "zh") == "应先倾听"


def test_a_models_prompts_take_turns_with_the_templates_and_may_not_quote_the_rule(principles: Path) -> None:
    asked: list[tuple[Leaf, str]] = []

    def write(rules: list[tuple[Leaf, str]]) -> list[tuple[Leaf, str, str]]:
        asked.extend(rules)
        own = [(leaf, rule, f"What would you do about {leaf[2]} on a rainy day?") for leaf, rule in rules]
        return own + [(leaf, rule, f"Is it true? {rule}") for leaf, rule in rules]

    records = generate(tree(principles, "en"), "en", 9, write=write)
    kinds = Counter(record.extra["kind"] for record in records)
    assert len(asked) == 3 and kinds["model"] == 3
    assert not any("Is it true?" in record.prompt for record in records)


def test_more_than_the_principles_give_is_refused(principles: Path) -> None:
    one = Tree(dict(list(tree(principles, "en").leaves.items())[:1]))
    with pytest.raises(ScenarioError, match="ask for fewer"):
        generate(one, "en", 500)


def test_a_bad_principle_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"domain": "d", "category": "c", "subcategory": "s", "rule_en": "x"}\n')
    assert tree(path, "en").leaves == {("d", "c", "s"): ["x"]}
    with pytest.raises(ScenarioError, match=r"p.jsonl:1: field `rule_zh`"):
        tree(path, "zh")


def test_the_command_writes_task_records(principles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "tasks.jsonl"
    arguments = [
        "scenarios",
        "--principles",
        str(principles),
        "--language",
        "zh",
        "--count",
        "6",
        "--output",
        str(output),
    ]
    assert main(arguments) == 0
    assert "6 scenarios over 3 leaves" in capsys.readouterr().out
    records: list[Record] = tasks.read([str(output)])
    assert len(records) == 6 and records[0].extra["principle"]


def test_a_model_of_ours_may_be_asked_for_prompts(principles: Path, tmp_path: Path) -> None:
    """The tiny model writes no questions, so that the templates alone remain; the way through an engine is the same."""
    output = tmp_path / "tasks.jsonl"
    arguments = [
        "scenarios",
        "--principles",
        str(principles),
        "--language",
        "en",
        "--count",
        "4",
        "--output",
        str(output),
    ]
    assert main([*arguments, "--model", "tiny", "--cache", str(tmp_path / "models")]) == 0
    assert len(output.read_text().splitlines()) == 4


def test_of_a_models_answer_the_questions_are_taken() -> None:
    wanted = ["Should I tell my sister the truth?", "May I keep the money I found?", "我该不该把这件事告诉父母呢？"]
    answer = f"Here are three:\n1. {wanted[0]}\n- {wanted[1]}\n3、{wanted[2]}\nI hope so."
    assert questions(answer) == wanted
