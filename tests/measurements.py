"""A measurement on given sequences, and what it must come to by plain forwards."""

import time
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from layer_redundancy.core import variants
from layer_redundancy.core.store import Result, Store, settings_text
from layer_redundancy.evaluate import sweep
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.models import surgery
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack


class Continuations:
    """A measurement on given sequences; stores the log-likelihoods as they are."""

    version, settings = 1, settings_text({})

    def __init__(self, sequences, name="continuations"):
        self.sequences, self.name, self.data = sequences, name, str(hash(tuple(sequences)))

    def result(self, outputs):
        flat = [output for targets in outputs for output in targets]
        return Result({}, {"logprob": np.array([o[0] for o in flat]), "greedy": np.array([o[1] for o in flat])})


def ragged_sequences(seed=0):
    """Inputs of many lengths, with one long target, several letters, or targets of different lengths."""
    rng = np.random.default_rng(seed)

    def tokens(n):
        return tuple(int(t) for t in rng.integers(3, 97, n))

    sequences = []
    for length in (9, 3, 17, 5, 9, 2):
        ids = tokens(length)
        sequences.append(ScoredSequence(ids, (tokens(length),)))
        sequences.append(ScoredSequence(ids, tuple(tokens(1) for _ in range(4))))
        sequences.append(ScoredSequence(ids, (tokens(1), tokens(2))))
    for length in (20, 11):  # beyond the sliding windows of the tiny models
        shared = tokens(length)
        sequences += [ScoredSequence(shared + tokens(n), (tokens(1), tokens(min(n, 3)))) for n in (1, 4, 7)]
    return sequences


def plain(model, sequences, removed, device="cpu"):
    """One plain forward of the pruned model a sequence: log-softmax of all logits, then slice."""
    answers = []
    with surgery.without_layers(model, removed), torch.no_grad():
        for s in sequences:
            ids = torch.tensor([s.input_ids], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1).cpu()
            for target in s.targets:
                rows = logits[len(s.input_ids) - len(target) :]
                at = torch.tensor(target)
                answers.append((rows[torch.arange(len(at)), at].sum().item(), bool((rows.argmax(-1) == at).all())))
    return answers


@contextmanager
def silenced(model, variant):
    """The model without the heads that a variant lacks."""
    with ExitStack() as undo:
        for block, *heads in (element for element in variant if isinstance(element, tuple)):
            for head in heads:
                undo.enter_context(surgery.without_head(model, block, head))
        yield


def identity(name="tiny", fingerprint="f"):
    return ModelIdentity(name, name, "", fingerprint, 5)


class Fixed(Continuations):
    def __init__(self):
        super().__init__(ragged_sequences())
        self.data = "the same in every process"


FIXED = Fixed()


def sweep_slowly(stack, path, connection):
    """A sweep with pauses, in a process of its own."""

    class Slow(DecoderStack):
        def run_block(self, *arguments):
            time.sleep(0.01)
            return super().run_block(*arguments)

    connection.send("ready")
    with Store(path) as store:
        sweep.run(
            identity(), lambda: Slow(**vars(stack)), variants.single_removal(5), [FIXED], store, 8, progress=False
        )
