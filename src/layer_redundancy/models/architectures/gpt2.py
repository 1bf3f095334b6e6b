"""GPT-2 as some have trained it: with attention scaled by the block's number."""

from torch import nn

from layer_redundancy.models.architectures.architecture import Architecture


class GPT2(Architecture):
    """GPT-2: what a block computes must not depend on its number, which changes when others are removed."""

    def prepare(self, model: nn.Module) -> None:
        """Moves the scale of attention by the inverse of the block's number into its queries (in place)."""
        if not model.config.scale_attn_by_inverse_layer_idx:
            return
        for block in model.transformer.h:
            attention = block.attn
            for tensor in (attention.c_attn.weight.data, attention.c_attn.bias.data):  # (in, out) and (out,)
                tensor[..., : attention.embed_dim] /= attention.layer_idx + 1
            attention.scaling *= attention.layer_idx + 1
            attention.scale_attn_by_inverse_layer_idx = False
        model.config.scale_attn_by_inverse_layer_idx = False


ARCHITECTURE = GPT2(model_types=("gpt2",))
