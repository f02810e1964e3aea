"""A batch reaches the other ranks as it was, and one whose columns do not fit together is refused."""

from dataclasses import replace

import numpy as np
import pytest

from safeladder.policies import batch
from safeladder.policies.batch import TrainingGroup


def group(**changes):
    made = TrainingGroup(
        id="g",
        prompt_ids=np.array([1, 2], np.int32),
        completion_ids=[np.array([3, 4, 5], np.int32), np.zeros(0, np.int32)],
        behaviour=[np.array([-1, -2, -0.5], np.float32), np.zeros(0, np.float32)],
        versions=[np.array([0, 0, 1], np.int32), np.zeros(0, np.int32)],
        rewards=np.array([0.5, np.nan]),
        valid=np.array([True, False]),
        costs={"unsafe": np.array([1.0, np.nan])},
        qualified=np.array([True, False]),
    )
    return replace(made, **changes)


def test_a_batch_survives_its_encoding():
    first = group()
    (second,) = batch.decode(batch.encode([first]))
    assert second.id == first.id and second.reference is None
    for name in ("prompt_ids", "rewards", "valid", "qualified"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
        assert getattr(second, name).dtype == getattr(first, name).dtype
    for name in ("completion_ids", "behaviour", "versions"):
        assert [column.tolist() for column in getattr(second, name)] == [c.tolist() for c in getattr(first, name)]
    np.testing.assert_array_equal(second.costs["unsafe"], first.costs["unsafe"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"behaviour": [np.zeros(2, np.float32), np.zeros(0, np.float32)]}, "behaviour does not have the lengths"),
        ({"kept": [np.ones(3, bool), np.ones(1, bool)]}, "kept does not have the lengths"),
        ({"valid": np.ones(3, bool)}, "valid must be"),
        ({"costs": {"unsafe": np.zeros(1)}}, "unsafe must be"),
        ({"qualified": np.zeros(3, bool)}, "qualified must be"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        group(**changes)


def test_a_demonstration_is_a_group_of_one():
    made = TrainingGroup.supervised("d", [1, 2], [3, 4, 5], kept=[True, False, True])
    assert made.kept_of(0).tolist() == [True, False, True]
    assert made.rewards.tolist() == [1.0] and made.valid.all()
    assert group().kept_of(0).all()
