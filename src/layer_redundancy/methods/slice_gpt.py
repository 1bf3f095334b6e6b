"""SliceGPT: the residual stream is rotated into its principal directions, and the least of them are cut off.

RMSNorm does not mind a rotation, so the stream may be in any orthogonal basis Q, if what reads it takes W Q for W and
what writes to it Q^T W (Ashkboos et al. 2024, theorem 1). Each place of the stream, before attention and before the
MLP, gets a basis of its own, the principal directions of what passes there; what passes by a layer is led from one
basis to the next by a shortcut Q^T Q'. Cutting the last of the directions makes all these matrices narrower.

In row vectors, with P the first columns of Q: x (tokens, width) is kept as x P; a layer that reads it has W P, one that
writes to it P^T W, and the shortcut from a place to the next is P^T P'.

A head that is the embedding E (vocabulary, width) cannot stay so by itself: the last norm's weights G (a diagonal
matrix) are folded into the head and not into the embedding, and the two are in the bases of the last and the first
place. Untied, they become two matrices, as in the public code, and the model grows by one of them. Tied, the head keeps
the embedding's rows E P and reads them through a small matrix of its own: of

    logits = x G E^T = (x Q') (Q'^T G Q) (E Q)^T        for x after the last norm, Q the first and Q' the last basis,

the first columns of (E Q) are what is left of the embedding, and the middle matrix F = Q'^T G Q is cut likewise. The
tensor that is shared is E P; F belongs to the head alone. Nothing is lost as long as nothing is cut. The last place has
a basis of its own: cut in the embedding's, it would lose most of its length, by which the last norm divides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layer_redundancy.core import flags
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods.blocks import ReadsAll, calibration
from layer_redundancy.methods.method import Card, Plan
from layer_redundancy.models.baichuan import model as baichuan
from layer_redundancy.models.sliced.model import (
    ATTENTION_READS,
    ATTENTION_WRITES,
    MLP_READS,
    MLP_WRITES,
    SLICED,
    RootMeanSquare,
)
from layer_redundancy.models.stack import decoder_stack, prepare

TITLE = "SliceGPT"
MULTIPLE = 8  # of which widths are multiples (round_interval of the public code)
DAMPING = 0.01  # of the mean of the covariance's diagonal, added to it

# Of a covariance (width, width), an orthogonal matrix whose first columns are kept; float64.
Basis = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SliceGPT(ReadsAll):
    """Slicing of the residual stream, the same width everywhere.

    Attributes:
        head: what becomes of a head that is the embedding: "untied", as in the public code, or "tied" (see above).
        slice_head: whether the last place, which the head reads, is cut too. The public code does not by default.
        normalized: whether directions are those of the norms' outputs, as summaries of the paper have it, or of what
            goes into the norms, as the public code does it.
    """

    head: Literal["untied", "tied"] = "untied"
    slice_head: bool = False
    normalized: bool = False

    draws = True

    @property
    def card(self) -> Card:
        """Where it comes from."""
        tied = self.head == "tied"
        cut = "every place of the stream" if self.slice_head else "every place of the stream but the last (code)"
        signal = "outputs (summaries of the paper)" if self.normalized else "inputs (code)"
        head = "the head stays tied to the embedding, and reads it through a matrix of its own; " if tied else ""
        return Card(
            title=TITLE + ", tied" * tied,
            does="rotates the residual stream and cuts directions off it" + ", the head tied as it was" * tied,
            paper="Ashkboos et al. 2024, arXiv 2401.15024",
            code="microsoft/TransformerCompression",
            settings=(
                f"{cut} is cut to the same width, a multiple of 8 (code); principal directions of the norms' {signal}, "
                "in float64 with 1 % damping, found anew after what comes before was cut (code); this study's "
                "calibration text (code: 128 texts of 2048 tokens of WikiText-2)"
            ),
            code_differs=(
                "the code takes the principal directions of the norms' inputs, the paper, by summaries of it, those of "
                "their outputs; the code leaves the last place, which the head reads, whole unless it is asked to cut "
                "it; it takes 1e-5 "
                "for every model's epsilon; it subtracts its mean from each row of the embedding, as a LayerNorm would "
                "anyway and an RMSNorm does not"
            ),
            changed=(
                f"{head}the model's own epsilon, and its embedding as it is; what is kept is not turned at random, "
                "which changes no output; the signs of directions are fixed"
            ),
            needs="layer_redundancy.models.sliced",
        )

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """Every width that is reached by some share of directions, the whole one first; as `Method.plans`.

        The whole width has its shortcuts too, so the model of the first plan is larger than the one that it is made of.
        """
        model = self._checked(shapes)
        width, blocks = model.config.hidden_size, len(decoder_stack(model))
        all_before, blocks_before = _sizes(model)
        per_width, vocabulary = [_per_width(block) for block in model.model.layers], model.config.vocab_size
        found = []
        for kept in (width, *range((width - 1) // MULTIPLE * MULTIPLE, 0, -MULTIPLE)):
            wanted = widths(width, blocks, kept, self.slice_head)
            all_after, blocks_after = _sizes_at(per_width, wanted, self.head == "tied", vocabulary)
            settings = {"width": kept, "head": self.head, "slice_head": self.slice_head, "normalized": self.normalized}
            found.append(Plan(settings, 1 - all_after / all_before, 1 - blocks_after / blocks_before))
        return found

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """See `Method`: as for two passes, since sums of products of states cost about as much as a block."""
        return 2.0

    def outline(self, shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`."""
        calibration(text)
        model = self._checked(shapes)
        wanted = widths(model.config.hidden_size, len(decoder_stack(model)), plan.settings["width"], self.slice_head)
        with torch.device("meta"):
            return SLICED[type(model)](_config(model, wanted, self.head == "tied"))

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """Slices a model; as `Method.apply`.

        Returns:
            A model of `models.sliced`, which this library saves and loads, and plain transformers does not.
        """
        return sliced(
            self._checked(model),
            text.input_ids,
            plan.settings["width"],
            tied=self.head == "tied",
            slice_head=self.slice_head,
            normalized=self.normalized,
        )

    def _checked(self, model: nn.Module) -> nn.Module:
        model = applicable(model)
        if self.head == "tied" and not model.config.tie_word_embeddings:
            raise NotApplicable(f"{TITLE} with a tied head: this {type(model).__name__}'s head is not the embedding")
        return model


