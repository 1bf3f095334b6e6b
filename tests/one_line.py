"""What a user's mistake ends in; tests/bad_input/ has a table of mistakes a door."""

from collections.abc import Callable

import pytest

from layer_redundancy.core.errors import StudyError


def refusal(act: Callable[[], object]) -> str:
    """The one line in which a mistake ends; anything but a StudyError of one line is a failure of the test."""
    with pytest.raises(StudyError) as caught:
        act()
    line = str(caught.value)
    assert line.strip() and "\n" not in line and len(line) < 600, line
    return line
