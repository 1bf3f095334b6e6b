"""The model card: whose licence holds for what was made."""

from types import SimpleNamespace

import pytest

from layer_redundancy.models import gemma3
from layer_redundancy.pruning import card

TEXT = {"corpus": "wikipedia", "split": "evaluation", "blocks": 2, "tokens_a_block": 8}
LOSS = {"dense": 2.0, "pruned": 3.0, "increase": 0.4, "n": 2, "low": 2.5, "high": 3.5}
LOSS |= {"increase_low": 0.2, "increase_high": 0.6}


@pytest.mark.parametrize(
    "model, hub_id, named, terms",
    [
        ("gemma3-270m", "google/gemma-3-270m", "gemma", gemma3.TERMS),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", ""),
    ],
)
def test_what_is_made_of_an_embedded_model_has_its_licence_and_its_terms(model, hub_id, named, terms):
    licence = card.licence(SimpleNamespace(profile=SimpleNamespace(model=model)))
    found = {
        "base_model": model, "base_licence": licence, "base_revision": "wheel", "layer_redundancy": "0",
        "num_blocks": 3, "removed_blocks": [1], "measure": "taylor", "healed": None, "quantized_to_bits": None,
        "calibration": TEXT, "evaluation": TEXT, "needs_import": [], "cost": {"perplexity": LOSS, "tasks": []},
    }  # fmt: skip
    written = card.text(found)
    head, _, body = written.removeprefix("---\n").partition("\n---\n")
    assert f"base_model: {hub_id}" in head.splitlines() and f"license: {named}" in head.splitlines()
    end = body.partition("## Licence\n\n")[2]
    assert end == f"That of the base model: {licence}.\n" + (f"\n{terms}\n" if terms else "")
