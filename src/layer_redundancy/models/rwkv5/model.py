"""RWKV-5 ("Eagle", versions 5.2 and 5.1) as a transformers model: transformers itself has version 4 alone.

Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (arXiv 2404.05892), section 4.1. A
block adds a time-mix and then a channel-mix to the residual stream, each behind a layer norm. The time-mix has a state
S of one N x N matrix a head, and for receptance r, key k and value v (row vectors of N channels) it computes

    out_t = r_t (S_{t-1} + diag(u) k_t^T v_t),    S_t = diag(w) S_{t-1} + k_t^T v_t,

with the decay w in (0, 1) and the bonus u learnt, by channel in version 5.2 and by head in 5.1. `chunked_time_mix` does
that with matrix products, `sequential_time_mix` as it is written.

Importing this module makes AutoConfig, AutoModelForCausalLM and AutoTokenizer know the architecture; the parameters are
named as in its ports on the hub, so those load without their own code. `rwkv5.checkpoints` reads the author's files.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import ModelOutput

from layer_redundancy.core.errors import StudyError

VERSIONS = ("5.2", "5.1")
# (longest sequence, tokens of a chunk): the fastest of 8 to 64 on a processor, at N = 64 and at N = 32. Longer chunks
# would be mostly padding where sequences are short.
CHUNK_LENGTHS = ((64, 16), (math.inf, 32))
GROUP_NORM_EPSILON = 64e-5  # epsilon of the norm by head; the trainer divides by 8 and adds 1e-5 instead


class Rwkv5Config(PreTrainedConfig):
    """Sizes of an RWKV-5 model.

    Attributes:
        vocab_size: 65536 in the "World" models.
        hidden_size: channels of the residual stream.
        num_hidden_layers: number of blocks.
        attention_hidden_size: channels of the time-mix, heads times `head_size`; `hidden_size` if not given.
        head_size: N, channels of a head. Heads are not attention heads, and are not called so: the ports' configs have
            num_attention_heads, some of them wrong; it is neither needed nor kept.
        intermediate_size: width of the channel-mix; 3.5 hidden sizes, rounded down to a multiple of 32, if not given.
        model_version: "5.2" or "5.1".
        layer_norm_epsilon: epsilon of all layer norms but the norm by head.
        context_length: tokens the model was trained on at once; the recurrence has no end.
    """

    model_type = "rwkv5"

    vocab_size: int = 65536
    hidden_size: int = 768
    num_hidden_layers: int = 12
    attention_hidden_size: int | None = None
    head_size: int = 64
    intermediate_size: int | None = None
    model_version: str = "5.2"
    layer_norm_epsilon: float = 1e-5
    context_length: int = 4096
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("num_attention_heads", None)
        kwargs.pop("rescale_every", None)  # the ports' way of keeping fp16 from overflowing
        self.model_version = str(self.model_version).replace("_", ".")
        if self.model_version not in VERSIONS:
            raise StudyError(f"RWKV model_version {self.model_version!r}: only {' and '.join(VERSIONS)} are known")
        if self.attention_hidden_size is None:
            self.attention_hidden_size = self.hidden_size
        if self.intermediate_size is None:
            self.intermediate_size = int(3.5 * self.hidden_size) // 32 * 32
        if self.attention_hidden_size % self.head_size:
            raise StudyError(
                f"attention_hidden_size {self.attention_hidden_size} is no multiple of head_size {self.head_size}"
            )
        super().__post_init__(**kwargs)

    @property
    def num_time_mix_heads(self) -> int:
        """H, heads of the time-mix."""
        return int(self.attention_hidden_size or self.hidden_size) // self.head_size


# ------------------------------------------------------------------------------------------------ the recurrence


def sequential_time_mix(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, token by token (Eagle paper, equations 6 and 7): the reference.

    Args:
        receptance, key, value: (batch, T, H, N).
        log_decay: (H, N), log w, not above 0.
        bonus: (H, N), u.
        state: S before the first token, (batch, H, N, N), keys by values; None for zeros.

    Returns:
        out (batch, T, H, N), and S after the last token; both in the inputs' dtype.
    """
    batch, length, heads, size = receptance.shape
    state = receptance.new_zeros(batch, heads, size, size) if state is None else state
    decay = log_decay.exp()[..., None]
    out = []
    for t in range(length):
        r, k, v = receptance[:, t, :, None, :], key[:, t, :, :, None], value[:, t, :, None, :]
        new = k * v
        out.append((r @ (state + bonus[..., None] * new)).squeeze(-2))
        state = decay * state + new
    return torch.stack(out, dim=1), state


