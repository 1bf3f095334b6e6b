"""A model that classifies texts by the word it would write next: its first blocks, virtual tokens, loss and answers."""

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from layer_redundancy.core import devices
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data import classification_sets
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import decoder_stack

PADDED = 1.25  # the longest text of a batch, in lengths of its shortest, where padding costs time


def first_blocks_of(model: nn.Module, kept: int) -> nn.Module:
    """A copy of a model's first blocks, with its embedding, final norm and head; the model stays as it is."""
    with surgery.without_layers(model, range(kept, len(decoder_stack(model)))):
        return copy.deepcopy(model)


def with_prompts(model: nn.Module, initial: Tensor) -> nn.Module:
    """The model with virtual tokens before every input, which alone are trained.

    Args:
        model: the model, whose weights are frozen.
        initial: int64 (virtual tokens,), the vocabulary's tokens that they begin as.

    Raises:
        NotApplicable: peft cannot do that to such a model.
    """
    import peft

    model.requires_grad_(False)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        start = embedding(initial.to(embedding.weight.device)).float()
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(initial),
        token_dim=start.shape[-1],
        # peft looks for these in the config, and uses neither of them here.
        num_layers=len(decoder_stack(model)),
        num_attention_heads=1,
        num_transformer_submodules=1,
    )
    try:
        prompted = peft.get_peft_model(model, config)
        prompted.get_prompt(batch_size=1)
    except Exception as error:  # it looks for an embedding where the models it knows have theirs
        reason = " ".join(str(error).split())[:120]
        raise NotApplicable(f"peft cannot tune prompts of {type(model).__name__} ({reason})") from error
    prompted.prompt_encoder[prompted.active_adapter].embedding.weight.data = start
    return prompted


def label_logits(model: nn.Module, batch: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """Logits of the labels' words after each prompt; float32 (batch, labels), with gradients where they are on.

    The head runs on the last real position of each prompt alone: of a model of one block it would be most of the work.
    Padding lies behind that position, so a causal model never sees it, and needs no mask.

    Args:
        model: any causal model, or peft's with virtual tokens before the input.
        batch: a batch from `classification_sets.collate`.
        words: int64 (labels,) from `classification_sets.label_tokens`.
    """
    last = batch["attention_mask"].sum(1) - 1
    tokens = batch["input_ids"].shape[1]

    def gather(_: nn.Module, args: tuple) -> tuple:
        hidden = args[0]
        places = last.to(hidden.device) + hidden.shape[1] - tokens  # behind the virtual tokens
        return (hidden[torch.arange(len(last), device=hidden.device), places][:, None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    finally:
        handle.remove()
    return logits[:, 0, words.to(logits.device)].float()


def label_loss(model: nn.Module, batch: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """Mean cross-entropy of the right label among the labels, nats a text; a scalar."""
    logits = label_logits(model, batch, words)
    return nn.functional.cross_entropy(logits, batch["label"].to(logits.device))


@torch.no_grad()
def judge(
    model: nn.Module, examples: Sequence[Mapping[str, Tensor]], words: Tensor, batch_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which texts a model labels right, and the right label's log-probability among the labels, in nats.

    Args:
        model: the model, in evaluation mode.
        examples: examples from `classification_sets.encode`.
        words: int64 (labels,) from `classification_sets.label_tokens`.
        batch_tokens: tokens a forward may hold; halved when memory runs out. It decides no more than rounding does.

    Returns:
        bool (examples,) and float32 (examples,).

    Raises:
        StudyError: memory for not even one text.
    """
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little padding
    # A processor computes padding like text; a GPU waits for its next batch rather.
    padded = math.inf if devices.is_gpu(device) else PADDED
    correct, gold = np.zeros(len(examples), bool), np.zeros(len(examples), np.float32)
    done = 0
    while done < len(order):
        high = done + 1
        longest = padded * len(examples[order[done]]["input_ids"])
        while high < len(order) and (length := len(examples[order[high]]["input_ids"])) <= longest:
            if (high + 1 - done) * length > batch_tokens:
                break
            high += 1
        places = order[done:high]
        batch = {n: t.to(device) for n, t in classification_sets.collate([examples[i] for i in places]).items()}
        try:
            log_probs = label_logits(model, batch, words).log_softmax(-1)
        except (RuntimeError, MemoryError) as error:
            devices.halved(len(places), error, "one text to classify")
            batch_tokens = max(1, len(places) // 2 * batch["input_ids"].shape[1])
            continue
        labels = batch["label"].to(log_probs.device)
        correct[places] = (log_probs.argmax(-1) == labels).cpu().numpy()
        gold[places] = log_probs.gather(1, labels[:, None])[:, 0].cpu().numpy()
        done = high
    if not np.isfinite(gold).all():
        raise StudyError("the tuned model gives NaN or infinite logits: choose a lower learning rate, or dtype float32")
    return correct, gold
