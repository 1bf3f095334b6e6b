"""BART, and the decoders that are built like its own, which count positions from the length of the cache."""

from torch import nn

from layer_redundancy.models.architectures.architecture import Architecture


class Bart(Architecture):
    """BART's decoder: prefixes of different lengths, padded on the left, would all count as the longest."""

    def keeps_keys_and_values(self, model: nn.Module) -> bool:
        return False


# Once prefixes were shared all the same.
ARCHITECTURE = Bart(
    model_types=("bart", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
    corrected_prefixes=1,
)