def chunked_time_mix(
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    state: Tensor | None = None,
    chunk_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `sequential_time_mix` by matrix products within and between chunks; time and memory O(T).

    Within a chunk, out_t holds sum_n r_tn k_sn w_n^(t-1-s) times v_s for every earlier s. Written as a product of
    r w^t and k w^-s, the second factor overflows where channels forget fast. Here a chunk is halved again and again: of
    each pair of neighbouring halves the later sees the earlier one through r w^(t-m) and k w^(m-1-s), where m is
    the token between them. No exponent is ever negative, so nothing overflows, whatever the decay, and what underflows
    is zero beside the rest.

    Args and returns: as `sequential_time_mix`; `chunk_length` is a power of two, that of CHUNK_LENGTHS if not given.
    """
    batch, length, heads, size = receptance.shape
    chunk_length = chunk_length or next(chunk for longest, chunk in CHUNK_LENGTHS if length <= longest)
    chunk = min(chunk_length, 1 << (length - 1).bit_length())
    chunks = -(-length // chunk)
    pad = chunks * chunk - length
    r, k, v = (_by_chunk(x, chunks, pad) for x in (receptance, key, value))  # (batch, H, chunks, chunk, N)
    steps = torch.arange(chunk, device=r.device, dtype=r.dtype)
    # w^0, w^1, ... of (H, 1, chunk, N); and from the chunk's end backwards.
    forwards = (log_decay[:, None, None, :] * steps[:, None]).exp()
    backwards = forwards.flip(-2)

    out = _within_chunks(r, k, forwards, bonus[:, None, None, :]) @ v

    # Between chunks: what each adds to the state, and what it reads from it.
    added = (k * backwards).transpose(-1, -2) @ v  # (batch, H, chunks, N, N)
    whole = (log_decay * chunk).exp()[..., None]
    state = receptance.new_zeros(batch, heads, size, size) if state is None else state
    before = []
    for i in range(chunks - 1):
        before.append(state)
        state = whole * state + added[:, :, i]
    before.append(state)
    out = out + (r * forwards) @ torch.stack(before, dim=2)
    if pad:  # the last chunk's tokens are fewer steps from its end
        last = chunk - pad
        added_last = (k[:, :, -1, :last] * backwards[:, 0, pad:]).transpose(-1, -2) @ v[:, :, -1, :last]
        state = (log_decay * last).exp()[..., None] * state + added_last
    else:
        state = whole * state + added[:, :, -1]
    return out.flatten(2, 3)[:, :, :length].transpose(1, 2), state


def _by_chunk(x: Tensor, chunks: int, pad: int) -> Tensor:
    """(batch, T, H, N) -> (batch, H, chunks, chunk, N), with zeros after the end."""
    x = x.transpose(1, 2)
    return F.pad(x, (0, 0, 0, pad)).unflatten(2, (chunks, -1)).contiguous()


def _within_chunks(r: Tensor, k: Tensor, powers: Tensor, bonus: Tensor) -> Tensor:
    """What weighs v_s in out_t, for s and t of the same chunk: (batch, H, chunks, chunk, chunk), lower triangular.

    Args:
        r, k: (batch, H, chunks, chunk, N).
        powers: (H, 1, chunk, N), w^0, w^1, ...
        bonus: (H, 1, 1, N).
    """
    diagonal = (r * bonus * k).sum(-1, keepdim=True)  # (batch, H, chunks, chunk, 1)
    weights, half = diagonal[..., None], 1  # (batch, H, chunks, chunk / half, half, half)
    while half < r.shape[-2]:
        pairs = (-1, 2, half)
        later = r.unflatten(-2, pairs)[..., 1, :, :] * powers[..., None, :half, :]
        earlier = k.unflatten(-2, pairs)[..., 0, :, :] * powers[..., None, :half, :].flip(-2)
        seen = (later * earlier).sum(-1)[..., None, None] if half == 1 else later @ earlier.transpose(-1, -2)
        if half == 1:
            seen = seen.squeeze(-1)
        blocks = weights.unflatten(-3, (-1, 2))  # (..., pairs, 2, half, half)
        upper = torch.cat([blocks[..., 0, :, :], torch.zeros_like(seen)], dim=-1)
        lower = torch.cat([seen, blocks[..., 1, :, :]], dim=-1)
        weights, half = torch.cat([upper, lower], dim=-2), 2 * half
    return weights.squeeze(-3)


def time_mix(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence by whatever is fastest here; arguments and results as `sequential_time_mix`.

    On CUDA that is flash-linear-attention's kernel where it is installed (the extra `gpu` of pyproject.toml), gives
    the same as `chunked_time_mix` in a trial, and no gradient is asked for; else `chunked_time_mix`.
    """
    if receptance.is_cuda and not torch.is_grad_enabled() and (kernel := _cuda_kernel()):
        return kernel(receptance, key, value, log_decay, bonus, state)
    return chunked_time_mix(receptance, key, value, log_decay, bonus, state)


@cache
def _cuda_kernel() -> Callable | None:
    """flash-linear-attention's RWKV-6 kernel, whose decay may change with every token but need not; None without it."""
    try:
        from fla.ops.rwkv6 import fused_recurrent_rwkv6
    except ImportError:
        return None

    def kernel(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor | None) -> Any:
        decays = log_decay.expand(r.shape).contiguous()
        return fused_recurrent_rwkv6(
            r, k, v, decays, bonus, scale=1.0, initial_state=state, output_final_state=True
        )  # (batch, T, H, N) and (batch, H, N, N), as ours

    generator = torch.Generator("cuda").manual_seed(0)
    r, k, v = torch.randn(3, 2, 70, 2, 32, device="cuda", generator=generator)
    log_decay, bonus = -torch.randn(2, 2, 32, device="cuda", generator=generator).exp()
    state = torch.randn(2, 2, 32, 32, device="cuda", generator=generator)
    ours, problem = chunked_time_mix(r, k, v, log_decay, bonus, state), "gives other numbers than the recurrence"
    try:
        theirs = kernel(r, k, v, log_decay, bonus, state)
        if all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(ours, theirs, strict=True)):
            return kernel
    except Exception as error:  # a kernel that cannot be compiled here fails in its compiler's own ways
        problem = f"does not run ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
    warnings.warn(f"flash-linear-attention {problem}: it is not used", stacklevel=2)
    return None


