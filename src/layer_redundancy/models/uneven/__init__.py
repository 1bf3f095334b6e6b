"""Llama-like models whose blocks differ in width. Importing it makes transformers know them."""

from layer_redundancy.models.uneven import model as model