def applicable(model: nn.Module) -> nn.Module:
    """The model as one whose stream can be sliced: itself, or a Baichuan with rotary positions as the Llama that it is.

    Raises:
        NotApplicable: more than RMSNorm, attention and an MLP is on the stream, or weights are not plain numbers.
    """
    model = baichuan.as_llama(model) if baichuan.is_rotary(model) else model
    if type(model) not in SLICED:
        names = ", ".join(kind.__name__.removesuffix("ForCausalLM") for kind in SLICED)
        raise NotApplicable(
            f"{TITLE} rotates the residual stream, which takes blocks whose only norms on it are two RMSNorms before "
            f"attention and MLP ({names}): {type(model).__name__} is none of these"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise NotApplicable(f"{TITLE} rotates weights, and those of this {type(model).__name__} are quantized")
    return model


def width_of(share: float, width: int) -> int:
    """The width that the public code makes of a share of directions to cut: int((1 - share) width), to a multiple of 8.

    Args:
        share: 0 to 1 (its option --sparsity).
        width: the original width.
    """
    kept = int((1 - share) * width)
    return kept - kept % MULTIPLE


@flags.checked
def widths(width: int, blocks: int, kept: int, slice_head: bool) -> list[int]:
    """Widths of the stream: after the embedding, after each attention and each MLP; the last one where the head is."""
    return [kept] * (2 * blocks) + [kept if slice_head else width]


# ------------------------------------------------------------------------------------------------ steps


def covariance(states: list[Tensor], norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Sum over all tokens of x^T x, not centred: float64 (width, width).

    Args:
        states: X of each text, (1, tokens, width).
        norm: what is done to each of them before; nothing where not given.
    """
    total = torch.zeros(states[0].shape[-1], states[0].shape[-1], dtype=torch.float64, device=states[0].device)
    for state in states:
        x = (state if norm is None else norm(state)).flatten(0, -2).double()
        total.addmm_(x.T, x)
    return total


def principal_directions(covariance: Tensor) -> Tensor:
    """Eigenvectors as columns, those of the largest eigenvalues first; each one's largest entry is positive.

    Args:
        covariance: float64 (width, width). As in the public code, 1 % of its diagonal's mean is added to the diagonal,
            which moves all eigenvalues alike and turns no eigenvector.

    Returns:
        float64 (width, width), orthogonal.
    """
    damped = covariance + DAMPING * covariance.diagonal().mean() * torch.eye(
        len(covariance), dtype=covariance.dtype, device=covariance.device
    )
    vectors = torch.linalg.eigh(damped).eigenvectors.flip(-1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()


@flags.checked
def fold_norms(model: nn.Module, head: bool = True) -> None:
    """Multiplies the norms' weights into the linear layers that read them (in place): the same logits, weights of one.

    Args:
        model: one that is `applicable`.
        head: also the last norm's into the head, which is no longer the embedding afterwards. Where not, that norm
            stays as it is.
    """
    for block in model.model.layers:
        for norm, reads in ((block.input_layernorm, ATTENTION_READS), (block.post_attention_layernorm, MLP_READS)):
            for path in reads:
                _set(block.get_submodule(path), "weight", lambda w: w * norm.weight.double())  # noqa: B023
            nn.init.ones_(norm.weight)
    if head:
        norm = model.model.norm
        model.config.tie_word_embeddings = False
        _set(model.lm_head, "weight", lambda w: w * norm.weight.double())
        nn.init.ones_(norm.weight)


def _set(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Puts a new parameter in the place of one, computed in float64 and rounded to its dtype."""
    old = getattr(module, name)
    new = change(old.detach().double()).to(old.dtype).contiguous()
    setattr(module, name, nn.Parameter(new, requires_grad=False))


def read_from(layer: nn.Module, kept: Tensor) -> None:
    """Lets a linear layer read x P in place of x (in place): W (out, width) -> W P, for P float64 (width, kept)."""
    _set(layer, "weight", lambda w: w @ kept)
    layer.in_features = kept.shape[1]


def embed_in(embedding: nn.Embedding, kept: Tensor) -> None:
    """Lets an embedding give x P in place of x (in place): E (vocabulary, width) -> E P."""
    _set(embedding, "weight", lambda w: w @ kept)
    embedding.embedding_dim = kept.shape[1]


def write_to(layer: nn.Module, kept: Tensor) -> None:
    """Lets a linear layer give y P in place of y (in place): W (width, in) -> P^T W, and its bias b -> P^T b."""
    _set(layer, "weight", lambda w: kept.T @ w)
    if layer.bias is not None:
        _set(layer, "bias", lambda b: kept.T @ b)
    layer.out_features = kept.shape[1]


@flags.checked
@torch.no_grad()
def sliced(
    model: nn.Module,
    input_ids: Tensor,
    width: int,
    *,
    tied: bool = False,
    slice_head: bool = False,
    normalized: bool = False,
    basis: Basis = principal_directions,
) -> nn.Module:
    """Slices a model's residual stream.

    Place by place, the stream of the calibration text is computed with everything before already cut; its directions
    are found; and what reads and writes there is rotated and cut. Texts run one at a time, so nothing depends on a
    batch's size. In memory beside the model: the stream of all texts at one place, 4 bytes a token and direction, what
    a block makes of one text, and float64 copies of the largest matrix. The model lies on one device.

    Args:
        model: one that is `applicable`; it is used up.
        input_ids: int64 (texts, tokens), no padding.
        width: directions to keep at each place.
        tied, slice_head, normalized: see `SliceGPT`.
        basis: gives the directions of a place.

    Returns:
        A model of `models.sliced` in the same dtype, prepared as loaded ones are.
    """
    stack, config, dtype = decoder_stack(model), model.config, model.dtype
    wanted = widths(config.hidden_size, len(stack), width, slice_head)
    gains = model.model.norm.weight.detach().double()
    fold_norms(model, head=not tied)

    starts = [stack.start(row[None]) for row in input_ids]
    calls = starts[0][1].calls  # the same for all, which are of one length
    norm = RootMeanSquare(config.hidden_size, config.rms_norm_eps)
    stream = _Stream([hidden.float() for hidden, _ in starts], norm, normalized, basis, dtype)
    del starts

    shortcuts: dict[str, Tensor] = {}
    first = kept = stream.directions(wanted[0])
    embed_in(model.model.embed_tokens, first)
    for i, block in enumerate(stack.blocks):
        attention = "attention", ATTENTION_READS, ATTENTION_WRITES, partial(block.self_attn, **calls[i][1])
        for place, (name, reads, writes, layer) in enumerate((attention, ("mlp", MLP_READS, MLP_WRITES, block.mlp)), 1):
            for path in reads:
                read_from(block.get_submodule(path), kept)
            stream.advance(kept, layer)
            new = stream.directions(wanted[2 * i + place])
            write_to(block.get_submodule(writes), new)
            shortcuts[f"model.layers.{i}.{name}_shortcut.weight"] = (new.T @ kept).to(dtype)  # P^T P', transposed
            kept = new
    if tied:
        head = {"lm_head.fold.weight": (first.T @ (gains[:, None] * kept)).to(dtype)}  # F, transposed
    else:
        read_from(model.lm_head, kept)
        head = {}
    return _assembled(model, wanted, tied, shortcuts | head)


class _Stream:
    """The residual stream of all texts at one place, whole and in the model's own basis.

    Args:
        states: X (1, tokens, width) of each text, float32.
        norm: the model's norm, without weights.
        normalized: whether directions are those of the norm's outputs.
        basis: gives them.
        dtype: of the model's layers.
    """

    def __init__(
        self, states: list[Tensor], norm: nn.Module, normalized: bool, basis: Basis, dtype: torch.dtype
    ) -> None:
        self.states, self.norm, self.normalized, self.basis, self.dtype = states, norm, normalized, basis, dtype

    def directions(self, width: int) -> Tensor:
        """P: the first directions of this place, float64 (original width, `width`)."""
        return self.basis(covariance(self.states, self.norm if self.normalized else None))[:, :width]

    def advance(self, kept: Tensor, layer: Callable[[Tensor], Any]) -> None:
        """Goes to the next place, by what is kept at this one.

        Args:
            kept: P.
            layer: attention or MLP, which reads x P and writes to the whole stream.
        """
        kept = kept.float()
        for k, state in enumerate(self.states):
            x = state @ kept
            out = layer(self.norm(x).to(self.dtype))
            self.states[k] = x @ kept.T + (out[0] if isinstance(out, tuple) else out).float()


def _assembled(model: nn.Module, wanted: list[int], tied: bool, found: dict[str, Tensor]) -> nn.Module:
    """A model of `models.sliced` of the weights of a model that was rotated and cut, and of those that are new."""
    kind, config = SLICED[type(model)], _config(model, wanted, tied)
    norms = (".input_layernorm.weight", ".post_attention_layernorm.weight", "model.norm.weight")
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith(norms)} | found
    if tied:
        del weights["lm_head.weight"]
        weights["lm_head.vocabulary.weight"] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):
        result = kind(config)
    result.load_state_dict({name: value.contiguous() for name, value in weights.items()}, assign=True)
    result.tie_weights()
    result.model.rotary_emb = model.model.rotary_emb  # its angles are in no checkpoint
    result.generation_config = model.generation_config
    for name in ("removed_steps", "not_loaded", "hf_device_map"):
        if hasattr(model, name):
            setattr(result, name, getattr(model, name))
    return prepare(result)


