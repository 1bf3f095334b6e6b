"""Models whose residual stream was sliced (SliceGPT). Importing it makes transformers know them."""

from layer_redundancy.models.sliced import model as model
