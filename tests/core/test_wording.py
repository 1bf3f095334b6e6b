import pytest

from layer_redundancy.core import wording


def test_one_thing_and_several():
    assert [wording.counted(n, "variant") for n in (0, 1, 2)] == ["0 variants", "1 variant", "2 variants"]


def test_numbers_that_differ_and_one():
    assert wording.span([10, 8, 9]) == "8 to 10" and wording.span([4, 4]) == "4"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.034, "0.03 s"),
        (1, "1 s"),
        (59.4, "59 s"),
        (90, "1.5 min"),
        (5399, "90.0 min"),
        (5400, "1.5 h"),
        (259200, "3.0 days"),
    ],
)
def test_a_time_is_told_in_a_unit_that_says_something(seconds, text):
    assert wording.duration(seconds) == text
