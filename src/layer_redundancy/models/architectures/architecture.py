"""What the study has to know of a model family. Whatever a family does not declare is as in Llama."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where a model keeps its residual blocks and what follows them.

    Attributes:
        blocks: path from the model to the ModuleList of blocks.
        final: paths to the modules applied after the last block, those that are there.
    """

    blocks: str
    final: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """Where a block keeps its query heads.

    Attributes:
        path: path from the block to its attention.
        projection: name of the output projection in the attention.
        heads_dim: dimension of the projection's weight along which heads lie: 1 in nn.Linear, 0 in GPT-2's Conv1D.
    """

    path: str
    projection: str
    heads_dim: int = 1


@dataclass(frozen=True)
class Architecture:
    """A model family as transformers has it (or as `models/` has it).

    Attributes:
        model_types: the `model_type` of each config that belongs to this family.
        layouts: where its blocks lie; the first that fits is taken.
        attentions: where its heads lie; the first that fits is taken, and none is for blocks without attention.
        whole_when_packed: weights that stay in their own dtype where a quantized checkpoint is written.
        file_suffixes: suffixes of single files in which its authors publish checkpoints; see `folder`.
    """

    model_types: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = (Layout("model.layers", ("model.norm",)),)
    attentions: tuple[Attention, ...] = (Attention("self_attn", "o_proj"),)
    whole_when_packed: frozenset[str] = frozenset()
    file_suffixes: tuple[str, ...] = ()

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

    def prepare(self, model: nn.Module) -> None:
        """Undoes (in place) what keeps a model in eval mode from being its blocks one after the other."""

    def keeps_keys_and_values(self, model: nn.Module) -> bool:
        """Whether a prefix can be kept as keys and values; False where the model carries a state instead."""
        return not getattr(model, "_is_stateful", False)

    def recorded(self, hidden: Tensor) -> Any:
        """What a block that does nothing returns to the model's own forward."""
        return hidden

    def first_residual(self, first_block: nn.Module, hidden: Tensor) -> Tensor:
        """X_0 (batch, tokens, hidden size), made of what the model's own forward hands to its first block."""
        return hidden

    def run_block(self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls a block on X (batch, tokens, hidden size); returns what it returns, X or a tuple that X is first in."""
        return block(hidden, *args, **kwargs)

    def replace_first_block(self, old: nn.Module, new: nn.Module) -> None:
        """Hands over (in place) what a model keeps in whichever block comes first."""

    def exported(self, model: nn.Module) -> nn.Module:
        """The model to write as a checkpoint, with shared parts: itself, or the same model as another family."""
        return model
