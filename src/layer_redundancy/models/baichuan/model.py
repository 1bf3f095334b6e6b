"""Baichuan 2 (7B and 13B) as a transformers model, read from the published files without the code beside them.

Yang et al., "Baichuan 2: Open Large-scale Language Models" (arXiv 2309.10305), section 2; by modeling_baichuan.py of
baichuan-inc/Baichuan2-7B-Base and Baichuan2-13B-Base. The 7B is Llama with rotary positions. The 13B is Llama without
them: each head adds slope * (key's position - query's position) to what it attends by (ALiBi, arXiv 2108.12409). Two
things are stored differently, and are undone while the weights are loaded: queries', keys' and values' projections are
one matrix (`W_pack`), and the head's rows are divided by their norms before they are used (`NormHead`).

Importing this module makes AutoConfig, AutoModel, AutoModelForCausalLM and AutoTokenizer know the architecture, also
where a config names code of its own. `save_pretrained` writes the published layout again; `as_llama` gives the 7B as
the Llama that it is.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel, eager_attention_forward

from layer_redundancy.core.errors import StudyError
from layer_redundancy.models.baichuan.tokenizer import BaichuanTokenizer

ROTARY, ALIBI = "rotary", "alibi"
PUBLISHED_POSITIONS = {4096: ROTARY, 5120: ALIBI}  # by hidden size, of Baichuan(2)-7B and -13B
FIRST_VOCABULARY = 64000  # Baichuan 1, of the same model_type and layout, has a plain head
UNIT = 4e-3  # a head all of whose rows' norms are 1 to within this, bfloat16's rounding, is normalized already


@strict  # as LlamaConfig, whose types hold otherwise
class BaichuanConfig(LlamaConfig):
    """Sizes of a Baichuan model, as published or as written by `save_pretrained`.

    Attributes:
        model_max_length: tokens that the model was made for; the published 13B config has this alone.
        max_position_embeddings: the same; the published 7B config has both. Always set here.
        position_embedding: "rotary" or "alibi". Published configs do not say; where it is missing, the published
            hidden sizes decide, and for any other size whether the config has max_position_embeddings.
        normalized_head: whether the head's rows are to be normalized; where it is missing, unless the vocabulary is
            that of Baichuan 1.
    """

    model_type = "baichuan"

    vocab_size: int = 125696
    model_max_length: int = 4096
    max_position_embeddings: int | None = None
    pad_token_id: int | None = 0
    position_embedding: str | None = None
    normalized_head: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # names code that nobody needs, and that is not beside what is saved
        if self.position_embedding is None:
            given = ALIBI if self.max_position_embeddings is None else ROTARY
            self.position_embedding = PUBLISHED_POSITIONS.get(self.hidden_size, given)
        if self.position_embedding not in (ROTARY, ALIBI):
            raise StudyError(f"Baichuan position_embedding {self.position_embedding!r}: choose rotary or alibi")
        if self.max_position_embeddings is None:
            self.max_position_embeddings = self.model_max_length
        if self.normalized_head is None:
            self.normalized_head = self.vocab_size != FIRST_VOCABULARY
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings and self.normalized_head:
            raise StudyError("Baichuan with tied embeddings: the head is normalized, and the embedding is not")
        if self.num_key_value_heads != self.num_attention_heads:
            raise StudyError("Baichuan with fewer key than query heads: W_pack is queries, keys and values of one size")


# ------------------------------------------------------------------------------------------------ ALiBi


def alibi_slopes(heads: int) -> list[float]:
    """The published slope of each head: 2^(-8/n), its square, ... for the largest power of two n up to `heads`.

    Where `heads` is no power of two, the rest are every other one of those for 2 n heads.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


