"""Baichuan and Baichuan 2 as `models.baichuan` has them: laid out as Llama."""

from typing import Any

from torch import nn

from layer_redundancy.models.architectures.architecture import Architecture


class Baichuan(Architecture):
    """Baichuan: the 7B is written as the Llama that it is, and tokenizers are read without the code beside them."""

    def register(self) -> None:
        import layer_redundancy.models.baichuan  # noqa: F401

    def tokenizer(self, name: str, source: str, revision: str | None, config: Any) -> Any | None:
        from layer_redundancy.models.baichuan import tokenizer

        # AutoTokenizer would run the hub's code for it where that is allowed.
        return tokenizer.load(source, revision)

    def exported(self, model: nn.Module) -> nn.Module:
        from layer_redundancy.models.baichuan.model import as_llama, is_rotary

        return as_llama(model) if is_rotary(model) else model


ARCHITECTURE = Baichuan(model_types=("baichuan",))
