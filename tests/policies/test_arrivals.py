import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.arrivals import Arrivals


@settings(max_examples=150, deadline=None)
@given(start=st.integers(0, 5), fates=st.lists(st.sampled_from(["take", "drop"]), max_size=30), data=st.data())
def test_whatever_the_order_everything_is_accounted_for_once_and_the_cursor_is_the_first_that_is_not(
    start, fates, data
):
    arrivals, open_numbers = Arrivals(start), {start + place for place in range(len(fates))}
    for place in data.draw(st.permutations(range(len(fates)))):
        number = start + place
        if fates[place] == "take":
            arrivals.add(number, number)
            assert arrivals.take([number]) == [number]
        else:
            arrivals.drop(number)
        open_numbers.discard(number)
        assert arrivals.cursor == min(open_numbers, default=start + len(fates))
        assert arrivals.accounted == start + len(fates) - len(open_numbers)
        assert arrivals.outstanding(len(open_numbers)) == sorted(open_numbers)
        # what a checkpoint keeps, the cursor, and what the ledger knows beyond it, make the same again
        ahead = {start + p for p in range(len(fates))} - open_numbers
        again = Arrivals(arrivals.cursor, ahead)
        assert (again.cursor, again.accounted) == (arrivals.cursor, arrivals.accounted)
    arrivals.end(start + len(fates))
    assert arrivals.finished


def test_the_order_of_arrival_is_kept():
    arrivals = Arrivals()
    for number in (4, 1, 3):
        arrivals.add(number, str(number))
    assert arrivals.numbers() == [4, 1, 3] and arrivals.items() == ["4", "1", "3"]
    assert arrivals.withdraw(1) == "1" and 1 not in arrivals and not arrivals.accounted_for(1)
    assert arrivals.take([3, 4]) == ["3", "4"]
    assert len(arrivals) == 0 and arrivals.cursor == 0 and arrivals.accounted == 2


def test_a_take_of_what_is_not_here_changes_nothing():
    arrivals = Arrivals()
    arrivals.add(0, "a")
    with pytest.raises(KeyError):
        arrivals.take([0, 1])
    assert arrivals.numbers() == [0] and arrivals.accounted == 0


def test_complete_is_a_stream_whose_rest_is_here():
    arrivals = Arrivals()
    arrivals.end(3)
    arrivals.drop(1)
    arrivals.add(2, "c")
    assert not arrivals.complete
    arrivals.add(0, "a")
    assert arrivals.complete and not arrivals.finished
    assert arrivals.outstanding(9) == [0, 2]


def test_what_was_seen_is_refused():
    arrivals = Arrivals(1, ahead=[3])
    arrivals.add(1, "b")
    arrivals.drop(2)
    for seen in (0, 1, 2, 3):
        with pytest.raises(ValueError, match="seen before"):
            arrivals.add(seen, "x")
        with pytest.raises(ValueError, match="seen before"):
            arrivals.drop(seen)
    with pytest.raises(ValueError, match="was seen"):
        arrivals.end(3)
    arrivals.end(4)
    with pytest.raises(ValueError, match="beyond the end"):
        arrivals.add(4, "x")
    with pytest.raises(ValueError, match="start must be"):
        Arrivals(-1)
