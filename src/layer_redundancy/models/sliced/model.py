"""Llama and its like with a residual stream of several widths: what is left of a model by SliceGPT.

Ashkboos et al., "SliceGPT: Compress Large Language Models by Deleting Rows and Columns" (arXiv 2401.15024), section 3;
the same blocks as CompressedLlamaDecoderLayer of microsoft/TransformerCompression. Three things are otherwise than in
the model that was sliced. Each place of the stream has a width and a basis of its own, so what passes by attention or
an MLP is multiplied by a matrix that leads to the next place's basis (a shortcut). Norms have no weights, and divide by
the original width, of which the rest of the stream was cut off. A head that is the embedding is read through a matrix
(`FoldedHead`), since embedding and head are in two bases and the last norm's weights lie between them.

Importing this module makes AutoConfig, AutoModel and AutoModelForCausalLM know these models; what `save_pretrained`
writes is loaded by nothing else.
"""

from functools import cache
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from layer_redundancy.core.errors import StudyError

# What reads the stream and what writes to it, by path in a block.
ATTENTION_READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_WRITES = "self_attn.o_proj"
MLP_READS = ("mlp.gate_proj", "mlp.up_proj")
MLP_WRITES = "mlp.down_proj"


class SlicedConfig:
    """What a sliced model's config has besides that of the model that was sliced: comes before its class.

    `hidden_size` stays the original width; `tie_word_embeddings` says that the head is a `FoldedHead`.

    Attributes:
        residual_widths: widths of the residual stream: after the embedding, and then after each block's attention and
            after each block's MLP, 2 * num_hidden_layers + 1 in all; the original width everywhere where not given.
    """

    hidden_size: Any
    num_hidden_layers: Any
    residual_widths: Any

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        width, places = self.hidden_size, 2 * self.num_hidden_layers + 1
        if self.residual_widths is None:
            self.residual_widths = [width] * places
        if len(self.residual_widths) != places or not all(0 < w <= width for w in self.residual_widths):
            raise StudyError(
                f"residual_widths must be {places} numbers from 1 to {width} for {self.num_hidden_layers} blocks, not "
                f"{self.residual_widths}"
            )


class RootMeanSquare(nn.Module):
    """RMSNorm without weights, of a stream that had `width` entries, some of which may have been cut off.

    Args:
        width: the original width, by which the sum of squares is divided.
        eps: what is added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., any width) -> the same shape and dtype; in float32 inside, as Llama's."""
        x = hidden_states.float()
        mean_square = x.square().sum(-1, keepdim=True) / self.width
        return (x * (mean_square + self.eps).rsqrt()).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}"


