"""The one exception a user's mistake ends in."""


class StudyError(Exception):
    """A user's mistake or a condition of the machine, stated in one line: what is wrong and what to do.

    The notebook runner prints only this message, and so does a cell in JupyterLab: no stack trace follows it. It stays
    one line where a name that it tells has several.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a stack trace."""
        return [f"{type(self).__name__}: {self}"]


class Diverged(StudyError):
    """A training whose loss is no number any more; stated in one line."""


class NotApplicable(StudyError):
    """A notebook has nothing to measure on this model; stated in one line, and no failure."""


class DoesNotFit(StudyError):
    """Something takes more memory than there is, however little of it is done at a time; stated in one line."""
