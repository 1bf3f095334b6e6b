"""Programs that tests start."""

import signal

from layer_redundancy.core import interrupts


def as_at_a_terminal() -> None:
    """A `preexec_fn`: signals as an interactive shell leaves them; who started the tests may have some ignored."""
    for one in interrupts.SIGNALS:
        signal.signal(one, signal.SIG_DFL)
