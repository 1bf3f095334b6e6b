"""Llama, and the families that lay out their parts as it does."""

from layer_redundancy.models.architectures.architecture import Architecture

ARCHITECTURE = Architecture(model_types=("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"))
