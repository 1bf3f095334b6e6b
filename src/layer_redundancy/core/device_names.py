"""What a user may call a device. Apart from `devices`, which imports torch: profiles are checked without it."""

from layer_redundancy.core.errors import StudyError

CHOICES = ("cpu", "cuda", "auto")  # auto is a GPU where there is one


def check_choice(choice: str) -> None:
    """Raises StudyError unless the choice is one of `CHOICES`."""
    if choice not in CHOICES:
        raise StudyError(f"unknown device {choice!r}: choose {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
