"""RWKV-5 as `models.rwkv5` has it, which carries a state and has no attention."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layer_redundancy.core.errors import StudyError
from layer_redundancy.models.architectures.architecture import Architecture


class Rwkv5(Architecture):
    """RWKV-5: its author publishes single files, and all World models have one tokenizer."""

    def register(self) -> None:
        import layer_redundancy.models.rwkv5  # noqa: F401

    def folder(self, file: Path) -> Path:
        from layer_redundancy.models.rwkv5 import checkpoints

        return checkpoints.folder(file)

    def tokenizer(self, name: str, source: str, revision: str | None, config: Any) -> Any | None:
        from layer_redundancy.models.rwkv5.tokenizer import VOCAB_SIZE, RwkvWorldTokenizer

        if config.vocab_size == VOCAB_SIZE:  # all have the same, and their own would need code from the hub
            return RwkvWorldTokenizer()
        if Path(source).is_dir() and not (Path(source) / "tokenizer.json").is_file():
            raise StudyError(f"{name} is no World model and has no tokenizer: put its tokenizer.json beside it")
        return None

    def run_block_from(
        self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any], state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        from layer_redundancy.models.rwkv5.model import Rwkv5State

        place = block.layer_idx
        carried = Rwkv5State(place + 1)
        parts = carried.time_mix_inputs, carried.matrices, carried.channel_mix_inputs
        if state is not None:
            for part, given in zip(parts, state, strict=True):
                part[place] = given
        _, mask = args
        out = block(hidden, carried, mask)
        return out, tuple(part[place] for part in parts)


ARCHITECTURE = Rwkv5(
    model_types=("rwkv5",),
    carries_state=True,
    masks_padding=True,
    file_suffixes=(".pth", ".safetensors"),
)
