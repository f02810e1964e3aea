"""Recipes as files: the released weights, what is laid over what, and that nothing unknown passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safeladder.launch.check import check
from safeladder.launch.config import Config, ConfigError, load, load_resolved, save_resolved
from safeladder.launch.recipe_files import shipped
from safeladder.launch.tasks import parse

POOLS = """
policy: {model: tiny}
pools:
  feeder: {actor: "safeladder.actors.feeder:Feeder"}
  generator: {actor: "safeladder.actors.generator:Generator", credit: 4}
  rules: {actor: "safeladder.actors.verifier:VerifierPool", options: {verifiers: {format: {}, boxed: {}, boxed_format: {}}}}
  judges: {actor: "safeladder.actors.verifier:VerifierPool", options: {verifiers: {safety: {}}}}
  reference: {actor: "safeladder.actors.reference:Reference"}
  learner: {actor: "safeladder.actors.learner:Learner", credit: 64}
"""


def loaded(folder: Path, recipe: str, *overrides: str) -> Config:
    file = folder / "cluster.yaml"
    file.write_text(f"{POOLS}\nrecipe: {recipe}\n", encoding="utf-8")
    return load(file, overrides)


def weights(config: Config) -> dict[str, dict[str, float]]:
    return {
        label: {name: term.weight for name, term in family.terms.items()}
        for label, family in config.recipe.families.items()
    }


QWEN_VL = {  # SafeWork-R1's released recipe, format added to each row but the last two; jailbreak is ours
    "safety": {"format": 1, "safety": 1},
    "value": {"format": 1, "value": 1},
    "knowledge": {"format": 1, "knowledge": 1, "normal": 0.5},
    "knowledge_rule": {"format": 1, "boxed": 1, "normal": 0.5},
    "normal": {"format": 1, "normal": 1},
    "general": {"format": 1, "general": 1},
    "general_rule": {"format": 1, "boxed": 1},
    "geo3k_rule": {"boxed_format": 0.1, "boxed": 0.9},
    "gsm8k_rule": {"boxed_format": 0.1, "boxed": 0.9},
    "jailbreak": {"format": 1, "safety": 1},
}
FOLLOWING = {"format": 1, "instruction": 1, "normal": 1}


def test_the_qwen_vl_recipe_has_the_released_weights(tmp_path: Path) -> None:
    assert weights(loaded(tmp_path, "{base: qwen-vl}")) == QWEN_VL


def test_the_70b_recipe_differs_in_helpfulness_and_instructions_only(tmp_path: Path) -> None:
    assert weights(loaded(tmp_path, "{base: 70b}")) == QWEN_VL | {
        "knowledge": {"format": 1, "knowledge": 1, "normal": 1},
        "knowledge_rule": {"format": 1, "boxed": 1, "normal": 1},
        "muldimif": FOLLOWING,
        "instruction": FOLLOWING,
    }


def test_our_recipe_keeps_the_released_weights_and_has_a_row_for_every_label(tmp_path: Path) -> None:
    ours = weights(loaded(tmp_path, "{base: safework}"))
    assert set(ours) == {*QWEN_VL, "muldimif", "instruction", "search"}
    for label in set(QWEN_VL) - {"knowledge_rule"}:
        assert QWEN_VL[label].items() <= ours[label].items()
    assert "boxed" not in ours["knowledge_rule"]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_names_verifiers_of_the_suite_only(tmp_path: Path, name: str) -> None:
    from safeladder.verifiers.registry import BUILT_IN

    judges = {"safety", "value", "knowledge", "normal", "general"}
    named = {term for family in weights(loaded(tmp_path, f"{{base: {name}}}")).values() for term in family}
    assert named <= {*BUILT_IN, *judges}


def test_a_configuration_lies_over_its_base_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "base: qwen-vl\nfamilies: {safety: {terms: {language: {weight: 0.25, optional: true}}}, value: null}", "utf-8"
    )
    families = "{safety: {terms: {language: 0.5, format: null}}, own: {terms: {safety: 1}}}"
    recipe = f"{{base: {tmp_path}/mine.yaml, families: {families}}}"
    found = loaded(tmp_path, recipe, "recipe.families.safety.terms.safety=2")
    assert weights(found)["safety"] == {"safety": 2, "language": 0.5}
    assert found.recipe.families["safety"].terms["language"].optional
    assert "value" not in found.recipe.families
    assert weights(found)["own"] == {"safety": 1}
    assert found.recipe.families["safety"].costs["unsafe"].label == "Unsafe"


def test_a_family_without_a_route_visits_the_pools_that_run_its_verifiers(tmp_path: Path) -> None:
    found = loaded(tmp_path, "{base: qwen-vl, families: {normal: {route: [generator, learner]}}}")
    routes = {label: family.route for label, family in found.recipe.families.items()}
    assert routes["safety"] == ["generator", "rules", "judges", "reference", "learner"]
    assert routes["gsm8k_rule"] == ["generator", "rules", "reference", "learner"]
    assert routes["normal"] == ["generator", "learner"]
    assert (
        "reference" not in loaded(tmp_path, "{base: qwen-vl}", "learner.reference_kl=0").recipe.families["safety"].route
    )


def test_a_family_of_deliberation_visits_a_searcher_in_place_of_the_generator(tmp_path: Path) -> None:
    pools = (
        "pools.searcher={actor: 'safeladder.actors.searcher:Searcher'}",
        "pools.rules.options.verifiers={format: {}, deliberation: {}, reliability: {}}",
    )
    found = loaded(tmp_path, "{base: safework}", *pools)
    assert found.recipe.families["search"].route == ["searcher", "rules", "reference", "learner"]
    assert found.recipe.families["safety"].route[0] == "generator"
    assert loaded(tmp_path, "{base: safework}").recipe.families["search"].route == []


def test_the_runs_own_copy_says_everything_and_is_based_on_nothing(tmp_path: Path) -> None:
    found = loaded(tmp_path, "{base: safework, families: {safety: {terms: {repetition: null}}}}")
    save_resolved(found, tmp_path / "resolved.yaml")
    assert found.recipe.base is None
    assert load_resolved(tmp_path / "resolved.yaml") == found


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("{base: qwen}", "there is no recipe 'qwen': neither a file nor one of 70b, qwen-vl, safework"),
        ("{base: [qwen-vl]}", "base"),
        ("{bse: qwen-vl}", "did you mean 'base'"),
        ("{base: qwen-vl, families: {vale: null}}", "recipe.families.vale is null"),
        ("{base: qwen-vl, families: {value: {terms: {normal: null}}}}", "recipe.families.value.terms.normal is null"),
        ("{base: qwen-vl, families: {value: {terms: {value: {wight: 1}}}}}", "did you mean 'weight'"),
        ("{base: qwen-vl, families: {value: {terms: {value: heavy}}}}", "value"),
        ("{base: qwen-vl, families: {value: {terms: {value: .inf}}}}", "finite"),
        ("{base: FOLDER/loop.yaml}", "is based on itself"),
        ("{base: FOLDER/odd.yaml}", "odd.yaml: families.value.rout: unknown key; did you mean 'route'"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_read_is_refused_with_the_place(tmp_path: Path, recipe: str, said: str) -> None:
    (tmp_path / "loop.yaml").write_text(f"base: {tmp_path}/loop.yaml", "utf-8")
    (tmp_path / "odd.yaml").write_text("families: {value: {rout: [learner]}}", "utf-8")
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, recipe.replace("FOLDER", str(tmp_path)))
    assert said in str(refused.value)


def errors(config: Config) -> dict[str, str]:
    return {finding.key: finding.message for finding in check(config) if finding.level == "error"}


def test_a_verifier_that_no_pool_runs_and_a_label_without_a_family_are_errors_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"id": "1", "label": "poetry", "prompt": "A poem?"}), "utf-8")
    found = errors(loaded(tmp_path, "{base: qwen-vl}", f"data.tasks=[{tmp_path}/tasks.jsonl]"))
    assert "runs the verifier 'value'" in found["recipe.families.value.terms.value"]
    assert "1 records have this label" in found["recipe.families.poetry"]
    assert "recipe.families.safety.terms.safety" not in found


def test_terms_normalised_apart_need_the_rule_that_does_so(tmp_path: Path) -> None:
    recipe = "{families: {normal: {terms: {format: 1.0, safety: {weight: 1.0, apart: true}}}}}"
    key = "recipe.families.normal.terms.safety.apart"
    assert "gdpo" in errors(loaded(tmp_path, recipe))[key]
    assert key not in errors(loaded(tmp_path, recipe, "learner.advantage=gdpo"))


def test_a_task_files_extra_is_the_records_extra() -> None:
    line = {
        "id": "1",
        "label": "x",
        "prompt": "?",
        "extra": {"constraints": [{"kind": "punctuation:no_comma"}]},
        "level": 3,
    }
    assert parse(json.dumps(line), "f:1").extra == {"constraints": [{"kind": "punctuation:no_comma"}], "level": 3}
    with pytest.raises(ConfigError, match=r"f:1: field `level` stands in `extra` too"):
        parse(json.dumps({**line, "extra": {"level": 4}}), "f:1")
    with pytest.raises(ConfigError, match=r"f:1: not a record"):
        parse(json.dumps({**line, "extra": [1]}), "f:1")
