"""The configuration is read strictly: what is misspelt, mistyped or out of bounds is refused by name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.launch import sections
from safeladder.launch.config import Config, ConfigError, digest, load, load_resolved, save_resolved


def known_keys(kind: Any = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every dotted key that a file may hold, one example name for each map."""
    if dataclasses.is_dataclass(kind):
        for name, child in typing.get_type_hints(kind).items():
            yield (*path, name)
            yield from known_keys(child, (*path, name))
    elif typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
        yield from known_keys(typing.get_args(kind)[1], (*path, "example"))


KEYS = sorted(known_keys())
SECTION_KEYS = {path[:-1]: {other[-1] for other in KEYS if other[:-1] == path[:-1]} for path in KEYS}


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[str, ...]:
    """A known key with one letter dropped, doubled, swapped or added, that is not itself known."""
    path = draw(st.sampled_from(KEYS))
    word, at = path[-1], draw(st.integers(0, len(path[-1]) - 1))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    wrong = draw(
        st.sampled_from(
            [word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + letter + word[at:], word.upper()]
        )
    )
    if not wrong or wrong in SECTION_KEYS[path[:-1]]:
        wrong = word + "_x"
    return (*path[:-1], wrong)


@settings(max_examples=150, deadline=None)
@given(path=misspelt())
def test_any_misspelt_key_is_refused_by_its_dotted_name(path: tuple[str, ...], tmp_path_factory: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "misspelt.yaml"
    depth = "".join(f"{'  ' * level}{name}:\n" for level, name in enumerate(path[:-1]))
    file.write_text(depth + f"{'  ' * (len(path) - 1)}{path[-1]}: 1\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert ".".join(path) in str(caught.value)
    assert "unknown key" in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lerner.steps=3", "did you mean 'learner'?"),
        ("pools.generator.restart.mx=1", "pools.generator.restart.mx: unknown key; did you mean 'max'?"),
        ("policy.shots=[{usr: a}]", "policy.shots[0].usr: unknown key; did you mean 'user'?"),
        ("recipe.families.normal.terms.safety={wight: 3}", "terms.safety.wight: unknown key; did you mean 'weight'?"),
        ("learner.steps=many", "learner.steps: Value 'many' of type 'str'"),
        ("learner.steps=0", "learner.steps: must be at least 1, not 0"),
        ("sampling.top_p=0", "sampling.top_p: must be above 0, not 0"),
        ("sampling.top_p=1.5", "sampling.top_p: must be at most 1, not 1.5"),
        ("pools.generator.restart.backoff_s=-1", "pools.generator.restart.backoff_s: must be at least 0"),
        ("learner.learning_rate=.nan", "learner.learning_rate: must be"),
        ("hub.durability=some", "expected one of ['ids', 'full', 'memory']"),
        ("hub.bind=tcp://*:5555", "hub.bind: must be"),
        ("hub.silence_s=0.5", "hub.silence_s: must be longer than hub.beat_s"),
        ("pools.mine={actor: 'a:B', command: [b]}", "pools.mine: needs either"),
        ("pools.hub={command: [b]}", "is not `hub`"),
        ("data.families={normal: -1}", "data.families.normal: must be at least 0"),
        ("run.name=${oc.env:HOME}", "run.name: environment variables are not read"),
        ("run.name=${nowhere}", "nowhere"),
        ("run.name=[", "override"),
        ("steps", "is not of the form section.key=value"),
    ],
)
def test_what_is_wrong_is_said_with_key_and_remedy(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("embedded", [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "run: [1\n", "- a\n", "run:\n  seed: 1\n  seed: 2\n"])
def test_a_file_that_is_no_map_or_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load(file)
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "absent.yaml")


def test_overrides_change_what_they_name_and_nothing_else() -> None:
    plain, changed = load("embedded"), load("embedded", ["learner.steps=20", "recipe.families.normal.terms.safety=2.5"])
    assert changed.learner.steps == 20
    assert changed.recipe.families["normal"].terms["safety"].weight == 2.5
    changed.learner.steps = plain.learner.steps
    changed.recipe.families["normal"].terms["safety"] = plain.recipe.families["normal"].terms["safety"]
    assert changed == plain


def test_the_resolved_file_reads_back_equal_and_names_every_key(tmp_path: Path) -> None:
    config = load("embedded", ["sampling.stop=[a, 'b: c']", "policy.system='no'", "policy.cache=null"])
    config.policy.prefix, config.run.name = "cost: ${x} \\${y} \\\\${z}\n", "1e3"
    config.policy.shots = [sections.Shot("how?\n", "你好 # so")]
    save_resolved(config, tmp_path / "config.yaml")
    again = load_resolved(tmp_path / "config.yaml")
    assert again == config and digest(again) == digest(config)
    assert digest(load("embedded")) != digest(config)


def test_the_embedded_file_shows_the_defaults_of_what_no_model_decides() -> None:
    config = load("embedded")
    for section in ("hub", "staleness", "weights"):
        assert getattr(config, section) == getattr(Config(), section), section


def test_a_pool_consumes_the_queue_of_its_name_unless_told_otherwise() -> None:
    config = load("embedded", ["pools.rules.queues=[rules, more]"])
    assert config.pools["generator"].queues == ["generator"]
    assert config.pools["rules"].queues == ["rules", "more"]


def test_reading_a_configuration_imports_no_torch() -> None:
    code = "import sys; from safeladder.launch.config import load; load('embedded'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_every_bound_that_is_declared_is_enforced() -> None:
    """A default lies within its own bounds, and a field with bounds is a number."""
    kinds = [kind for kind in vars(sections).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    bounded = [(k, f) for k in kinds for f in dataclasses.fields(k) if f.metadata]
    assert len(bounded) > 30
    for kind, declared in bounded:
        value = getattr(kind(), declared.name)
        assert value is None or isinstance(value, (int, float)), (kind, declared.name)


@pytest.mark.parametrize("written", ["off", '"off"', "{off: {}}", "{off: }"])
def test_a_rule_called_off_may_be_written_as_it_is(tmp_path: Path, written: str) -> None:
    """YAML reads a bare off as false."""
    file = tmp_path / "off.yaml"
    file.write_text(f"learner: {{correction: {written}}}\n")
    assert load(file).learner.correction == {"off": {}}
