"""Which layers of this language model can go? A reproducible study of layer redundancy."""

__version__ = "0.1.0"
