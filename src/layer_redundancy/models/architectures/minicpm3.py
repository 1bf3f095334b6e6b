"""MiniCPM-3, which scales what a block adds by how many blocks there are."""

from typing import Any

from layer_redundancy.models.architectures.architecture import Architecture


class MiniCPM3(Architecture):
    """MiniCPM-3: the scale of the whole model has to stay when it loses blocks."""

    def settings_of_kept(self, config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
        return {"scale_depth": config.scale_depth * (len(kept) / config.num_hidden_layers) ** 0.5}


ARCHITECTURE = MiniCPM3(model_types=("minicpm3",))
