"""GPT-Neo, which writes the kinds of its blocks' attention twice."""

from typing import Any

from layer_redundancy.models.architectures.architecture import Architecture


class GPTNeo(Architecture):
    """GPT-Neo: `attention_layers` follows from `attention_types` when the config is read again."""

    def settings_of_kept(self, config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
        return {"attention_types": [[[config.attention_layers[i] for i in kept], 1]]}


ARCHITECTURE = GPTNeo(model_types=("gpt_neo",))
