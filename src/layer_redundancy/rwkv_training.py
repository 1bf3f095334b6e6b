"""Trains the small RWKV-5 that ships in data/models/, from texts that come with packages; `make rwkv-train` runs it.

The same settings give the same windows of text in the same order, so a run that was killed goes on from its last
checkpoint as if it had not been.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layer_redundancy import paths
from layer_redundancy.errors import StudyError
from layer_redundancy.rwkv_texts import SHARES

END = "<|endoftext|>"  # token 0; stands before every document
BYTES = 257  # a vocabulary of this size has no merges
CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Settings:
    """Everything that decides the trained weights.

    Attributes:
        vocab_size: tokens of the byte-level BPE, the end of text among them; 257 is bytes alone.
        hidden_size, num_hidden_layers, head_size: of the model.
        steps: optimizer steps.
        windows: of text a step.
        window_tokens: tokens of each.
        matrix_learning_rate: of Muon, for the blocks' matrices.
        learning_rate: of AdamW, for embedding, head, norms and time-mix vectors.
        weight_decay: of the matrices.
        warmup: steps; then the rates fall in a line to zero.
        seed: of weights and windows.
        autocast: compute the matrix products in bfloat16.
    """

    vocab_size: int = 2048
    hidden_size: int = 192
    num_hidden_layers: int = 12
    head_size: int = 32
    steps: int = 5500
    windows: int = 4
    window_tokens: int = 512
    matrix_learning_rate: float = 6e-3
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 50
    seed: int = 0
    autocast: bool = True

    @property
    def fingerprint(self) -> str:
        """12 hex digits that stand for these settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


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
        tokenizer: its tokenizer.
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
    from layer_redundancy.rwkv5 import Rwkv5Config, Rwkv5ForCausalLM

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


def train(
    settings: Settings, sources: dict[str, list[str]], evaluation: Sequence[str], folder: Path, seconds: float = math.inf
) -> tuple[nn.Module, Any, list[dict]]:
    """Trains, or goes on where `folder`'s checkpoint is.

    Args:
        settings: what to train.
        sources: documents by source.
        evaluation: texts whose bits per byte are logged now and then; nothing is decided by them.
        folder: of the checkpoint.
        seconds: stop after so long (the schedule ends then); for trials.

    Returns:
        The model, its tokenizer, and the log: step, tokens, seconds, training loss (nats a token) and, at some steps,
        bits per byte of `evaluation`.
    """
    from tqdm import tqdm

    tokenizer = train_tokenizer([t for texts in sources.values() for t in texts], settings.vocab_size)
    tokens = streams(sources, tokenizer)
    model = initial_model(settings)
    both = optimizers(model, settings)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{settings.fingerprint}.pt"
    step, spent, log = 0, 0.0, []
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(both, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, spent, log = saved["step"], saved["seconds"], saved["log"]

    def save() -> None:
        temporary = checkpoint.with_suffix(".tmp")
        states = [optimizer.state_dict() for optimizer in both]
        torch.save(
            {"model": model.state_dict(), "optimizers": states, "step": step, "seconds": spent, "log": log}, temporary
        )
        temporary.replace(checkpoint)

    losses, began, saved_at = [], time.monotonic() - spent, time.monotonic()
    bar = tqdm(total=settings.steps, initial=step, unit="step", desc="training", smoothing=0.05)
    while step < settings.steps:
        done = max(step / settings.steps, (time.monotonic() - began) / seconds)
        if done >= 1:
            break
        rate = min(1.0, (step + 1) / settings.warmup) * (1 - done)
        batch = windows(tokens, settings, step)
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
                row["bits_per_byte"] = round(bits_per_byte(model, tokenizer, evaluation), 4)
            log.append(row)
            bar.set_postfix(loss=row["loss"], bits=row["bits_per_byte"])
            losses = []
        bar.update()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS or step == settings.steps:
            save()
            saved_at = time.monotonic()
    bar.close()
    return model.eval(), tokenizer, log
