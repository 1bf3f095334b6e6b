"""Where the package's remarks go: to `logging`, and as plain lines to notebooks and command lines."""

import logging
import sys

from tqdm import tqdm

PACKAGE = __name__.partition(".")[0]


class Lines(logging.Handler):
    """Writes each remark as a line to stderr, above the progress bars that are drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
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
