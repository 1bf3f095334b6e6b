"""RecurrentGemma, whose config holds a pattern that its blocks repeat."""

from typing import Any

from layer_redundancy.models.architectures.architecture import Architecture


class RecurrentGemma(Architecture):
    """RecurrentGemma: a pattern as long as the kept blocks says what each of them is."""

    def settings_of_kept(self, config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
        return {"block_types": [config.layers_block_type[i] for i in kept]}


ARCHITECTURE = RecurrentGemma(model_types=("recurrent_gemma",))