# ------------------------------------------------------------------------------------------------ the model


class Rwkv5State:
    """What a model remembers of the tokens it has seen: its cache, of the same size however many they were.

    Attributes:
        seen_tokens: number of tokens seen.
        time_mix_inputs: the last token's input of the time-mix, for each block (batch, hidden size).
        matrices: S, for each block (batch, H, N, N) float32.
        channel_mix_inputs: the last token's input of the channel-mix, for each block (batch, hidden size).
    """

    def __init__(self, num_hidden_layers: int) -> None:
        self.seen_tokens = 0
        self.time_mix_inputs: list[Tensor | None] = [None] * num_hidden_layers
        self.matrices: list[Tensor | None] = [None] * num_hidden_layers
        self.channel_mix_inputs: list[Tensor | None] = [None] * num_hidden_layers

    def _parts(self) -> tuple[list[Tensor | None], ...]:
        return self.time_mix_inputs, self.matrices, self.channel_mix_inputs

    def clone(self) -> "Rwkv5State":
        """A copy that continues on its own."""
        copy = Rwkv5State(len(self.matrices))
        copy.seen_tokens = self.seen_tokens
        for mine, its in zip(self._parts(), copy._parts(), strict=True):
            its[:] = [None if x is None else x.clone() for x in mine]
        return copy

    def reorder_cache(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order (beam search); `rows` is int64 (new batch,)."""
        for part in self._parts():
            part[:] = [None if x is None else x.index_select(0, rows.to(x.device)) for x in part]


def _shifted(x: Tensor, last: Tensor | None) -> Tensor:
    """x (batch, tokens, channels) one token later, beginning with `last` (batch, channels) or zeros."""
    first = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x)
    return torch.cat([first, x[:, :-1]], dim=1)


def _mixed(x: Tensor, shifted: Tensor, mix: Tensor) -> Tensor:
    return x * mix + shifted * (1 - mix)


class Rwkv5TimeMix(nn.Module):
    """The time-mix of a block, with its token shift, gate and norm by head."""

    def __init__(self, config: Rwkv5Config, layer_idx: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.attention_hidden_size
        heads, size = config.num_time_mix_heads, config.head_size
        self.config, self.layer_idx = config, layer_idx
        shape = (heads, size) if config.model_version == "5.2" else (heads,)
        self.time_decay = nn.Parameter(torch.empty(shape))  # w = exp(-exp(time_decay))
        self.time_faaaa = nn.Parameter(torch.empty(shape))  # u
        for name in ("key", "value", "receptance", "gate"):
            setattr(self, f"time_mix_{name}", nn.Parameter(torch.empty(1, 1, hidden)))
            setattr(self, name, nn.Linear(hidden, inner, bias=False))
        self.output = nn.Linear(inner, hidden, bias=False)
        self.ln_x = nn.GroupNorm(heads, inner, eps=GROUP_NORM_EPSILON)

    def forward(self, x: Tensor, state: Rwkv5State | None = None) -> Tensor:
        """Runs it, (batch, tokens, hidden size) -> the same; the recurrence and the norm by head in float32."""
        last, matrices = (None, None) if state is None else (s[self.layer_idx] for s in state._parts()[:2])
        shifted = _shifted(x, last)
        heads = (self.config.num_time_mix_heads, self.config.head_size)
        r = self.receptance(_mixed(x, shifted, self.time_mix_receptance)).unflatten(-1, heads).float()
        k = self.key(_mixed(x, shifted, self.time_mix_key)).unflatten(-1, heads).float()
        v = self.value(_mixed(x, shifted, self.time_mix_value)).unflatten(-1, heads).float()
        g = F.silu(self.gate(_mixed(x, shifted, self.time_mix_gate)))
        decay, bonus = (p.float().reshape(heads[0], -1).expand(heads) for p in (self.time_decay, self.time_faaaa))
        with torch.autocast(x.device.type, enabled=False):
            out, matrices = time_mix(r, k, v, -decay.exp(), bonus, matrices)
            norm = self.ln_x
            flat = out.reshape(-1, self.config.attention_hidden_size)
            flat = F.group_norm(flat, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
        if state is not None:
            state.time_mix_inputs[self.layer_idx], state.matrices[self.layer_idx] = x[:, -1], matrices
        return self.output(flat.view(*x.shape[:2], -1).to(g.dtype) * g)


class Rwkv5ChannelMix(nn.Module):
    """The channel-mix of a block: squared ReLU, gated by the receptance."""

    def __init__(self, config: Rwkv5Config, layer_idx: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config, self.layer_idx = config, layer_idx
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, hidden))
        self.key = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.receptance = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(config.intermediate_size, hidden, bias=False)

    def forward(self, x: Tensor, state: Rwkv5State | None = None) -> Tensor:
        """Runs it, (batch, tokens, hidden size) -> the same."""
        shifted = _shifted(x, None if state is None else state.channel_mix_inputs[self.layer_idx])
        if state is not None:
            state.channel_mix_inputs[self.layer_idx] = x[:, -1]
        key = F.relu(self.key(_mixed(x, shifted, self.time_mix_key))).square()
        return torch.sigmoid(self.receptance(_mixed(x, shifted, self.time_mix_receptance))) * self.value(key)


class Rwkv5Block(nn.Module):
    """A residual block: time-mix, then channel-mix."""

    def __init__(self, config: Rwkv5Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.ln1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.ln2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attention = Rwkv5TimeMix(config, layer_idx)
        self.feed_forward = Rwkv5ChannelMix(config, layer_idx)

    def forward(self, hidden_states: Tensor, state: Rwkv5State | None = None, mask: Tensor | None = None) -> Tensor:
        """Runs it, (batch, tokens, hidden size) -> the same.

        Args:
            hidden_states: the residual stream.
            state: the cache, read and brought up to date, where there is one.
            mask: (batch, tokens, 1), 0 at padding on the left, which then leaves no trace: no bias comes before the
                state, so a token whose input is zero adds nothing to it. None: no padding.
        """
        x = self.ln1(hidden_states)
        hidden_states = hidden_states + self.attention(x if mask is None else x * mask, state)
        x = self.ln2(hidden_states)
        return hidden_states + self.feed_forward(x if mask is None else x * mask, state)


class Rwkv5PreTrainedModel(PreTrainedModel):
    """What RWKV-5 models have in common; the first weights are those of the author's trainer, with no zeros."""

    config: Rwkv5Config
    base_model_prefix = "rwkv"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Rwkv5Block"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Rwkv5TimeMix | Rwkv5ChannelMix):
            layers, hidden = self.config.num_hidden_layers, self.config.hidden_size
            depth, rest = module.layer_idx / max(layers - 1, 1), 1 - module.layer_idx / layers
            channel = (torch.arange(hidden) / hidden)[None, None]
            init.copy_(module.time_mix_key, channel**rest)
            if isinstance(module, Rwkv5ChannelMix):
                init.copy_(module.time_mix_receptance, channel**rest)
                return
            init.copy_(module.time_mix_value, channel**rest + 0.3 * depth)
            init.copy_(module.time_mix_receptance, channel ** (rest / 2))
            init.copy_(module.time_mix_gate, channel ** (rest / 2))
            count = module.time_decay.numel()
            n = torch.arange(count) / max(count - 1, 1)
            zigzag = ((torch.arange(count) + 1) % 3 - 1) * 0.1
            init.copy_(module.time_decay, (-6 + 5 * n ** (0.7 + 1.3 * depth)).view_as(module.time_decay))
            init.copy_(module.time_faaaa, (depth * (1 - n) + zigzag).view_as(module.time_faaaa))
        elif isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            scale = 0.5 if rows == self.config.vocab_size else 1.0
            init.orthogonal_(module.weight, gain=scale * max(1.0, rows / columns) ** 0.5)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1e-4, 1e-4)  # the layer norm behind it makes it large


