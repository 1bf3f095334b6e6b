"""Jamba, whose config says which blocks have attention, and which have experts, by a period and an offset."""

from typing import Any

from layer_redundancy.models.architectures.architecture import Architecture


class Jamba(Architecture):
    """Jamba: some sets of kept blocks have a period of their own, others cannot be written as a config."""

    def settings_of_kept(self, config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
        kinds = [config.layers_block_type[i] == "attention" for i in kept]
        experts = [config.layers_num_experts[i] > 1 for i in kept]
        return _periodic("attn_layer", kinds) | _periodic("expert_layer", experts)


def _periodic(name: str, has: list[bool]) -> dict[str, int]:
    """The shortest period, and the offset, that says which blocks have something; empty where there is none."""
    # One that lies beyond the last block is for none of them.
    for period in range(1, len(has) + 2):
        for offset in range(period):
            if has == [i % period == offset for i in range(len(has))]:
                return {f"{name}_period": period, f"{name}_offset": offset}
    return {}


ARCHITECTURE = Jamba(model_types=("jamba",))
