"""Baichuan 2. Importing it makes transformers know the architecture."""

from layer_redundancy.models.baichuan import model as model