def alibi_mask(heads: int, past: int, tokens: int, real: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the attention's logits: the bias by distance, and the dtype's minimum at what is not seen.

    Published is slope * key's position, the same to the softmax as slope * distance from the query. Positions up to
    4095 times a slope, rounded to bfloat16, are off by up to 8 where keys are near and matter; distances are not.

    Args:
        heads: H, the number of heads.
        past: positions in the cache, P.
        tokens: T, those of this call.
        real: bool (batch, P + T), False at padding, which is not counted as distance; None for no padding.
        like: a tensor that gives dtype and device.

    Returns:
        (1, H, T, P + T); (batch, H, T, P + T) where there is padding.
    """
    device = like.device
    slots = torch.arange(past + tokens, device=device)
    positions, visible = slots[None], (slots <= slots[past:, None])[None]  # (1, P + T), (1, T, P + T)
    if real is not None and not real.all():
        positions, visible = (real.long().cumsum(1) - 1).clamp_min(0), visible & real[:, None]
    distance = (positions[:, None] - positions[:, past:, None]).float()  # (batch or 1, T, P + T)
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)[:, None, None]
    # Multiplied in float32 and written in the model's dtype: at 40 heads a second copy would be gigabytes.
    bias = like.new_empty(len(positions), heads, tokens, past + tokens)
    torch.mul(slopes, distance[:, None], out=bias)
    return bias.masked_fill_(~visible[:, None], torch.finfo(bias.dtype).min)


class NoRotary(nn.Module):
    """Stands in place of Llama's rotary embedding where there is none."""

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> None:
        return None


class AlibiAttention(LlamaAttention):
    """Llama's attention without rotary positions; ALiBi's bias comes with the mask."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Same as LlamaAttention.forward; `attention_mask` is the one from `alibi_mask`."""
        projections = self.q_proj, self.k_proj, self.v_proj
        queries, keys, values = (
            p(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in projections
        )
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(
            self, queries, keys, values, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.flatten(-2)), weights


# ------------------------------------------------------------------------------------------------ the model


class BaichuanModel(LlamaModel):
    """Embedding, blocks and final norm: LlamaModel, with ALiBi in place of rotary positions where the config says."""

    config: BaichuanConfig
    # A bias by head is neither of what these kernels take.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    # Some conversions of the 7B have them in each block; they follow from the config.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        if config.position_embedding == ALIBI:
            self.rotary_emb = NoRotary()
            for index, layer in enumerate(self.layers):
                layer.self_attn = AlibiAttention(config, index)
            self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Same as LlamaModel.forward; with ALiBi, `attention_mask` is None or (batch, past + tokens), 0 at padding.

        Raises:
            StudyError: a mask of another shape, with ALiBi.
        """
        if self.config.position_embedding == ALIBI:
            inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            input_ids = None
            batch, tokens = inputs_embeds.shape[:2]
            past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            if attention_mask is not None and attention_mask.shape != (batch, past + tokens):
                raise StudyError(
                    f"ALiBi needs a mask of (batch, past and new tokens) = {(batch, past + tokens)}, and got one of "
                    f"{tuple(attention_mask.shape)}"
                )
            real = None if attention_mask is None else attention_mask.to(inputs_embeds.device, torch.bool)
            attention_mask = alibi_mask(self.config.num_attention_heads, past, tokens, real, inputs_embeds)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class BaichuanForCausalLM(LlamaForCausalLM):
    """Baichuan with its head, whose rows are normalized already: a plain linear layer."""

    config: BaichuanConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]

    def __init__(self, config: BaichuanConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # Llama's own would make a LlamaModel first
        self.model = BaichuanModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.lm_head and self.config.normalized_head:
            init.copy_(module.weight, unit_rows(module.weight))


def unit_rows(weight: Tensor) -> Tensor:
    """NormHead: each row (vocabulary, hidden size) divided by its L2 norm, in float32; in the dtype of `weight`.

    A head that is normalized already comes back as it is: what was written is read again bit by bit.
    """
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    if ((norms - 1).abs().lt(UNIT) | norms.eq(0)).all():
        return weight
    return F.normalize(weight.float()).to(weight.dtype)


def normalize_head(model: BaichuanForCausalLM) -> None:
    """Makes the head what loading would make of it (in place), after its weights were set by hand."""
    if model.config.normalized_head:
        model.lm_head.weight.data = unit_rows(model.lm_head.weight.data)


class NormalizeHead(ConversionOps):
    """`unit_rows` while a checkpoint is loaded, where the config asks for it; nothing while one is saved."""

    def __init__(self, undo: bool = False) -> None:
        self.undo = undo

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Same as ConversionOps.convert; `config` is the model's config."""
        (found,) = input_dict.values()
        weight = found[0] if isinstance(found, list) else found
        keep = self.undo or not kwargs["config"].normalized_head
        return {target_patterns[0]: weight if keep else unit_rows(weight)}

    @property
    def reverse_op(self) -> ConversionOps:
        return NormalizeHead(not self.undo)


def is_rotary(model: nn.Module) -> bool:
    """Whether a model is a Baichuan that `as_llama` takes."""
    return isinstance(model, BaichuanForCausalLM) and model.config.position_embedding == ROTARY


def as_llama(model: BaichuanForCausalLM) -> LlamaForCausalLM:
    """The same model as a LlamaForCausalLM, which plain transformers loads once it is saved. The parts are shared.

    Raises:
        StudyError: ALiBi, which Llama has not.
    """
    if not is_rotary(model):
        raise StudyError(f"{type(model).__name__} has no rotary positions: it cannot be written as a Llama")
    ours = model.config.to_dict()
    own = {"position_embedding", "normalized_head", "model_max_length", "z_loss_weight", "model_type", "architectures"}
    config = LlamaConfig(**{name: value for name, value in ours.items() if name not in own})
    config._name_or_path = model.config._name_or_path
    config._attn_implementation = model.config._attn_implementation
    if (quantization := vars(model.config).get("quantization_config")) is not None:
        config.quantization_config = quantization
    layers, config.num_hidden_layers = config.num_hidden_layers, 0
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    config.num_hidden_layers = layers
    for name, part in model.model.named_children():
        setattr(llama.model, name, part)
    llama.lm_head = model.lm_head
    llama.generation_config = model.generation_config
    if hasattr(model, "hf_device_map"):
        llama.hf_device_map = model.hf_device_map
    return llama.train(model.training)


AutoConfig.register("baichuan", BaichuanConfig, exist_ok=True)
AutoModel.register(BaichuanConfig, BaichuanModel, exist_ok=True)
AutoModelForCausalLM.register(BaichuanConfig, BaichuanForCausalLM, exist_ok=True)
AutoTokenizer.register(BaichuanConfig, BaichuanTokenizer, exist_ok=True)
# "$": a checkpoint quantized by llm-compressor has q_proj.weight_packed and others, and keeps them.
register_checkpoint_conversion_mapping(
    "baichuan",
    [
        WeightConverter(
            [r"self_attn\.W_pack\.weight$"],
            [r"self_attn\.q_proj\.weight$", r"self_attn\.k_proj\.weight$", r"self_attn\.v_proj\.weight$"],
            [Chunk(dim=0)],
        ),
        WeightConverter([r"^lm_head\.weight$"], [r"^lm_head\.weight$"], [NormalizeHead()]),
    ],
    overwrite=True,
)
