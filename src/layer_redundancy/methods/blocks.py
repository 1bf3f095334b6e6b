"""What methods that remove or merge whole blocks have in common: their sizes, and the parts of a block they change."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods.method import Plan
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import DecoderStack, decoder_stack

# A block of these and nothing else is X + attention(norm(X)), and then X + mlp(norm(X)): Llama, Mistral, Qwen2, Qwen3,
# Phi-3, Gemma, Baichuan. Others have norms after their halves, or read one norm twice.
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}

_LOGITS = 512  # positions that go through the head at once


def plans(shapes: nn.Module, most: int | None = None, **settings: Any) -> list[Plan]:
    """Plans that remove 0, 1, ... blocks, `settings["blocks"]` of them.

    Args:
        shapes: a causal language model; its weights are not read.
        most: the largest number of blocks that can go; all but one if not given.
        settings: what else decides the outcome, the same in all plans.

    Raises:
        NotApplicable: blocks differ in size, so that a number of blocks is no share of the weights.
        StudyError: the model cannot be taken apart.
    """
    blocks = decoder_stack(shapes).blocks
    sizes = {sum(p.numel() for p in block.parameters()) for block in blocks}
    if len(sizes) > 1:
        raise NotApplicable(f"the blocks of {type(shapes).__name__} differ in size: so many of them are no fixed share")
    total = sum(p.numel() for p in shapes.parameters())  # each once: parameters() leaves out what is tied
    most = len(blocks) - 1 if most is None else most
    return [
        Plan({"blocks": n, **settings}, n * next(iter(sizes)) / total, n / len(blocks), n)
        for n in range(min(most, len(blocks) - 1) + 1)
    ]


class ReadsAll:
    """A method that reads all of the calibration text, and of whose result the number of blocks alone is another."""

    def reads(self, text: TokenBlocks) -> TokenBlocks:
        """See `Method`."""
        return text

    def outline(self, shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`."""
        return outline(shapes, text, plan)


def outline(shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
    """A model without weights with as many blocks less as a plan says; see `Method.outline`."""
    calibration(text)
    return surgery.cut(shapes, range(number(plan, shapes)))


def number(plan: Plan, model: nn.Module) -> int:
    """How many blocks a plan removes.

    Raises:
        StudyError: the model has too few.
    """
    blocks, there = plan.settings["blocks"], len(decoder_stack(model))
    if not 0 <= blocks < there:
        raise StudyError(f"{blocks} blocks cannot be removed: the model has {there}, so give 0 to {there - 1}")
    return blocks


@dataclass(frozen=True)
class PreNormBlock:
    """The parts of a block X + attention(norm(X)), then X + mlp(norm(X)).

    Attributes:
        attention_out: the attention's output projection.
        mlp: the block's MLP; its output is what is added to the residual stream.
        mlp_out: the MLP's output projection.
        mlp_norm: the norm before the MLP; it is called with the residual stream that the MLP's output is added to.
    """

    attention_out: nn.Linear
    mlp: nn.Module
    mlp_out: nn.Linear
    mlp_norm: nn.Module


def pre_norm_blocks(stack: DecoderStack, title: str) -> list[PreNormBlock]:
    """The parts of every block.

    Args:
        stack: the model taken apart.
        title: the method's name, for the message.

    Raises:
        NotApplicable: blocks are made of something else, or their weights are quantized.
    """
    found = []
    for block in stack.blocks:
        parts = {name: m for name, m in block.named_children() if not isinstance(m, nn.Dropout | nn.Identity)}
        norms = [type(m).__name__ for name, m in parts.items() if name.endswith("layernorm")]
        out = getattr(parts.get("self_attn"), "o_proj", None), getattr(parts.get("mlp"), "down_proj", None)
        if set(parts) != _PARTS or not all("RMSNorm" in norm for norm in norms) or not all(map(_is_linear, out)):
            raise NotApplicable(
                f"{title} cannot be used on {type(stack.model).__name__}: it needs blocks that add attention (o_proj) "
                "and an MLP (down_proj) to the residual stream, each after an RMSNorm, with weights that are not "
                "quantized"
            )
        assert isinstance(out[0], nn.Linear) and isinstance(out[1], nn.Linear)
        found.append(PreNormBlock(out[0], parts["mlp"], out[1], parts["post_attention_layernorm"]))
    return found


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) and module.weight.is_floating_point()


def calibration(text: TokenBlocks) -> Tensor:
    """The tokens of a calibration text, int64 (blocks, length).

    Raises:
        StudyError: it is evaluation text.
    """
    if text.split != "calibration":
        raise StudyError("a model is not made smaller on the evaluation text, which it is judged on: give calibration")
    return text.input_ids


def batches(input_ids: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Rows of (blocks, length), as many at a time as hold `batch_tokens` tokens, one at least."""
    yield from input_ids.split(max(1, batch_tokens // input_ids.shape[1]))


def negative_log_likelihood(stack: DecoderStack, hidden: Tensor, input_ids: Tensor) -> float:
    """Sum over all tokens but each text's first, nats.

    Args:
        stack: the model taken apart.
        hidden: X_L (texts, length, d), before the final norm.
        input_ids: int64 (texts, length).
    """
    total = 0.0
    states, targets = hidden[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()
    for part, wanted in zip(states.split(_LOGITS), targets.split(_LOGITS), strict=True):
        logprobs = stack.logits(part).log_softmax(-1, dtype=torch.float32)
        total -= logprobs.gather(-1, wanted.to(logprobs.device)[:, None]).sum(dtype=torch.float64).item()
    return total


def double(states: Tensor) -> Tensor:
    """States in float64, which Apple's GPUs do not have: there on the processor."""
    return (states.cpu() if states.device.type == "mps" else states).double()


def change(parameter: Tensor | None, value: Tensor | None) -> None:
    """Sets a parameter's values, rounded to its own dtype; where there is no parameter, nothing."""
    if parameter is not None:
        assert value is not None, "a parameter gets a value"
        with torch.no_grad():
            parameter.copy_(value)  # rounded to its dtype
