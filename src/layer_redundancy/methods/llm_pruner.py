"""LLM-Pruner: attention heads and MLP channels go whose weights the loss depends on least.

Ma, Fang and Wang, "LLM-Pruner: On the Structural Pruning of Large Language Models" (NeurIPS 2023, arXiv 2305.11627):
groups of weights that only make sense together (section 3.1), here the heads of a block's attention ('Block' groups,
type B) and the channels of its MLP (type A); importance of a weight by the first term of equation 5, |w dL/dw|; of a
group by summation (section 3.2); the same share of groups from every block but the first and the last ones (appendix
B.1). The settings are those of its public code, horseee/LLM-Pruner at 128a07d: `scripts/llama_prune.sh`, and
`llama3.py` for grouped-query attention. No training follows here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods.method import Card, Plan
from layer_redundancy.models import architectures, uneven
from layer_redundancy.models.stack import BlockCalls, DecoderStack, check_tokens, decoder_stack

# What the public code takes to be calibration text: so many texts of so many tokens, from anywhere in a document.
TEXTS, TOKENS = 10, 64
# Blocks that stay whole at the beginning and at the end, and of how many: the public commands for Llama-2-7B.
FIRST, LAST, DEPTH = 4, 2, 32

CARD = Card(
    title="LLM-Pruner",
    does="takes attention heads and MLP channels out of all blocks but the first and last ones",
    paper="Ma, Fang and Wang 2023, arXiv 2305.11627",
    code="horseee/LLM-Pruner",
    settings=(
        f"Block-wise: {FIRST} blocks at the beginning and {LAST} at the end stay whole, of {DEPTH} (code: blocks 4 to "
        "29 are pruned); of other depths as large a part, rounded, and at least one at either end (this study). The "
        "same share r of groups goes from all others: of C channels C - int(C (1 - r)), of heads the whole ones in as "
        "many rows of their projection, so rounded down (code). A group is an MLP channel (its rows of the gate and up "
        "projections, its column of the down projection), or a key-value head with all query heads that share it (rows "
        "of the query, key and value projections, columns of the output projection). Importance: |w dL/dw|, element by "
        "element and first order (code: param_first, its default and its script's; vectorize, param_second and "
        "param_mix are not here), summed over the group's matrices and rows (code: sum), biases left out (code). The "
        f"gradient is that of the mean loss of all tokens, from one backward over {TEXTS} texts of {TOKENS} tokens "
        "(code). No training after it."
    ),
    code_differs=(
        "Texts of 64 tokens, where the paper has 128. First order, where the readme calls param_mix the default. With "
        "grouped-query attention the importance of query head h and of its output columns is added to key-value head h "
        "mod (number of key-value heads), while the query heads that go with a key-value head are, rightly, those that "
        "share it. On a GPU, gradients in float16. The code's default, and the paper for 50 %, is to leave the first "
        "three blocks and the last one whole; the script, and the paper for 20 %, leave four and two."
    ),
    changed=(
        "Each query head counts for the key-value head that it shares. Gradients in float32, whatever the model's "
        "dtype. Of groups that matter alike the first go. Shares of all weights that no r gives, where heads can only "
        "go in few large steps, are reached by taking more channels while the heads wait for their step."
    ),
    needs="layer_redundancy.models.uneven",
)


@dataclass(frozen=True)
class Importance:
    """What the groups of a block matter.

    Attributes:
        groups: (key-value heads,) float64, nats a token.
        channels: (MLP channels,) float64, likewise.
    """

    groups: Tensor
    channels: Tensor


@dataclass(frozen=True)
class Sizes:
    """What can be taken out of a model.

    Attributes:
        pruned: the blocks that groups are taken from.
        groups: key-value heads of a block.
        group_rows: rows of the key projection that belong to one of them.
        group_weights: weights that go with one of them.
        channels: MLP channels of a block.
        channel_weights: weights that go with one of them.
        blocks: weights of all blocks.
        model: weights of the model, those that are tied counted once.
    """

    pruned: range
    groups: int
    group_rows: int
    group_weights: int
    channels: int
    channel_weights: int
    blocks: int
    model: int


@dataclass(frozen=True)
class LlmPruner:
    """LLM-Pruner, as `CARD` says.

    Attributes:
        spared: blocks that stay whole at the beginning and at the end; None for the public code's, scaled to the depth.
    """

    spared: tuple[int, int] | None = None

    @property
    def card(self) -> Card:
        """Where it comes from."""
        return CARD

    @property
    def draws(self) -> bool:
        """Ten short texts: what goes depends on which."""
        return True

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """All sizes that it can reach, growing: key-value heads and channels that go from each block that is pruned.

        With the settings' `ratio` the public code takes as many; it is None where no ratio gives this size.

        Raises:
            NotApplicable: no model of Llama, Mistral, Qwen2 or Qwen3 (or one that is a Llama, as Baichuan-7B), blocks
                that differ in width already, weights that are quantized, or no block between those that stay whole.
        """
        sizes = sizes_of(_plain(shapes), self.spared)
        return [_plan(sizes, groups, channels) for groups, channels in steps(sizes)]

    def reads(self, text: TokenBlocks) -> TokenBlocks:
        """The beginnings of the first blocks: TEXTS texts of TOKENS tokens, as the public code takes."""
        return replace(text, input_ids=text.input_ids[:TEXTS, :TOKENS])

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """A forward, and gradients of states and of weights."""
        return 3.0

    def outline(self, shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`: which heads and channels go is no matter."""
        check_text(self.reads(text))
        model, chosen = _plain(shapes), plan.settings
        if not chosen["groups"] and not chosen["channels"]:
            return model
        for block in model.model.layers[chosen["first"] : chosen["last"] + 1]:
            _, groups, channels = uneven.model.widths(block)
            uneven.model.narrow(
                block, torch.arange(groups - chosen["groups"]), torch.arange(channels - chosen["channels"])
            )
        return uneven.model.fitted(model)

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """Removes the groups that matter least.

        Memory: the model in float32; for the blocks from the first that is pruned on, the residual stream before each,
        4 bytes * tokens * hidden size; the gradients of one block's weights; what TEXTS * TOKENS tokens (or one longer
        text) need in one block and in the head.

        Args:
            model: the whole model, which is used up.
            text: calibration text, of which it `reads` the beginning.
            plan: one of `plans`.

        Returns:
            A model with blocks of different widths (`models.uneven`), in the dtype of `model`; of the family's own
            class where they are the same, and `model` itself with the first plan.

        Raises:
            NotApplicable: as `plans`.
            StudyError: evaluation text, or as `importance`.
        """
        check_text(text)
        model, chosen = _plain(model), plan.settings
        if not chosen["groups"] and not chosen["channels"]:
            return model
        pruned = range(chosen["first"], chosen["last"] + 1)
        for index, found in importance(model, self.reads(text).input_ids, pruned).items():
            kept = without_least(found.groups, chosen["groups"]), without_least(found.channels, chosen["channels"])
            uneven.model.narrow(model.model.layers[index], *kept)
        return uneven.model.fitted(model)


