"""OPT; the 350M has a projection after its blocks, and no final norm."""

from layer_redundancy.models.architectures.architecture import Architecture, Attention, Layout

ARCHITECTURE = Architecture(
    model_types=("opt",),
    layouts=(Layout("model.decoder.layers", ("model.decoder.final_layer_norm", "model.decoder.project_out")),),
    attentions=(Attention("self_attn", "out_proj"),),
)
