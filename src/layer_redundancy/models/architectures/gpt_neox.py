"""GPT-NeoX and Pythia."""

from layer_redundancy.models.architectures.architecture import Architecture, Attention, Layout

ARCHITECTURE = Architecture(
    model_types=("gpt_neox",),
    layouts=(Layout("gpt_neox.layers", ("gpt_neox.final_layer_norm",)),),
    attentions=(Attention("attention", "dense"),),
    # transformers leaves a head that it renames while it loads packed weights in the file's dtype.
    whole_when_packed=frozenset({"lm_head.weight"}),
)
