"""Ladders and stages as files: what a file says is what the rung gets, and what is wrong is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeladder.launch.check import check
from safeladder.launch.config import ConfigError, load
from safeladder.launch.ladder.files import laid_over, read

QUICKSTART = Path(__file__).parents[2] / "launch" / "ladder" / "quickstart.yaml"


def ladder(folder: Path, stage: str, more: str = "") -> Path:
    (folder / "one.yaml").write_text("base: embedded\n")
    (folder / "two.yaml").write_text(stage)
    (folder / "ladder.yaml").write_text(f"rungs: [one.yaml, two.yaml]\n{more}")
    return folder / "ladder.yaml"


def test_the_quickstart_has_the_five_rungs_and_each_passes_the_check(tmp_path: Path) -> None:
    found = read(QUICKSTART)
    assert [s.name for s in found.stages] == [
        "1-cot-sft",
        "2a-capability",
        "2b-all-families",
        "3-efficient",
        "4-search",
    ]
    for stage in found.stages:
        assert not check(stage.config("embedded", tmp_path)), stage.name
    two = found.stages[1].config("embedded", tmp_path)
    assert two.data.families == {"general_rule": 1, "knowledge_rule": 1}
    assert found.stages[3].config("embedded", tmp_path).recipe.families["safety"].terms["format"].qualifies == 1.0


def test_a_stage_is_its_base_with_keys_replaced_pools_merged_and_families_laid_over(tmp_path: Path) -> None:
    stage = (
        "base: one.yaml\nlearner: {objective: cpgd}\npools: {searcher: null, generator: {credit: 9}}\n"
        "recipe: {families: {safety: {terms: {repetition: null, format: 2.0}}}}\n"
    )
    found = read(ladder(tmp_path, stage, "settings: {sampling: {samples: 8}}\n")).stages[1].config("tiny", tmp_path)
    base = load("embedded")
    assert found.learner.objective == {"cpgd": {}} and found.learner.batch == base.learner.batch
    assert "searcher" not in found.pools
    assert found.pools["generator"].credit == 9 and found.pools["generator"].options == base.pools["generator"].options
    terms = found.recipe.families["safety"].terms
    assert "repetition" not in terms and terms["format"].weight == 2.0 and terms["safety"].weight == 1.0
    assert (found.sampling.samples, found.policy.model, found.run.name) == (8, "tiny", "two")


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("base: three.yaml\n", "no such file"),
        ("base: two.yaml\n", "based on itself"),
        ("base: one.yaml\nfrom: three\n", "no earlier rung 'three'"),
        ("base: one.yaml\ngate: {saftey: {margin: 1}}\n", "did you mean 'safety'"),
        ("base: one.yaml\ngate: {rule: never}\n", "rule"),
        ("base: one.yaml\npools: {nobody: null}\n", "pools.nobody"),
        ("base: one.yaml\nrecipe: {families: {nobody: null}}\n", "nobody is null"),
    ],
)
def test_what_is_wrong_with_a_stage_is_said(tmp_path: Path, stage: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(ladder(tmp_path, stage))


def test_an_unknown_key_of_a_stage_is_refused_before_anything_starts(tmp_path: Path) -> None:
    found = read(ladder(tmp_path, "base: one.yaml\nlearner: {stepz: 3}\n"))
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        found.stages[1].config("tiny", tmp_path)


def test_the_gate_of_a_stage_changes_what_it_names_of_the_ladders(tmp_path: Path) -> None:
    gate = "gate: {safety: {measures: [a/b/c], margin: 0.02}, rule: shown not worse}\n"
    one, two = read(ladder(tmp_path, "base: one.yaml\ngate: {safety: {margin: 0.5}, on_failure: go_on}\n", gate)).stages
    assert (one.gate.safety.margin, one.gate.on_failure) == (0.02, "stop")
    assert (two.gate.safety.margin, two.gate.safety.measures, two.gate.on_failure) == (0.5, ["a/b/c"], "go_on")
    assert two.gate.rule == "shown not worse"


def test_laying_over_leaves_the_base_as_it_was() -> None:
    base = {"pools": {"a": {"credit": 1}}, "learner": {"steps": 1}}
    laid_over(base, {"pools": {"a": None}, "learner": {"steps": 2}})
    assert base == {"pools": {"a": {"credit": 1}}, "learner": {"steps": 1}}