@dataclass
class Rwkv5Output(ModelOutput):
    """Result of `Rwkv5Model`.

    Attributes:
        last_hidden_state: (batch, tokens, hidden size), after the final norm.
        state: the state after the last token, where it was asked for.
        hidden_states: X_0 to X_L where asked for, each (batch, tokens, hidden size), the last one normed.
    """

    last_hidden_state: Tensor | None = None
    state: Rwkv5State | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Rwkv5CausalLMOutput(ModelOutput):
    """Result of `Rwkv5ForCausalLM`: `loss` where labels were given, `logits` (batch, tokens, vocabulary), and the rest
    as in `Rwkv5Output`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: Rwkv5State | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Rwkv5Model(Rwkv5PreTrainedModel):
    """Embedding, its norm, blocks and final norm."""

    def __init__(self, config: Rwkv5Config) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        # The author keeps it as ln0 of block 0. Here it belongs to no block, so that block 0 is one like the others.
        self.pre_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.blocks = nn.ModuleList(Rwkv5Block(config, i) for i in range(config.num_hidden_layers))
        self.ln_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.embeddings = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: Rwkv5State | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> Rwkv5Output:
        """Runs the tokens after those that `state` has seen; `state` itself is left as it is.

        Args:
            input_ids: int64 (batch, tokens).
            attention_mask: (batch, tokens or more), 0 at padding on the left; its last columns belong to these tokens.
            inputs_embeds: (batch, tokens, hidden size) in place of `input_ids`.
            state: the state to go on from.
            use_cache: whether to return the new state.
            output_hidden_states: whether to return X_0 to X_L.
        """
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        hidden = self.pre_ln(self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds)
        mask = None
        if attention_mask is not None and not attention_mask[:, -hidden.shape[1] :].all():
            mask = attention_mask[:, -hidden.shape[1] :, None].to(hidden)
        if use_cache or state is not None:
            state = Rwkv5State(len(self.blocks)) if state is None else state.clone()
            state.seen_tokens += hidden.shape[1]
        seen = [hidden]
        for block in self.blocks:
            hidden = block(hidden, state, mask)
            if output_hidden_states:
                seen.append(hidden)
        hidden = self.ln_out(hidden)
        seen[-1] = hidden
        return Rwkv5Output(hidden, state if use_cache else None, tuple(seen) if output_hidden_states else None)


class Rwkv5ForCausalLM(Rwkv5PreTrainedModel, GenerationMixin):
    """RWKV-5 with its head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "rwkv.embeddings.weight"}

    def __init__(self, config: Rwkv5Config) -> None:
        super().__init__(config)
        self.rwkv = Rwkv5Model(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: Rwkv5State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Rwkv5CausalLMOutput:
        """Runs `Rwkv5Model.forward`, then the head.

        Args:
            labels: int64 (batch, tokens), shifted by the model; -100 is left out of the loss.
            logits_to_keep: logits of the last so many tokens (0: all), or of these positions.
        """
        out = self.rwkv(input_ids, attention_mask, inputs_embeds, state, use_cache, output_hidden_states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return Rwkv5CausalLMOutput(loss, logits, out.state, out.hidden_states)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        state: Rwkv5State | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Inputs for `generate`: only the tokens that the state has not seen."""
        if state is not None:
            input_ids = input_ids[:, state.seen_tokens :]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "state": state,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }


AutoConfig.register("rwkv5", Rwkv5Config, exist_ok=True)
AutoModel.register(Rwkv5Config, Rwkv5Model, exist_ok=True)
AutoModelForCausalLM.register(Rwkv5Config, Rwkv5ForCausalLM, exist_ok=True)
# The ports keep the embedding's norm where the author does; checkpoints are written that way too.
register_checkpoint_conversion_mapping(
    "rwkv5", [WeightRenaming(r"^rwkv\.blocks\.0\.pre_ln\.", r"rwkv.pre_ln.")], overwrite=True
)
