"""Every way to make a model smaller, by the name that tables use."""

from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError
from layer_redundancy.methods.laco import LaCo
from layer_redundancy.methods.llm_pruner import LlmPruner
from layer_redundancy.methods.magnitude_compensation import MagnitudeCompensation
from layer_redundancy.methods.method import Method
from layer_redundancy.methods.replace_me import ReplaceMe
from layer_redundancy.methods.shortgpt import SLEB, ShortGPT
from layer_redundancy.methods.slice_gpt import SliceGPT

METHODS: dict[str, Method] = {
    "shortgpt": ShortGPT(),
    "sleb": SLEB(),
    "llm_pruner": LlmPruner(),
    "slice_gpt": SliceGPT(head="untied"),
    "slice_gpt_tied": SliceGPT(head="tied"),
    "laco": LaCo(as_printed=True),
    "laco_code": LaCo(as_printed=False),
    "replace_me": ReplaceMe(),
    "magnitude_compensation": MagnitudeCompensation(),
}


def find(name: str) -> Method:
    """The method of that name. Raises StudyError where there is none."""
    if name not in METHODS:
        raise StudyError(f"unknown method {shown(name)}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
