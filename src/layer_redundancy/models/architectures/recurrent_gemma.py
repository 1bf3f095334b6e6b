"""RecurrentGemma, whose config holds a pattern that its blocks repeat."""

from typing import Any

from torch import Tensor, nn

from layer_redundancy.models.architectures.architecture import Architecture


class RecurrentGemma(Architecture):
    """RecurrentGemma: a pattern as long as the kept blocks says what each of them is."""

    def prepare(self, model: nn.Module) -> None:
        """Lets what its recurrences keep after a forward be numbers, without the graph of that forward (in place)."""
        for module in model.modules():
            if "recurrent_states" in vars(module) and _without_graph not in module._forward_hooks.values():
                module.register_forward_hook(_without_graph)

    def settings_of_kept(self, config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
        return {"block_types": [config.layers_block_type[i] for i in kept]}


def _without_graph(module: nn.Module, _: tuple, output: Any) -> None:
    if isinstance(module.recurrent_states, Tensor):
        module.recurrent_states = module.recurrent_states.detach()


ARCHITECTURE = RecurrentGemma(model_types=("recurrent_gemma",))
