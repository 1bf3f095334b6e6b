"""GPT-2, whose linear layers are Conv1D: weights are stored (in, out)."""

from layer_redundancy.models.architectures.architecture import Architecture, Attention, Layout

ARCHITECTURE = Architecture(
    model_types=("gpt2", "gpt_bigcode"),
    layouts=(Layout("transformer.h", ("transformer.ln_f",)),),
    attentions=(Attention("attn", "c_proj", heads_dim=0),),
)