def _config(model: nn.Module, wanted: list[int], tied: bool) -> Any:
    """The config of the sliced model that a model becomes."""
    own = {"model_type", "architectures", "tie_word_embeddings", "transformers_version"}
    settings = {name: value for name, value in model.config.to_dict().items() if name not in own}
    config = SLICED[type(model)].config_class(**settings, residual_widths=wanted, tie_word_embeddings=tied)
    config._name_or_path, config.dtype = model.config._name_or_path, model.dtype
    config._attn_implementation = model.config._attn_implementation
    return config


# ------------------------------------------------------------------------------------------------ sizes


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Weights of a model, tied ones once, and those of its blocks."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, sum(parameter.numel() for parameter in decoder_stack(model).blocks.parameters())


def _per_width(block: nn.Module) -> tuple[int, int, int, int]:
    """Weights of a block by what they grow with: nothing, and the stream's width before, between and after."""

    def reads(paths: tuple[str, ...]) -> int:
        return sum(block.get_submodule(path).out_features for path in paths)

    def writes(path: str) -> int:
        return block.get_submodule(path).in_features + (block.get_submodule(path).bias is not None)

    before, between, after = reads(ATTENTION_READS), writes(ATTENTION_WRITES) + reads(MLP_READS), writes(MLP_WRITES)
    width = block.input_layernorm.weight.numel()
    norms = width + block.post_attention_layernorm.weight.numel()
    fixed = sum(parameter.numel() for parameter in block.parameters()) - norms - width * (before + between + after)
    return fixed, before, between, after


def _sizes_at(blocks: list[tuple[int, int, int, int]], wanted: list[int], tied: bool, vocabulary: int) -> Iterator[int]:
    """As `_sizes`, of the model that slicing makes, without making it.

    Args:
        blocks: `_per_width` of each block.
        wanted: the stream's widths.
        tied: whether the head is the embedding.
        vocabulary: number of tokens.
    """
    of_blocks = 0
    for i, (fixed, *each) in enumerate(blocks):
        before, between, after = around = wanted[2 * i : 2 * i + 3]
        of_blocks += fixed + sum(n * width for n, width in zip(each, around, strict=True))
        of_blocks += between * (before + after)  # shortcuts
    first, last = wanted[0], wanted[-1]
    yield of_blocks + vocabulary * first + last * (first if tied else vocabulary)
    yield of_blocks
