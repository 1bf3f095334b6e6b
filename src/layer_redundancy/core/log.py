"""Where the package's remarks go: to `logging`, and as plain lines to notebooks and command lines."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

PACKAGE = __name__.partition(".")[0]


class Lines(logging.Handler):
    """Writes each remark as a line to stderr, above the progress bars that are drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return  # the user has set up logging meanwhile, which shows it
        try:
            # Looked up anew: notebooks, tests and redirections put another one in its place.
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def show() -> None:
    """Shows the package's remarks as plain lines on stderr, unless the user's logging takes care of them already."""
    logger = logging.getLogger(PACKAGE)
    if logger.handlers or logging.getLogger().handlers:
        return
    logger.addHandler(Lines())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


@contextmanager
def undisturbed() -> Iterator[None]:
    """While libraries are imported that set up everybody's logging as they are: it is left as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