def check_text(text: TokenBlocks) -> None:
    """Raises StudyError for text that nothing is to be chosen on, or that has no loss."""
    if text.split != "calibration":
        raise StudyError(f"heads and channels are not selected on the {text.split} text, on which they are judged")
    if text.input_ids.shape[1] < 2:
        raise StudyError("texts of one token have no loss: give longer ones")


# ------------------------------------------------------------------------------------------------ sizes


def _plain(model: nn.Module) -> nn.Module:
    """The model as one of the families whose blocks can differ; a Baichuan-7B as the Llama that it is.

    Raises:
        NotApplicable: it is none, or its weights are quantized.
    """
    model = architectures.find(model.config).exported(model)
    if type(model) not in uneven.model.FAMILIES:
        raise NotApplicable(
            f"{CARD.title} is for Llama, Mistral, Qwen2 and Qwen3 models here, whose blocks may differ in width, and "
            f"not for {type(model).__name__}"
        )
    matrices = [linear for block in model.model.layers for linear in _matrices(block)]
    if not all(isinstance(linear, nn.Linear) and linear.weight.is_floating_point() for linear in matrices):
        raise NotApplicable(f"{CARD.title} takes rows and columns out of weights, and these are quantized")
    return model


def sizes_of(model: nn.Module, spared: tuple[int, int] | None = None) -> Sizes:
    """What can be taken out of a model of one of the families `models.uneven` has; weights are not read.

    Args:
        model: the model.
        spared: blocks that stay whole at the beginning and at the end; None for the public code's, scaled.

    Raises:
        NotApplicable: no block lies between those that stay whole.
    """
    blocks = list(model.model.layers)
    first, last = scaled(len(blocks)) if spared is None else spared
    pruned = range(first, len(blocks) - last)
    if not pruned:
        raise NotApplicable(
            f"{CARD.title} leaves {first} blocks at the beginning and {last} at the end whole, and the model has "
            f"{len(blocks)}"
        )
    attention, mlp = blocks[0].self_attn, blocks[0].mlp
    heads, groups, channels = uneven.model.widths(blocks[0])
    of_query = _row(attention.q_proj) + attention.o_proj.out_features
    return Sizes(
        pruned=pruned,
        groups=groups,
        group_rows=attention.head_dim,
        group_weights=attention.head_dim
        * (heads // groups * of_query + _row(attention.k_proj) + _row(attention.v_proj)),
        channels=channels,
        channel_weights=_row(mlp.gate_proj) + _row(mlp.up_proj) + mlp.down_proj.out_features,
        blocks=sum(p.numel() for block in blocks for p in block.parameters()),
        model=sum(p.numel() for p in model.parameters()),
    )


def scaled(depth: int) -> tuple[int, int]:
    """Blocks that stay whole at the beginning and at the end: FIRST and LAST of DEPTH as parts of another depth."""
    first, last = (max(1, (2 * number * depth + DEPTH) // (2 * DEPTH)) for number in (FIRST, LAST))  # halves go up
    return first, last


def _row(linear: nn.Linear) -> int:
    """Weights that go with an output of a linear layer."""
    return linear.in_features + (linear.bias is not None)


def _least_channels(sizes: Sizes, groups: int) -> int:
    """Channels that go where the share is the smallest with which so many key-value heads go, by the public code.

    Of R rows, R - int(R (1 - r)) are to go, and so whole heads among them: one goes as soon as all its rows but a part
    of one are reached.
    """
    if groups == 0:
        return 0
    return (groups * sizes.group_rows - 1) * sizes.channels // (sizes.groups * sizes.group_rows) + 1


def steps(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Numbers of key-value heads and channels that go from each block that is pruned, by growing size.

    All that the public code reaches by one share r for both. Where r makes heads go in steps that are larger than a
    channel, what lies between is reached with more channels, until the next head costs no more.
    """
    for groups in range(sizes.groups):
        stop = sizes.channels
        if groups + 1 < sizes.groups:
            waits = -(-sizes.group_weights // sizes.channel_weights)  # channels as large as a head, rounded up
            stop = min(stop, _least_channels(sizes, groups + 1) + waits)
        for channels in range(_least_channels(sizes, groups), stop):
            yield groups, channels


def _plan(sizes: Sizes, groups: int, channels: int) -> Plan:
    removed = len(sizes.pruned) * (groups * sizes.group_weights + channels * sizes.channel_weights)
    settings = {
        "groups": groups,
        "channels": channels,
        "first": sizes.pruned.start,
        "last": sizes.pruned.stop - 1,
        "ratio": _ratio(sizes, groups, channels),
    }
    return Plan(settings, removed / sizes.model, removed / sizes.blocks)


def _ratio(sizes: Sizes, groups: int, channels: int) -> float | None:
    """The largest r with which the public code takes so many; None where there is none.

    Of N it takes N - int(N (1 - r)), which is r N rounded up: r is in ((n - 1) / N, n / N] for n of N.
    """
    rows, every = sizes.group_rows, sizes.groups * sizes.group_rows
    # In units of 1 / (channels * rows).
    above = max((channels - 1) * every, (groups * rows - 1) * sizes.channels)
    most = min(channels * every, (groups * rows + rows - 1) * sizes.channels)
    return most / (every * sizes.channels) if above < most else None


# ------------------------------------------------------------------------------------------------ importance


def importance(model: nn.Module, input_ids: Tensor, blocks: range) -> dict[int, Importance]:
    """What heads and channels matter: the sum of |w dL/dw| over their weights; L is the mean loss of all tokens.

    As many texts run at once as have TEXTS * TOKENS tokens, the public code's batch, whatever else is asked for. Blocks
    are taken backwards one at a time, so that memory holds one block's gradients.

    Args:
        model: of one of the families that `models.uneven` has, in any dtype; gradients are float32 (float64 where the
            model is). It has no gradients afterwards, and its weights are what they were.
        input_ids: int64 (texts, tokens), two tokens or more.
        blocks: indices of the blocks that it is asked for.

    Returns:
        By the index of the block.

    Raises:
        StudyError: as `check_tokens`, texts of one token, or gradients that are no finite numbers.
    """
    if input_ids.shape[1] < 2:
        raise StudyError("texts of one token have no loss: give longer ones")
    check_tokens(model, input_ids)
    stack = decoder_stack(model.eval().requires_grad_(False))
    found = {}
    # torch's other ways to attend may add up gradients in another order every time.
    with _in_float32(model), sdpa_kernel(SDPBackend.MATH):
        inputs, calls, gradients = _forward(stack, input_ids, blocks.start)
        for index in reversed(range(blocks.start, len(stack))):
            weights = [linear.weight for linear in _matrices(stack.blocks[index])] if index in blocks else []
            for weight in weights:
                weight.grad = None  # what a training has left
                weight.requires_grad_(True)
            hidden = inputs.pop()
            for place, (x, call) in enumerate(zip(hidden, calls, strict=True)):
                gradients[place] = _backward(stack, index, x, call, gradients[place])
            if weights:
                found[index] = _summed(stack.blocks[index])
            for weight in weights:
                weight.grad = None
                weight.requires_grad_(False)
    if not all(part.isfinite().all() for of in found.values() for part in (of.groups, of.channels)):
        raise StudyError("the gradient is NaN or infinite: check the weights")
    return dict(sorted(found.items()))


def _forward(
    stack: DecoderStack, input_ids: Tensor, first: int
) -> tuple[list[list[Tensor]], list[BlockCalls], list[Tensor]]:
    """X (texts, tokens, hidden size) of each batch before each block from `first` on; what blocks are called with;
    dL/dX after the last block."""
    targets = input_ids[:, 1:].numel()
    batches = input_ids.split(max(1, TEXTS * TOKENS // input_ids.shape[1]))
    started = [stack.start(batch) for batch in batches]
    hidden, calls = [x for x, _ in started], [call for _, call in started]
    inputs = []
    for index in range(len(stack)):
        if index >= first:
            inputs.append(hidden)
        hidden = [stack.run_block(index, x, call) for x, call in zip(hidden, calls, strict=True)]
    return inputs, calls, [_loss_gradient(stack, x, ids, targets) for x, ids in zip(hidden, batches, strict=True)]


@torch.enable_grad()
def _loss_gradient(stack: DecoderStack, hidden: Tensor, input_ids: Tensor, targets: int) -> Tensor:
    """dL/dX after the last block, of one batch's part in the mean over all targets."""
    x = hidden.detach().requires_grad_(True)
    (norm,) = stack.final
    logits = stack.head(norm(x[:, :-1])).flatten(0, 1)  # (texts * (tokens - 1), vocabulary)
    loss = F.cross_entropy(logits, input_ids[:, 1:].flatten().to(logits.device), reduction="sum") / targets
    return torch.autograd.grad(loss, x)[0]


@torch.enable_grad()
def _backward(stack: DecoderStack, index: int, hidden: Tensor, call: BlockCalls, gradient: Tensor) -> Tensor:
    """dL/dX before a block from that after it; adds to the gradients of those of its weights that want one."""
    x = hidden.detach().requires_grad_(True)
    args, kwargs = call.arguments(index)
    out = stack.architecture.run_block(stack.blocks[index], x, args, kwargs)
    out = out[0] if isinstance(out, tuple | list) else out
    torch.autograd.backward(out, gradient.to(out.device))
    assert x.grad is not None, "a block depends on its input"
    return x.grad


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """The model's weights in float32, where they are in 16 bits; every one of these is a number of float32 too."""
    halves = [(p, p.dtype) for p in model.parameters() if p.dtype.itemsize < 4]
    try:
        for parameter, _ in halves:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in halves:
            parameter.data = parameter.data.to(dtype)


def _matrices(block: nn.Module) -> Sequence[nn.Linear]:
    """The weights of a block that groups have parts of."""
    attention, mlp = block.self_attn, block.mlp
    of_attention = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return (*of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj)


@torch.no_grad()
def _summed(block: nn.Module) -> Importance:
    """|w dL/dw| of a block's weights, summed over each group."""
    groups = uneven.model.widths(block).groups
    products = [(linear.weight * linear.weight.grad).abs() for linear in _matrices(block)]
    *rows_of_attention, outputs, gate, up, down = products
    # The rows of a key-value head lie side by side, and so do those of the query heads that share it.
    of_groups = [rows.sum(1, dtype=torch.float64).unflatten(0, (groups, -1)).sum(1) for rows in rows_of_attention]
    of_groups.append(outputs.sum(0, dtype=torch.float64).unflatten(0, (groups, -1)).sum(1))
    of_channels = gate.sum(1, dtype=torch.float64) + up.sum(1, dtype=torch.float64) + down.sum(0, dtype=torch.float64)
    return Importance(torch.stack(of_groups).sum(0).cpu(), of_channels.cpu())


def without_least(importance: Tensor, number: int) -> Tensor:
    """Indices, ascending, of what stays when so many go that matter least; of those that matter alike the first go."""
    return torch.argsort(importance, stable=True)[number:].sort().values
