"""Llama, Mistral, Qwen2 and Qwen3 models whose blocks differ in their numbers of heads and of MLP channels.

Methods that remove heads and channels leave blocks of different widths, for which transformers has no config: public
code keeps such models as pickles. Here they are models of their own, `uneven_llama` and so on: the family's own classes
with its own decoder layers, each made for its own widths, and a config that lists these. Where all blocks have the same
widths, `fitted` gives the plain model of the family, which plain transformers loads.

Importing this module makes AutoConfig and AutoModelForCausalLM know them.
"""

import copy
from typing import Any, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
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

# What a config says of the widths of all blocks, and of each block; "layer" in the latter's names lets surgery keep
# those of the kept blocks.
EVERYWHERE = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
LISTS = ("layer_attention_heads", "layer_key_value_heads", "layer_intermediate_sizes")


class Widths(NamedTuple):
    """How wide a block is.

    Attributes:
        heads: its query heads.
        groups: its key-value heads; each is shared by heads / groups query heads.
        channels: channels of its MLP.
    """

    heads: int
    groups: int
    channels: int


def widths(block: nn.Module) -> Widths:
    """The widths of a Llama-like block."""
    attention, mlp = block.self_attn, block.mlp
    size = attention.head_dim
    return Widths(
        attention.q_proj.out_features // size, attention.k_proj.out_features // size, mlp.up_proj.out_features
    )


# ------------------------------------------------------------------------------------------------ the models


def _family(base_config: Any, base_model: Any) -> tuple[Any, Any]:
    """The config and the model of a family whose blocks may differ."""

    @strict  # as the family's own, whose types hold otherwise
    class Config(base_config):
        """The family's config, and the widths of each block; what it says of all blocks is of those that are whole."""

        model_type = f"uneven_{base_config.model_type}"

        layer_attention_heads: list[int] | None = None
        layer_key_value_heads: list[int] | None = None
        layer_intermediate_sizes: list[int] | None = None

        def __post_init__(self, **kwargs: Any) -> None:
            super().__post_init__(**kwargs)
            for name, everywhere in zip(LISTS, EVERYWHERE, strict=True):
                listed = getattr(self, name)
                if listed is None:
                    setattr(self, name, [getattr(self, everywhere)] * self.num_hidden_layers)
                elif len(listed) != self.num_hidden_layers:
                    raise StudyError(
                        f"{name} of an {self.model_type} config has {len(listed)} entries for {self.num_hidden_layers} "
                        "blocks"
                    )

    class Model(base_model):
        """The family's model, with blocks of their own widths."""

        config: Config
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for index, block in enumerate(self.model.layers):
                wanted = Widths(*(getattr(config, name)[index] for name in LISTS))
                if widths(block) != wanted:
                    self.model.layers[index] = _block(type(block), config, index, wanted)
            self.post_init()

    name = base_model.__name__.removesuffix("ForCausalLM")
    for made, kind in ((Config, f"Uneven{name}Config"), (Model, f"Uneven{name}ForCausalLM")):
        made.__name__ = made.__qualname__ = kind
    AutoConfig.register(f"uneven_{base_config.model_type}", Config, exist_ok=True)
    AutoModelForCausalLM.register(Config, Model, exist_ok=True)
    return Config, Model


def _block(kind: Any, config: Any, index: int, wanted: Widths) -> nn.Module:
    """A decoder layer of that class for other widths than the config says."""
    own = copy.copy(config)
    own.head_dim = _head_dim(config)
    for name, value in zip(EVERYWHERE, wanted, strict=True):
        setattr(own, name, value)
    block = kind(own, index)
    _point(block, own, config)
    return block


def _point(module: nn.Module, old: Any, new: Any) -> None:
    """Lets all parts that read their settings (such as the way to attend) from one config read them from another."""
    for part in module.modules():
        if vars(part).get("config") is old:
            part.config = new


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


UnevenLlamaConfig, UnevenLlamaForCausalLM = _family(LlamaConfig, LlamaForCausalLM)
UnevenMistralConfig, UnevenMistralForCausalLM = _family(MistralConfig, MistralForCausalLM)
UnevenQwen2Config, UnevenQwen2ForCausalLM = _family(Qwen2Config, Qwen2ForCausalLM)
UnevenQwen3Config, UnevenQwen3ForCausalLM = _family(Qwen3Config, Qwen3ForCausalLM)