class SlicedBlock(nn.Module):
    """A block of Llama with three widths of its stream: before it, between attention and MLP, and after it."""

    def slice(self, before: int, between: int, after: int, width: int, eps: float) -> None:
        """Gives a block of the original width these widths, with new weights wherever the stream comes in (in place).

        Args:
            before, between, after: the three widths.
            width: the original width.
            eps: of the norms.
        """
        for path, inputs in [(p, before) for p in ATTENTION_READS] + [(p, between) for p in MLP_READS]:
            _replace(self, path, inputs, None)
        for path, outputs in ((ATTENTION_WRITES, between), (MLP_WRITES, after)):
            _replace(self, path, None, outputs)
        self.input_layernorm, self.post_attention_layernorm = RootMeanSquare(width, eps), RootMeanSquare(width, eps)
        self.attention_shortcut = nn.Linear(before, between, bias=False)
        self.mlp_shortcut = nn.Linear(between, after, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """X (batch, tokens, width before) -> (batch, tokens, width after); the rest as LlamaDecoderLayer."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attention_shortcut(hidden_states) + attended
        return self.mlp_shortcut(hidden_states) + self.mlp(self.post_attention_layernorm(hidden_states))


@cache
def sliced_class(block: type) -> type:
    """The class of a family's blocks once they are sliced: still the family's, by which transformers knows blocks."""
    return type(f"Sliced{block.__name__}", (SlicedBlock, block), {})


class FoldedHead(nn.Module):
    """A head that is the embedding, in another basis than the stream's last: logits = x F E^T.

    Args:
        last: width of the stream's last place.
        first: width of the embedding.
        vocabulary: number of tokens.

    Attributes:
        fold: F (last, first), as a linear layer, whose weight is F^T.
        vocabulary: E (vocabulary, first), as a linear layer; its weight is the embedding's.
    """

    def __init__(self, last: int, first: int, vocabulary: int) -> None:
        super().__init__()
        self.fold = nn.Linear(last, first, bias=False)
        self.vocabulary = nn.Linear(first, vocabulary, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., last) -> logits (..., vocabulary)."""
        return self.vocabulary(self.fold(hidden_states))


def _replace(block: nn.Module, path: str, inputs: int | None, outputs: int | None) -> None:
    """Puts a linear layer of other sizes in the place of one (None for those that stay)."""
    name, _, last = path.rpartition(".")
    parent = block.get_submodule(name)
    old = getattr(parent, last)
    new = nn.Linear(inputs or old.in_features, outputs or old.out_features, bias=old.bias is not None)
    setattr(parent, last, new)


class SlicedModel(nn.Module):
    """What makes a causal language model with Llama's layout a sliced one: comes before its class."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        widths, inner, vocabulary = config.residual_widths, self.model, config.vocab_size
        inner.embed_tokens = nn.Embedding(vocabulary, widths[0], inner.padding_idx)
        for i, block in enumerate(inner.layers):
            kind: Any = type(block)
            block.__class__ = sliced_class(kind)
            block.slice(*widths[2 * i : 2 * i + 3], config.hidden_size, config.rms_norm_eps)
        inner._no_split_modules = {type(block).__name__ for block in inner.layers}  # of several devices
        inner.norm = RootMeanSquare(config.hidden_size, config.rms_norm_eps)
        if config.tie_word_embeddings:
            self.lm_head = FoldedHead(widths[-1], widths[0], vocabulary)
            self._tied_weights_keys = {"lm_head.vocabulary.weight": "model.embed_tokens.weight"}
        else:
            self.lm_head = nn.Linear(widths[-1], vocabulary, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer whose outputs are the logits."""
        return self.lm_head.vocabulary if isinstance(self.lm_head, FoldedHead) else self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Puts another in its place."""
        if isinstance(self.lm_head, FoldedHead):
            self.lm_head.vocabulary = new_embeddings
        else:
            self.lm_head = new_embeddings


@strict
class SlicedLlamaConfig(SlicedConfig, LlamaConfig):
    """Config of a sliced Llama."""

    model_type = "sliced_llama"

    residual_widths: list[int] | None = None


@strict
class SlicedMistralConfig(SlicedConfig, MistralConfig):
    """Config of a sliced Mistral."""

    model_type = "sliced_mistral"

    residual_widths: list[int] | None = None


@strict
class SlicedQwen2Config(SlicedConfig, Qwen2Config):
    """Config of a sliced Qwen2."""

    model_type = "sliced_qwen2"

    residual_widths: list[int] | None = None


@strict
class SlicedQwen3Config(SlicedConfig, Qwen3Config):
    """Config of a sliced Qwen3."""

    model_type = "sliced_qwen3"

    residual_widths: list[int] | None = None


class SlicedLlamaForCausalLM(SlicedModel, LlamaForCausalLM):
    """A sliced Llama."""

    config: SlicedLlamaConfig


class SlicedMistralForCausalLM(SlicedModel, MistralForCausalLM):
    """A sliced Mistral."""

    config: SlicedMistralConfig


class SlicedQwen2ForCausalLM(SlicedModel, Qwen2ForCausalLM):
    """A sliced Qwen2."""

    config: SlicedQwen2Config


class SlicedQwen3ForCausalLM(SlicedModel, Qwen3ForCausalLM):
    """A sliced Qwen3."""

    config: SlicedQwen3Config


# The classes that can be sliced, and what they become.
SLICED: dict[type[nn.Module], type[nn.Module]] = {
    LlamaForCausalLM: SlicedLlamaForCausalLM,
    MistralForCausalLM: SlicedMistralForCausalLM,
    Qwen2ForCausalLM: SlicedQwen2ForCausalLM,
    Qwen3ForCausalLM: SlicedQwen3ForCausalLM,
}
for _kind, _config, _class in (
    ("sliced_llama", SlicedLlamaConfig, SlicedLlamaForCausalLM),
    ("sliced_mistral", SlicedMistralConfig, SlicedMistralForCausalLM),
    ("sliced_qwen2", SlicedQwen2Config, SlicedQwen2ForCausalLM),
    ("sliced_qwen3", SlicedQwen3Config, SlicedQwen3ForCausalLM),
):
    AutoConfig.register(_kind, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _class, exist_ok=True)
