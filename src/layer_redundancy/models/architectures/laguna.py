"""Laguna, whose blocks may have different numbers of heads."""

from layer_redundancy.models.architectures.architecture import Architecture

# Once every block was taken to have the config's number.
ARCHITECTURE = Architecture(model_types=("laguna",), corrected_heads=1)
