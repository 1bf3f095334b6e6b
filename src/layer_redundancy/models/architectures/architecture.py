"""What the study has to know of a model family. Whatever a family does not declare is as in Llama."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Attention:
    """Where a block keeps its query heads.

    Attributes:
        path: path from the block to its attention.
        projection: name of the output projection in the attention.
    """

    path: str
    projection: str


# Names that transformers has for it, the first that fits is taken.
ATTENTIONS = tuple(
    Attention(*names)
    for names in (
        ("self_attn", "o_proj"),
        ("self_attn", "out_proj"),
        ("self_attn", "dense"),
        ("self_attention", "dense"),
        ("attention", "dense"),
        ("attention.output", "dense"),
        ("attention", "o_proj"),
        ("attention", "out_proj"),
        ("attn", "c_proj"),
        ("attn", "out_proj"),
        ("attn", "o_proj"),
        ("attn", "Wo"),
        ("attn.attention", "out_proj"),
        ("norm_attn_norm.attn", "out_proj"),
        ("temporal_block", "o_proj"),
        ("mixer", "o_proj"),
        ("multi_head_attention", "dense"),
    )
)


def num_blocks(config: Any) -> int | None:
    """How many residual blocks a model of this config has; None where it does not say.

    In the config of an encoder-decoder, of which only the decoder is built, `num_hidden_layers` means the encoder.
    """
    text = config.get_text_config(decoder=True)
    names = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
    return next((number for name in names if (number := getattr(text, name, None))), None)


@dataclass(frozen=True)
class Architecture:
    """A model family as transformers has it (or as `models/` has it).

    Attributes:
        model_types: the `model_type` of each config that belongs to this family.
        attentions: where its heads lie; the first that fits is taken, and none is for blocks without attention.
        corrected_heads: how often the values of models without some heads were found wrong and put right.
        corrected_prefixes: the same of values of sequences that share a beginning.
        whole_when_packed: weights that stay in their own dtype where a quantized checkpoint is written.
        file_suffixes: suffixes of single files in which its authors publish checkpoints; see `folder`.
        carries_state: whether its blocks carry a state that sequences can start from; see `run_block_from`.
        masks_padding: whether padding on the left that is masked leaves no trace in this state.
        blocks_can_go: whether the other blocks still fit together where one is removed.
    """

    model_types: tuple[str, ...] = ()
    attentions: tuple[Attention, ...] = ATTENTIONS
    corrected_heads: int = 0
    corrected_prefixes: int = 0
    whole_when_packed: frozenset[str] = frozenset()
    file_suffixes: tuple[str, ...] = ()
    carries_state: bool = False
    masks_padding: bool = False
    blocks_can_go: bool = True

    def register(self) -> None:
        """Makes transformers know the family, where it does not by itself."""

    def folder(self, file: Path) -> Path:
        """A folder for `from_pretrained`, made of a checkpoint file with one of `file_suffixes`.

        Raises:
            StudyError: the file cannot be read, or holds another model.
        """
        raise NotImplementedError(f"{type(self).__name__} names file_suffixes, so it has to override folder()")

    def tokenizer(self, name: str, source: str, revision: str | None, config: Any) -> Any | None:
        """The tokenizer of a checkpoint; None for what AutoTokenizer loads.

        Args:
            name: the model's name, for messages.
            source: folder or hub id of the checkpoint.
            revision: the revision to ask the hub for.
            config: the model's config.

        Raises:
            StudyError: there is none.
            Exception: whatever the hub's client raises.
        """
        return None

    def blocks(self, model: nn.Module) -> tuple[nn.Module, str] | None:
        """Where the residual blocks lie: the module that keeps them, and its attribute; None where there are none.

        It is the list of as many modules as the config names blocks, in the language model and not in a tower for
        images or sound, which has a config of its own; the one with most weights, should there be several.
        """
        text, number = model.config.get_text_config(decoder=True), num_blocks(model.config)
        towers = [
            f"{name}."
            for name, module in model.named_modules()
            if name and getattr(module, "config", None) is not None
            if type(module.config) not in (type(model.config), type(text))
        ]
        found = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == number and not name.startswith(tuple(towers))
        ]
        if not number or not found:
            return None
        name, _ = max(found, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
        parent, _, attribute = name.rpartition(".")
        return model.get_submodule(parent), attribute

    def final(self, parent: nn.Module, blocks: str) -> tuple[nn.Module, ...]:
        """The norm that follows the blocks, and a projection after it, among the modules beside the blocks."""
        after = re.compile(r"(?!.*embed(ding)?s?_?layer_?norm|layer_?norm_embedding).*norm|ln_(f|out)$|project_out$")
        return tuple(m for name, m in parent.named_children() if name != blocks and after.match(name))

    def prepare(self, model: nn.Module) -> None:
        """Undoes (in place) what keeps a model in eval mode from being its blocks one after the other."""

    def keeps_keys_and_values(self, model: nn.Module) -> bool:
        """Whether a prefix can be kept as keys and values; False where the model carries a state instead."""
        return not getattr(model, "_is_stateful", False)

    def starts_from_states(self, model: nn.Module) -> bool:
        """Whether sequences of this model can start from a state, where it is."""
        return self.carries_state

    def first_residual(self, first_block: nn.Module, hidden: Tensor) -> Tensor:
        """X_0 (batch, tokens, hidden size), made of what the model's own forward hands to its first block."""
        return hidden

    def run_block(self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls a block on X (batch, tokens, hidden size); returns what it returns, X or a tuple that X is first in."""
        return block(hidden, *args, **kwargs)

    def run_block_from(
        self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any], state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Calls a block on sequences that go on from a state; returns X after it, and the state after the last token.

        Args:
            block: the block.
            hidden: X (batch, tokens, hidden size) before it; where the state after it matters, without padding, unless
                the family `masks_padding`.
            args, kwargs: what the block is called with besides, as for sequences that begin here.
            state: what the block remembers of what came before, tensors (batch, ...); None at the beginning.
        """
        raise NotImplementedError(f"{type(self).__name__} carries_state, so it has to override run_block_from()")

    def replace_first_block(self, old: nn.Module, new: nn.Module) -> None:
        """Hands over (in place) what a model keeps in whichever block comes first."""

    def settings_of_kept(self, config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
        """Settings of the language model's config whose values follow from the kept blocks by a rule of the family.

        What other families have too is in `models.pruned_config`.

        Args:
            config: config of the whole language model.
            kept: indices of the kept blocks, ascending.
        """
        return {}

    def exported(self, model: nn.Module) -> nn.Module:
        """The model to write as a checkpoint, with shared parts: itself, or the same model as another family."""
        return model
