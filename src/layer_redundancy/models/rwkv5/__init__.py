"""RWKV-5. Importing it makes transformers know the architecture."""

from layer_redundancy.models.rwkv5 import model as model
