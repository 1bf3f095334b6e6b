"""A wait for somebody else: after a few seconds it says for whom."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SILENT_SECONDS = 5.0  # a shorter wait is nobody's business
AGAIN_SECONDS = 600.0  # how often a long one is told of


class Wait:
    """A wait that begins now."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = self._start + SILENT_SECONDS

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._start

    def say(self, whom: Callable[[], str]) -> None:
        """Says what is waited for, if it is time to.

        Args:
            whom: gives the line; called only if it is said.
        """
        if time.monotonic() >= self._next:
            logger.info(whom())
            self._next = time.monotonic() + AGAIN_SECONDS