# The plain model of each family -> the one whose blocks may differ.
FAMILIES: dict[type, Any] = {
    LlamaForCausalLM: UnevenLlamaForCausalLM,
    MistralForCausalLM: UnevenMistralForCausalLM,
    Qwen2ForCausalLM: UnevenQwen2ForCausalLM,
    Qwen3ForCausalLM: UnevenQwen3ForCausalLM,
}


# ------------------------------------------------------------------------------------------------ narrowing


def narrow(block: nn.Module, groups: Tensor, channels: Tensor) -> None:
    """Keeps some key-value heads with their query heads, and some MLP channels, of a Llama-like block (in place).

    The weights that stay are bit by bit those that were there. What goes contributes nothing else: the block gives what
    it gave with zeros in the columns of its output projections where the others were.

    Args:
        block: a decoder layer of one of `FAMILIES`, or of those whose blocks differ.
        groups: int64, indices of the key-value heads to keep.
        channels: int64, indices of the channels to keep.
    """
    attention, mlp = block.self_attn, block.mlp
    keys = _spread(groups, attention.head_dim)
    queries = _spread(groups, attention.head_dim * attention.num_key_value_groups)
    _take(attention.q_proj, 0, queries)
    _take(attention.k_proj, 0, keys)
    _take(attention.v_proj, 0, keys)
    _take(attention.o_proj, 1, queries)
    _take(mlp.gate_proj, 0, channels)
    _take(mlp.up_proj, 0, channels)
    _take(mlp.down_proj, 1, channels)
    mlp.intermediate_size = len(channels)


def _spread(indices: Tensor, size: int) -> Tensor:
    """Indices of the rows of parts of `size` rows each, which lie one after the other."""
    return (indices[:, None] * size + torch.arange(size)).flatten()


def _take(linear: nn.Linear, dim: int, kept: Tensor) -> None:
    """Keeps some outputs (dim 0) or inputs (dim 1) of a linear layer."""
    kept = kept.to(linear.weight.device)
    for name in ("weight", "bias") if dim == 0 else ("weight",):
        if (old := getattr(linear, name)) is not None:
            setattr(linear, name, nn.Parameter(old.detach().index_select(dim, kept), requires_grad=False))
    setattr(linear, ("out_features", "in_features")[dim], len(kept))


def fitted(model: nn.Module) -> nn.Module:
    """A model whose blocks were narrowed, as the class that says so; itself where it says so already.

    Args:
        model: one of `FAMILIES`, plain or uneven, whose config may not be true of its blocks any more.

    Returns:
        The plain model of its family where all blocks have the same widths, and the family's config can say so (Llama's
        wants a hidden size that the number of heads divides); else the uneven one. Its parts are those of `model`, and
        read their settings from its config.
    """
    found = [widths(block) for block in model.model.layers]
    plain = next(kind for kind, uneven in FAMILIES.items() if type(model) in (kind, uneven))
    if len(set(found)) == 1:
        even = dict(zip(EVERYWHERE, found[0], strict=True))
        try:
            return _as(plain, model, even | {"head_dim": model.model.layers[0].self_attn.head_dim})
        except StrictDataclassError:
            pass
    return _as(
        FAMILIES[plain], model, {name: list(of) for name, of in zip(LISTS, zip(*found, strict=True), strict=True)}
    )


def _as(kind: Any, model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """The same parts as a model of another class, with other settings.

    Raises:
        StrictDataclassError: the class's config cannot be like this.
    """
    old, drop = model.config, {"model_type", "architectures", *LISTS}
    if type(model) is kind and all(getattr(old, name, value) == value for name, value in settings.items()):
        return model
    config = kind.config_class(**{name: value for name, value in old.to_dict().items() if name not in drop} | settings)
    config._name_or_path = old._name_or_path
    config._attn_implementation = old._attn_implementation
    empty = copy.copy(config)
    empty.num_hidden_layers = 0
    with torch.device("meta"):
        made = kind(empty)
    for part in (made, made.model):
        part.config = config
    for name, part in model.model.named_children():
        setattr(made.model, name, part)
    made.lm_head = model.lm_head
    _point(made, old, config)
    for name in ("generation_config", "hf_device_map", "removed_steps", "not_loaded"):
        if name in vars(model):
            setattr(made, name, getattr(model, name))
    return made.train(model.training)
