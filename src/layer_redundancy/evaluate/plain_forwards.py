"""One plain forward a variant: what sweeps must equal, and what they are timed against."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn, tensor
from torch.nn.utils.rnn import pad_sequence

from layer_redundancy.core.store import Outputs
from layer_redundancy.core.variants import Variant, removed_blocks
from layer_redundancy.evaluate import changes as of_blocks
from layer_redundancy.evaluate.changes import Prepare
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.models import surgery
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import DecoderStack


@contextmanager
def applied(stack: DecoderStack, variant: Variant, changes: Prepare | None = None) -> Iterator[nn.Module]:
    """The model as the variant: blocks taken out, heads silenced, blocks changed; put back on exit and on error.

    Raises:
        StudyError: as `surgery.without_layers`, `surgery.without_head` and `changes`.
    """
    removed = removed_blocks(len(stack), variant)
    changed = of_blocks.needed([variant], changes)
    with ExitStack() as undo:
        if changes is not None and changed:
            apply = changes(stack, changed)
            for one in changed:
                undo.enter_context(apply(one))
        for element in variant:  # heads first: they are named by the dense model's blocks
            if isinstance(element, tuple):
                for head in element[1:]:
                    undo.enter_context(surgery.without_head(stack.model, element[0], head))
        yield undo.enter_context(surgery.without_layers(stack.model, removed))


@torch.no_grad()
def score(model: nn.Module, sequences: Sequence[ScoredSequence], batch_tokens: int = 2048) -> list[Outputs]:
    """Log-likelihoods of every target by whole forwards of the model as it is: all blocks, the head at every position.

    Args:
        model: a transformers causal language model.
        sequences: batched by length, padded on the right; beyond `Sharing.alike_up_to`, by equal length.
        batch_tokens: tokens a forward may hold.

    Returns:
        As `scoring.score`.
    """
    device = model.get_input_embeddings().weight.device
    outputs: dict[int, Outputs] = {}
    waiting = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].input_ids))
    alike = sharing(model).alike_up_to
    while waiting:
        longest = len(sequences[waiting[0]].input_ids)
        rows = max(1, batch_tokens // longest)
        if alike is not None and longest > alike:
            rows = min(rows, sum(len(sequences[i].input_ids) == longest for i in waiting))
        part, waiting = waiting[:rows], waiting[rows:]
        ids = pad_sequence([tensor(sequences[i].input_ids) for i in part], batch_first=True)
        logits = model(input_ids=ids.to(device), use_cache=False).logits
        for row, i in enumerate(part):
            end = len(sequences[i].input_ids)
            logprobs = logits[row, end - sequences[i].num_scored : end].log_softmax(-1, dtype=torch.float32)
            outputs[i] = []
            for target in sequences[i].targets:
                here, wanted = logprobs[len(logprobs) - len(target) :], tensor(target, device=logits.device)
                chosen = here.gather(1, wanted[:, None])
                outputs[i].append((chosen.sum().item(), bool((here.argmax(-1) == wanted).all())))
    return [outputs[i] for i in range(len(sequences))]
