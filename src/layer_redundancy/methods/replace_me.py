"""ReplaceMe: a run of blocks gives way to a linear map that is folded into the MLP before it.

With M the output of the MLP of block a-1, Y the residual stream that it is added to, and X_i the residual stream that
enters block i, so that X_a = Y + M: without the blocks a .. a+n-1, block a+n gets Y + M T instead of X_{a+n}. The map
T (Shopkhoev et al. 2025, eq. 5 to 7) is the one of least squares,

    T = argmin || M T - (X_{a+n} - Y) ||^2 = (M^T M + alpha I)^-1 M^T (X_{a+n} + M - X_a)

and becomes part of the MLP's output projection, so that the checkpoint has the shape of the model without the blocks.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import activations, importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.methods import blocks
from layer_redundancy.methods.blocks import PreNormBlock, ReadsAll
from layer_redundancy.methods.method import Card, Plan
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import DecoderStack, decoder_stack

TITLE = "ReplaceMe"
Run = tuple[int, int]  # first block that goes (1 or more, since the map needs a block before it), number of blocks

# ------------------------------------------------------------------------------------------------ which run


def distances(sums: ActivationSums, by: str) -> np.ndarray:
    """How far each run's input is from its output.

    Args:
        sums: sums over the calibration text.
        by: "cosine" for 1 - mean_t cos(X_a,t , X_{a+n},t) over all tokens (the paper's distance); "last angle" for the
            mean over texts of arccos(cos) / pi of the last token (the public code's).

    Returns:
        (L, L) float64, entry [n-1, a]; NaN where a + n > L, and for a = 0, which has no block before it.

    Raises:
        StudyError: another distance.
    """
    if by not in ("cosine", "last angle"):
        raise StudyError(f"a distance of runs by {by!r} is not known: choose 'cosine' or 'last angle'")
    grid = importance.angular_grid(sums, "last")
    if by == "cosine":
        cosine = sums.cosine.sum(0) / sums.tokens.sum()
        for n in range(1, len(grid) + 1):
            grid[n - 1, : len(grid) - n + 1] = 1 - np.diagonal(cosine, offset=n)
    grid[:, 0] = np.nan
    return grid


def nearest_run(grid: np.ndarray, n: int) -> Run:
    """The run of n blocks of least distance; of equals the deeper one.

    Raises:
        StudyError: no run of n blocks has a block before it.
    """
    if not 1 <= n < len(grid):
        raise StudyError(f"a run of {n} blocks has no block before it: choose 1 to {len(grid) - 1}")
    row = grid[n - 1]
    return int(len(row) - 1 - np.nanargmin(row[::-1])), n


# ------------------------------------------------------------------------------------------------ its map


@dataclass(frozen=True, eq=False)
class RunSums:
    """Sums over the tokens of a calibration text from which the map of each run follows. All float64, width d.

    Attributes:
        tokens: number of tokens.
        gram: first block a -> M^T M (d, d).
        cross: run (a, n) -> M^T Z (d, d), Z = X_{a+n} - Y what M T should be.
        square: run (a, n) -> sum of ||Z||^2.
    """

    tokens: int
    gram: dict[int, Tensor] = field(default_factory=dict)
    cross: dict[Run, Tensor] = field(default_factory=dict)
    square: dict[Run, float] = field(default_factory=dict)

    def map(self, run: Run, ridge: float = 0.0) -> Tensor:
        """The run's map T (d, d), for rows: M -> M T.

        Args:
            run: one of those summed up.
            ridge: alpha as a share of the mean of the diagonal of M^T M.

        Raises:
            StudyError: fewer tokens than the width, without a ridge: the map would fit them exactly, and nothing else.
        """
        return _solved(self._directions(run[0], ridge), self.cross[run])

    def use_up(self, ridge: float = 0.0) -> dict[Run, Tensor]:
        """Every run's map, as `map`; each takes the memory of the sums that it is made of, which are gone then."""
        maps: dict[Run, Tensor] = {}
        for a in list(self.gram):
            directions = self._directions(a, ridge)
            del self.gram[a]
            for run in [run for run in self.cross if run[0] == a]:
                maps[run] = _solved(directions, self.cross.pop(run))
        return maps

    def _directions(self, a: int, ridge: float) -> tuple[Tensor, Tensor]:
        """Directions that M takes before a first block, (d, r), and its sum of squares along each, (r,)."""
        gram = self.gram[a]
        width = len(gram)
        check_tokens(self.tokens, width, ridge)
        alpha = ridge * gram.diagonal().mean()
        values, vectors = torch.linalg.eigh(gram + alpha * torch.eye(width, dtype=gram.dtype, device=gram.device))
        # Directions that M never takes are of no account: the least of all maps that fit leaves them out.
        there = values > values[-1] * width * torch.finfo(values.dtype).eps
        return vectors[:, there], values[there]

    def error(self, run: Run, of: Tensor | None = None) -> float:
        """Mean over tokens of ||M T - Z||^2 for a map T; without one, T = I: the blocks go and nothing else changes."""
        gram, cross = self.gram[run[0]], self.cross[run]
        if of is None:
            of = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        fitted = (of * (gram @ of)).sum() - 2 * (of * cross).sum()
        return max(0.0, fitted.item() + self.square[run]) / self.tokens


def _solved(directions: tuple[Tensor, Tensor], cross: Tensor) -> Tensor:
    vectors, values = directions
    return vectors @ ((vectors.T @ cross) / values[:, None])


def check_tokens(tokens: int, width: int, ridge: float) -> None:
    """Raises StudyError where so many tokens are too few for a map of that width, without a ridge."""
    if tokens < width and not ridge:
        raise StudyError(
            f"a map of {width} x {width} numbers cannot be fitted to {tokens} tokens: give more calibration text, or a "
            "ridge"
        )


def every_run(num_blocks: int) -> list[Run]:
    """All runs that have a map: L (L - 1) / 2 of them, for L blocks."""
    return [(a, n) for a in range(1, num_blocks) for n in range(1, num_blocks - a + 1)]


def check_run(run: Run, num_blocks: int) -> None:
    """Raises StudyError for a run that has no map."""
    a, n = run
    if not (a >= 1 and 1 <= n <= num_blocks - a):
        raise StudyError(
            f"blocks {a} to {a + n - 1} cannot be replaced: there is a map for runs in 1 to {num_blocks - 1}"
        )


@torch.no_grad()
def collect(
    stack: DecoderStack, input_ids: Tensor, runs: Iterable[Run] | None = None, batch_tokens: int = 1024
) -> RunSums:
    """What the maps of many runs need, from one pass over the calibration text.

    Memory: 8 d^2 bytes for each run and each first block, so that all runs of L blocks take 4 d^2 (L - 1) (L + 2): 1.2
    GB for 30 blocks of width 576, 71 GB for 32 of 4096, where runs are better asked for in parts. Besides, for a batch
    of N tokens, 16 d N bytes for each first block. Multiplications: d^2 a token and run, in float64, a tenth of what
    one of Llama's blocks takes.

    Args:
        stack: the model taken apart.
        input_ids: int64 (blocks, length), no padding.
        runs: the runs; all if not given.
        batch_tokens: tokens a forward may hold.

    Raises:
        NotApplicable: blocks do not add an MLP's output to the residual stream as Llama's do.
        StudyError: a run has no block before it, or goes beyond the last block; activations that are not finite.
    """
    parts, num = blocks.pre_norm_blocks(stack, TITLE), len(stack)
    runs = every_run(num) if runs is None else list(dict.fromkeys(runs))
    for run in runs:
        check_run(run, num)
    starts, ends = {a for a, _ in runs}, {end: [a for a, n in runs if a + n == end] for end in {a + n for a, n in runs}}
    sums = RunSums(input_ids.numel())
    for batch in blocks.batches(input_ids, batch_tokens):
        seen: dict[int, tuple[Tensor, Tensor]] = {}  # first block -> M, Y of the block before it
        for index, hidden, halves in residuals(stack, parts, batch, {a - 1 for a in starts}, max(ends, default=0)):
            for a in ends.get(index, ()):
                mlp, before = seen[a]
                wanted = hidden - before
                _add(sums.cross, (a, index - a), mlp.T @ wanted)
                sums.square[a, index - a] = sums.square.get((a, index - a), 0.0) + wanted.square().sum().item()
            if halves is not None:
                seen[index] = halves
                _add(sums.gram, index, halves[0].T @ halves[0])
    if not all(map(np.isfinite, sums.square.values())):
        raise StudyError("the model's activations are NaN or infinite: try dtype float32, or check the weights")
    return sums


def residuals(
    stack: DecoderStack, parts: list[PreNormBlock], batch: Tensor, watched: Iterable[int], last: int
) -> Iterator[tuple[int, Tensor, tuple[Tensor, Tensor] | None]]:
    """The residual stream of one batch, block by block.

    Args:
        stack, parts: the model, and the parts of its blocks.
        batch: int64 (rows, length).
        watched: blocks whose MLP is looked at.
        last: the last residual stream that is needed, 0 to L.

    Yields:
        (i, X_i (N, d) float64, the M and Y of block i-1 where it is watched), for i from 1 to `last`.

    Raises:
        NotApplicable: X_i is not Y + M.
    """
    watched = set(watched)
    hidden, calls = stack.start(batch)
    for index in range(last):
        if index not in watched:
            hidden = stack.run_block(index, hidden, calls)
            yield index + 1, _rows(hidden), None
            continue
        with _halves(parts[index]) as seen:
            hidden = stack.run_block(index, hidden, calls)
        state, mlp, before = map(_rows, (hidden, *seen()))
        rounding = 8 * torch.finfo(hidden.dtype).eps
        if not torch.allclose(before + mlp, state, rtol=rounding, atol=rounding * state.abs().max().item()):
            raise NotApplicable(
                f"{TITLE} cannot be used on {type(stack.model).__name__}: its blocks add something else than their "
                "MLP's output"
            )
        yield index + 1, state, (mlp, before)


@contextmanager
def _halves(part: PreNormBlock) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """While a block runs: what its MLP puts out, and the residual stream that this is added to."""
    seen: dict[str, Tensor] = {}

    def of_mlp(_: nn.Module, __: tuple, output: Tensor) -> None:
        seen["mlp"] = output[0] if isinstance(output, tuple) else output

    handles = [
        part.mlp.register_forward_hook(of_mlp),
        part.mlp_norm.register_forward_pre_hook(lambda _, args: seen.update(before=args[0])),
    ]
    try:
        yield lambda: (seen["mlp"], seen["before"])
    finally:
        for handle in handles:
            handle.remove()


def _rows(states: Tensor) -> Tensor:
    """(batch, length, d) -> (N, d), float64."""
    return blocks.double(states.flatten(0, 1))


def _add(to: dict, key: object, value: Tensor) -> None:
    to[key] = to[key] + value if key in to else value


# ------------------------------------------------------------------------------------------------ the cosine form


@dataclass(frozen=True)
class CosineFit:
    """How the map of least mean cosine distance is looked for: Adam, from T = I.

    Attributes:
        rate: learning rate (public code: 1e-4).
        epochs: passes over the tokens (public code: 10, of up to 8 million tokens).
        batch: tokens a step (public code: 1024).
        accurate: whether cos(Y + M T, X_{a+n}) is fitted, what block a+n gets; else cos(M T, X_{a+n} - Y), as the
            public code does by default.
        seed: of the order of tokens.
    """

    rate: float = 1e-4
    epochs: int = 10
    batch: int = 1024
    accurate: bool = False
    seed: int = 0


def cosine_map(
    stack: DecoderStack, input_ids: Tensor, run: Run, fit: CosineFit | None = None, batch_tokens: int = 2048
) -> tuple[Tensor, list[float]]:
    """The map of least mean cosine distance (Shopkhoev et al. 2025, eq. 8).

    Memory: M, Y and X_{a+n} of all tokens, 12 d bytes a token.

    Args:
        stack: the model taken apart.
        input_ids: int64 (blocks, length), no padding.
        run: the run.
        fit: how it is fitted.
        batch_tokens: tokens a forward may hold.

    Returns:
        T (d, d) float64 for rows; and the mean of 1 - cos over all tokens before the first epoch and after each.

    Raises:
        NotApplicable: as `collect`.
    """
    fit, (a, n) = fit or CosineFit(), run
    parts = blocks.pre_norm_blocks(stack, TITLE)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for batch in blocks.batches(input_ids, batch_tokens):
            for index, state, halves in residuals(stack, parts, batch, {a - 1}, a + n):
                if halves is not None:
                    mlp, before = halves
                if index == a + n:
                    found.append((mlp.float(), before.float(), state.float()))
    mlp, before, after = (torch.cat(part) for part in zip(*found, strict=True))
    added, wanted = (
        (before, after) if fit.accurate else (torch.zeros_like(before[:1]).expand_as(before), after - before)
    )
    with torch.enable_grad():
        of = torch.eye(mlp.shape[1], device=mlp.device).requires_grad_(True)

        def distance(rows: Tensor | slice) -> Tensor:
            return 1 - torch.cosine_similarity(added[rows] + mlp[rows] @ of, wanted[rows], dim=-1).mean()

        adam, order = torch.optim.Adam([of], lr=fit.rate), torch.Generator().manual_seed(fit.seed)
        course = [distance(slice(None)).item()]
        for _ in range(fit.epochs):
            for rows in torch.randperm(len(mlp), generator=order).to(mlp.device).split(fit.batch):
                adam.zero_grad()
                distance(rows).backward()
                adam.step()
            course.append(distance(slice(None)).item())
    return of.detach().double(), course


# ------------------------------------------------------------------------------------------------ a smaller model


def fold(part: PreNormBlock, of: Tensor) -> None:
    """Makes a map (d, d), for rows, part of a block's MLP: its output M becomes M T. In place."""
    weight, bias = blocks.double(part.mlp_out.weight), part.mlp_out.bias
    of = of.to(weight.device)
    blocks.change(part.mlp_out.weight, of.T @ weight)
    blocks.change(bias, None if bias is None else blocks.double(bias) @ of)


@contextmanager
def folded(part: PreNormBlock, of: Tensor) -> Iterator[None]:
    """A map is folded as `fold` does it, for a while: the block's own weights are put back, also on error."""
    own = [(parameter, parameter.data) for parameter in part.mlp_out.parameters()]
    try:
        for parameter, data in own:
            parameter.data = data.clone()
        fold(part, of)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data


def replaced(model: nn.Module, run: Run, of: Tensor) -> nn.Module:
    """Removes a run for good, its map folded into the block before it."""
    fold(blocks.pre_norm_blocks(decoder_stack(model), TITLE)[run[0] - 1], of)
    return surgery.cut(model, range(run[0], sum(run)))


CARD = Card(
    title=TITLE,
    does="replaces a run of blocks by a linear map, folded into the block before it",
    paper="Shopkhoev et al. 2025, arXiv 2505.02819",
    code="mts-ai/ReplaceMe",
    settings="one run, one map of least squares in float64, no ridge (code: alpha 0, num_A 1); the run of least "
    "cosine distance (paper)",
    code_differs="chooses the run by the angle at the last token of each text, in chats always the same line break; "
    "a run that ends with the last block is chosen and fitted by what comes after the final norm; padding enters the "
    "fit; activations come from a 4-bit model while the map is folded into bf16 weights",
    changed="distances are means over all tokens unless 'last angle' is asked for; the last block's output is taken "
    "before the final norm; no padding; activations of the model itself; an MLP bias goes through the map too; a "
    "ridge is a share of the mean of the diagonal",
)


@dataclass(frozen=True)
class ReplaceMe(ReadsAll):
    """Replaces the run of n blocks whose output is nearest to its input by the linear map of least squares.

    Attributes:
        distance: what the run is chosen by, see `distances`.
        ridge: see `RunSums.map`.
    """

    distance: str = "cosine"
    ridge: float = 0.0
    draws: bool = True
    card: Card = CARD

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """See `Method`."""
        blocks.pre_norm_blocks(decoder_stack(shapes), TITLE)
        return blocks.plans(shapes, distance=self.distance, ridge=self.ridge)

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """See `Method`."""
        return 2.0

    def outline(self, shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`."""
        if plan.blocks:
            width = blocks.pre_norm_blocks(decoder_stack(shapes), TITLE)[0].mlp_out.out_features
            check_tokens(text.num_tokens, width, plan.settings["ridge"])
        return super().outline(shapes, text, plan)

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`; two passes over the text. Memory: as `collect` for one run.

        Raises:
            StudyError: fewer tokens than the model is wide, and no ridge.
        """
        if not (n := blocks.number(plan, model)):
            return model
        stack, ids = decoder_stack(model), blocks.calibration(text)
        run = nearest_run(distances(activations.collect(stack, ids), plan.settings["distance"]), n)
        return replaced(model, run, collect(stack, ids, [run]).map(run, plan.settings["ridge"]))
