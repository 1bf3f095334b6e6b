"""How many blocks go, as it is asked for. Standard library only, so that a mistake is told at once."""

from dataclasses import dataclass

from layer_redundancy.core.arguments import number, whole
from layer_redundancy.core.errors import StudyError


@dataclass(frozen=True)
class HowMany:
    """How many blocks go; exactly one is given.

    Attributes:
        remove: number of blocks.
        ratio: share of the blocks, above 0 and below 1; at least one block goes.
        max_loss: the most that the mean negative log-likelihood of calibration text may rise, nats a token.
    """

    remove: int | None = None
    ratio: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.remove, self.ratio, self.max_loss) if value is not None]
        if len(given) != 1:
            raise StudyError("say how many blocks go by one of --remove, --ratio and --max-loss")
        if self.remove is not None:
            object.__setattr__(self, "remove", whole(self.remove, "--remove"))
        if self.ratio is not None and not 0 < number(self.ratio, "--ratio") < 1:
            raise StudyError(f"--ratio {self.ratio:g} is out of range: give a share above 0 and below 1")
        if self.max_loss is not None and not number(self.max_loss, "--max-loss") > 0:
            raise StudyError(f"--max-loss {self.max_loss:g} is out of range: give nats a token, above 0")
