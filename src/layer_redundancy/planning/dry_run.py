"""What a piece of work would take that a study is about to be asked for: `--dry-run`."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from layer_redundancy.core import devices
from layer_redundancy.evaluate.amounts import text_amount
from layer_redundancy.models import checkpoints, throughput
from layer_redundancy.planning import plan
from layer_redundancy.planning.dry import DryStudy, Ledger
from layer_redundancy.planning.planner import keeps_prefixes
from layer_redundancy.planning.rates import Speed, probe
from layer_redundancy.study import Study


def estimate(study: Study, ask: Callable[[Study], Any]) -> plan.Row | None:
    """What the store lacks of what `ask` asks a study for; None where it lacks nothing.

    Rates come from two blocks with random weights in the model's shape, timed on this device. No weights are read.

    Args:
        study: the study that would be asked.
        ask: asks it for all of the work, and for nothing else.

    Raises:
        StudyError: as `ask`.
    """
    profile, identity = study.profile, study.identity
    config = checkpoints.config(identity)
    dry = DryStudy(
        profile,
        identity,
        study.store,
        study.inputs,
        study.figures,
        ledger=Ledger(),
        shape_of=identity.name,
        keeps_prefixes=keeps_prefixes(config),
        skips_stored=True,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        ask(dry)
    if not dry.ledger.work:
        return None
    stack = probe(config, profile.dtype, devices.found(profile.device))
    tokens = throughput.batch_tokens(stack, profile.batch_tokens)
    speed = Speed(stack, identity.num_hidden_layers, tokens, profile.compiled)
    text = text_amount(profile.text.evaluation_blocks, profile.text.block_length)
    return plan.row_of(identity.name, "", dry.ledger, {identity.name: speed}, text)
