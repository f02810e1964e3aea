"""The curriculum: quotas, turns, the pool of fitting difficulty, families that seldom reach a step, and going on exactly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.actors.feeder import PlannedDraw
from safeladder.launch.config import ConfigError
from safeladder.launch.curriculum import Curriculum, outcome
from safeladder.launch.sections import CurriculumSection, Data
from safeladder.protocol.messages import Record

FAMILIES = {"safety": 2.0, "general": 1.0, "knowledge": 1.0}


def records(sizes: dict[str, int]) -> list[Record]:
    return [Record(f"{family}-{n}", family, "?") for family, size in sizes.items() for n in range(size)]


DATA = records({"safety": 7, "general": 20, "knowledge": 5})


def drawn(curriculum: Curriculum, count: int, begin: int = 0) -> list[Record]:
    found = []
    for position in range(begin, begin + count):
        while (record := curriculum.record(position)) is None:
            assert curriculum.plan() is not None
        found.append(record)
    return found


quotas = st.dictionaries(st.sampled_from(sorted(FAMILIES)), st.floats(0.1, 5.0), min_size=1)
outcomes = st.lists(st.tuples(st.integers(0, 90), st.none() | st.floats(0, 1), st.booleans()), max_size=120)


@given(quotas, st.integers(1, 40), st.integers(0, 9))
def test_every_block_has_each_family_by_its_quota_to_within_one_record(
    quota: dict[str, float], block: int, seed: int
) -> None:
    curriculum = Curriculum(DATA, seed, CurriculumSection(block=block, reweight=1.0), quota)
    total = sum(quota.values())
    found: Counter[str] = Counter()
    for number in range(1, 6):
        found.update(record.label for record in drawn(curriculum, block, (number - 1) * block))
        for family, weight in quota.items():
            assert abs(found[family] - weight / total * number * block) < len(quota)
    assert set(found) <= set(quota)


@given(outcomes, st.integers(0, 90), st.integers(0, 60))
def test_a_curriculum_that_was_saved_goes_on_as_one_that_was_never_interrupted(
    seen: list[tuple[int, float | None, bool]], moment: int, told: int
) -> None:
    settings = CurriculumSection(block=8)
    whole = Curriculum(DATA, 3, settings, FAMILIES)
    first = Curriculum(DATA, 3, settings, FAMILIES)
    drawn(whole, moment)
    drawn(first, moment)
    for each in seen[:told]:
        whole.observe(*each)
        first.observe(*each)
    second = Curriculum(DATA, 3, settings, FAMILIES, state=first.save())
    for each in [*seen, *seen]:  # the learner tells again what it told before
        whole.observe(*each)
    for each in seen:
        second.observe(*each)
    assert drawn(second, 100) == drawn(whole, 100)


@given(outcomes)
def test_what_is_planned_stays_whatever_is_observed(seen: list[tuple[int, float | None, bool]]) -> None:
    curriculum = Curriculum(DATA, 1, CurriculumSection(block=16), FAMILIES)
    before = drawn(curriculum, 96)
    for each in seen:
        curriculum.observe(*each)
    drawn(curriculum, 32, 96)
    assert drawn(curriculum, 96) == before


def test_no_record_comes_twice_in_a_turn_of_its_family_and_epochs_end_on_the_record() -> None:
    curriculum = Curriculum(DATA, 1, CurriculumSection(block=10), epochs=3)
    found = [record.id for record in drawn(curriculum, 3 * len(DATA))]
    assert Counter(found) == dict.fromkeys((record.id for record in DATA), 3)
    assert curriculum.plan() is None and curriculum.total == 96


def test_what_is_too_easy_or_too_hard_leaves_the_pool_and_comes_back_when_it_is_neither() -> None:
    settings = CurriculumSection(block=20, revisit=0.0, smoothing=1.0)
    curriculum = Curriculum(records({"general": 20}), 1, settings)
    first = drawn(curriculum, 20)
    for position, record in enumerate(first):
        accuracy = {"general-1": 1.0, "general-2": 0.0, "general-3": 0.05}.get(record.id, 0.5)
        curriculum.observe(position, accuracy, True)
    later = Counter(record.id for record in drawn(curriculum, 20 * 17, 20))
    assert not {"general-1", "general-2", "general-3"} & set(later) and set(later.values()) == {20}


def test_a_record_outside_the_pool_is_tried_again_in_one_of_so_many_turns() -> None:
    curriculum = Curriculum(records({"general": 10}), 1, CurriculumSection(block=10, revisit=0.25))
    for position, record in enumerate(drawn(curriculum, 10)):
        curriculum.observe(position, 1.0 if record.id == "general-4" else 0.5, True)
    tried = Counter(record.id for record in drawn(curriculum, 370, 10))
    assert tried["general-4"] == pytest.approx(tried["general-5"] / 4, abs=1)


def test_a_family_of_which_nothing_fits_keeps_its_quota() -> None:
    curriculum = Curriculum(DATA, 1, CurriculumSection(block=32, revisit=0.0), FAMILIES)
    for position in range(len(drawn(curriculum, 64))):
        curriculum.observe(position, 1.0, True)
    assert Counter(record.label for record in drawn(curriculum, 64, 64))["safety"] == pytest.approx(32, abs=2)


def test_a_family_whose_groups_seldom_reach_a_step_is_planned_more_so_that_what_is_trained_has_the_quotas() -> None:
    curriculum = Curriculum(DATA, 1, CurriculumSection(block=16), {"safety": 1.0, "general": 1.0})
    trained: Counter[str] = Counter()
    for position in range(1600):
        (record,) = drawn(curriculum, 1, position)
        reaches = (
            record.label == "general" or position % 3 == 0
        )  # two of three groups of safety are too old when they come
        curriculum.observe(position, 0.5, reaches)
        trained[record.label] += reaches
    assert trained["safety"] / sum(trained.values()) == pytest.approx(0.5, abs=0.05)


def test_a_plan_of_other_data_is_refused_and_so_is_a_family_that_is_not_there() -> None:
    saved = Curriculum(DATA, 1, CurriculumSection()).save()
    with pytest.raises(ConfigError, match="other records"):
        Curriculum(DATA[1:], 1, CurriculumSection(), state=saved)
    with pytest.raises(ConfigError, match="no record of"):
        Curriculum(DATA, 1, CurriculumSection(), {"jailbreak": 1.0})


def test_a_feeders_plan_is_in_its_file_before_it_is_used_and_its_successor_goes_on_with_it(tmp_path: Path) -> None:
    file, data = tmp_path / "feeder" / "curriculum.json", Data(curriculum=CurriculumSection(block=8))
    first = PlannedDraw(file, DATA, 5, data)
    before = [first[position].id for position in range(8)]
    assert Curriculum(DATA, 5, CurriculumSection(block=8), state=file.read_bytes()).record(7) is not None
    first.observe([[0, 1.0, True], [1, None, 0]])
    second = PlannedDraw(file, DATA, 5, data)
    second.observe([[0, 1.0, True], [1, None, 0]])
    assert [second[position].id for position in range(8)] == before
    assert [second[position].id for position in range(8, 40)] == [first[position].id for position in range(8, 40)]


def test_an_outcome_that_is_none_is_refused() -> None:
    assert outcome([3, None, 1]) == (3, None, True)
    with pytest.raises(ValueError, match="no outcome"):
        outcome(["3", 0.5])
