"""One streaming pass over the residual stream: sums a sequence, never stored states."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from layer_redundancy.core import devices, flags, stats
from layer_redundancy.core.devices import halved
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import throughput
from layer_redundancy.models.stack import DecoderStack


@dataclass(frozen=True, eq=False)
class ActivationSums:
    """Sums over the tokens of each sequence, from which every importance measure is computed. All float64.

    With S sequences and L blocks, residual streams X_0 .. X_L (X_0 enters block 0, X_L leaves the last block, before
    the final norm):

    Attributes:
        tokens: (S,) number of real tokens, padding excluded.
        cosine: (S, L+1, L+1) sum over tokens of cos(X_i, X_j).
        angle: (S, L+1, L+1) sum over tokens of arccos(cos(X_i, X_j)) / pi, in 0..1.
        norm: (S, L+1) sum over tokens of ||X_i||.
        relative_magnitude: (S, L) sum over tokens of ||X_{i+1} - X_i|| / ||X_{i+1}||.
        first_cosine, first_norm, first_relative_magnitude: the share of each sequence's first token in the sums above,
            so that it can be left out: it is an attention sink with an outsized norm in most models.
        last_angle: (S, L+1, L+1) the angle of each sequence's last token alone (Gromov et al. 2024).
    """

    tokens: np.ndarray
    cosine: np.ndarray
    angle: np.ndarray
    norm: np.ndarray
    relative_magnitude: np.ndarray
    first_cosine: np.ndarray
    first_norm: np.ndarray
    first_relative_magnitude: np.ndarray
    last_angle: np.ndarray

    @property
    def num_blocks(self) -> int:
        """L, the number of residual blocks."""
        return self.norm.shape[1] - 1

    def resampled(self, resamples: int, seed: int) -> list["ActivationSums"]:
        """What other texts of the same kind would have given: as many sequences, drawn with replacement."""
        draws = stats.unit_rows(len(self.tokens), resamples, seed)
        return [self.of(rows) for rows in draws]

    def first(self, sequences: int) -> "ActivationSums":
        """The sums over the first sequences alone."""
        return self.of(np.arange(len(self.tokens))[:sequences])

    def of(self, rows: np.ndarray) -> "ActivationSums":
        """The sums over some of the sequences, by their indices or a mask."""
        return ActivationSums(**{name: array[rows] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for the results store; `ActivationSums(**arrays)` is the way back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@torch.no_grad()
@flags.checked
def collect(
    stack: DecoderStack,
    input_ids: Tensor,
    lengths: Tensor | None = None,
    batch_tokens: int | None = 2048,
    progress: bool = False,
) -> ActivationSums:
    """Runs the sequences through the blocks once and sums up what every importance measure needs.

    Each token's Gram matrix of its L+1 residual states is formed in float64: cosines, norms, angles and the length of
    each block's update all follow from it, without the cancellation that float32 or bf16 cosines near 1 suffer from.

    Args:
        stack: the model taken apart.
        input_ids: int64 (sequences, tokens), padded on the right.
        lengths: int64 (sequences,) real tokens of each; None when nothing is padding.
        batch_tokens: tokens a forward may hold; halved, down to one sequence, when memory runs out. None for as many as
            `throughput` finds on this device.
        progress: draw a progress bar.

    Returns:
        Sums a sequence, in the order of `input_ids`, whatever the batch size.

    Raises:
        StudyError: no token at all, a length out of range, activations that are not finite, or not enough memory for a
            single sequence.
    """
    num_sequences, width = input_ids.shape
    if lengths is None:
        lengths = torch.full((num_sequences,), width)
    if num_sequences == 0 or lengths.min() < 1 or lengths.max() > width:
        raise StudyError(f"calibration needs sequences of 1 to {width} tokens: got lengths {lengths.tolist()[:5]}")
    parts: list[tuple[np.ndarray, ...]] = []
    start, batch = 0, max(1, throughput.batch_tokens(stack, batch_tokens) // width)
    with tqdm(total=num_sequences, desc="activations", unit="sequence", disable=not progress) as bar:
        while start < num_sequences:
            rows = slice(start, start + batch)
            try:
                parts.append(_batch_sums(stack, input_ids[rows], lengths[rows]))
            except (MemoryError, RuntimeError) as e:
                batch = halved(batch, e, "the activations of one calibration sequence")
                continue
            start += batch
            bar.update(min(batch, num_sequences - start + batch))
    return ActivationSums(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _batch_sums(stack: DecoderStack, input_ids: Tensor, lengths: Tensor) -> tuple[np.ndarray, ...]:
    """The fields of ActivationSums for one batch (B, T)."""
    hidden, calls = stack.start(input_ids)
    states = [hidden]
    for i in range(len(stack)):
        states.append(stack.run_block(i, states[-1], calls))
    batch, width, _ = hidden.shape
    num = len(states)
    device = hidden.device if hidden.device.type != "mps" else torch.device("cpu")  # no float64 there
    real = (torch.arange(width)[None] < lengths[:, None]).to(device)  # (B, T)
    out = {
        "cosine": torch.zeros(batch, num, num, dtype=torch.float64, device=device),
        "angle": torch.zeros(batch, num, num, dtype=torch.float64, device=device),
        "norm": torch.zeros(batch, num, dtype=torch.float64, device=device),
        "relative_magnitude": torch.zeros(batch, num - 1, dtype=torch.float64, device=device),
    }
    first: dict[str, Tensor] = {}
    step = _tokens_at_once(states, device)
    # Filled again and again: the float64 copy of all tokens' states would otherwise be the largest thing in memory.
    room = torch.empty(batch, step, num, hidden.shape[-1], dtype=torch.float64, device=device)
    last_angle = torch.zeros(batch, num, num, dtype=torch.float64, device=device)
    for first_token in range(0, width, step):
        mask = real[:, first_token : first_token + step]
        chunk = room[:, : mask.shape[1]]  # (B, t, L+1, d)
        for depth, state in enumerate(states):
            chunk[:, :, depth].copy_(state[:, first_token : first_token + step])
        gram = chunk @ chunk.transpose(-1, -2)  # (B, t, L+1, L+1)
        if not torch.isfinite(gram[mask]).all():
            raise StudyError("the model's activations are NaN or infinite: try dtype float32, or check the weights")
        values = _token_values(gram)
        for name, value in values.items():
            out[name] += torch.where(_like(mask, value), value, 0).sum(dim=1)
            if first_token == 0:
                first[name] = value[:, 0].clone()
        last = lengths.to(device) - 1 - first_token  # (B,) position of the last token within this chunk
        here = (last >= 0) & (last < mask.shape[1])
        rows = here.nonzero()[:, 0]
        last_angle[rows] = values["angle"][rows, last[rows]]
    tokens = lengths.to(torch.float64)
    ordered = (tokens, *out.values(), *(first[n] for n in out if n != "angle"), last_angle)
    return tuple(t.cpu().numpy() for t in ordered)


def _tokens_at_once(states: Sequence[Tensor], device: torch.device) -> int:
    """Tokens of each sequence of which all states (B, T, d) are held in float64 at once.

    A few hundred in all on a processor, where more would leave its caches; a few thousand, or as many as a quarter of
    the free memory holds, on a GPU, where fewer leave it idle.
    """
    batch, width, size = states[0].shape
    most = 512
    if devices.is_gpu(device):
        most = min(2048, devices.available(device) // 4 // (8 * len(states) * size))
    return min(width, max(1, most // batch))


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (value.dim() - mask.dim()))


def _token_values(gram: Tensor) -> dict[str, Tensor]:
    """Per-token measures from Gram matrices (..., L+1, L+1) float64. A state of norm 0 has cosine 0 with any other."""
    square = torch.diagonal(gram, dim1=-2, dim2=-1)  # (..., L+1) squared norms
    norm = square.sqrt()
    tiny = torch.finfo(torch.float64).tiny
    cosine = (gram / (norm[..., :, None] * norm[..., None, :]).clamp_min(tiny)).clamp(-1, 1)
    before, after = square[..., :-1], square[..., 1:]
    inner = torch.diagonal(gram, offset=1, dim1=-2, dim2=-1)  # X_i . X_{i+1}
    update = (before + after - 2 * inner).clamp_min(0).sqrt()
    return {
        "cosine": cosine,
        "angle": torch.arccos(cosine) / torch.pi,
        "norm": norm,
        "relative_magnitude": update / norm[..., 1:].clamp_min(tiny),
    }


def zeros(sequences: int, num_blocks: int) -> ActivationSums:
    """Sums of the right shapes over sequences of one token each, all else zero."""
    pairs, states, blocks = (
        (sequences, num_blocks + 1, num_blocks + 1),
        (sequences, num_blocks + 1),
        (sequences, num_blocks),
    )
    return ActivationSums(
        tokens=np.ones(sequences),
        cosine=np.zeros(pairs),
        angle=np.zeros(pairs),
        norm=np.zeros(states),
        relative_magnitude=np.zeros(blocks),
        first_cosine=np.zeros(pairs),
        first_norm=np.zeros(states),
        first_relative_magnitude=np.zeros(blocks),
        last_angle=np.zeros(pairs),
    )
