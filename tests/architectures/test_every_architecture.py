"""Every class of transformers' causal-LM mapping goes through all that the study does with a model.

`make test` runs those of SHARE, `make test-architectures` all of them; the latter writes docs/architectures.md anew.
"""

import json
from dataclasses import asdict

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import every_architecture
from architectures import outcomes
from layer_redundancy.core import paths

TABLE = paths.ROOT / "docs" / "architectures.md"
# One of each kind: what returns tuples, scales logits, carries a state, mixes kinds of blocks, cannot share prefixes...
SHARE = {
    "bert", "bloom", "cohere2", "deepseek_v3", "diffllama", "falcon:alibi", "gemma3", "gemma4_text:shared_keys",
    "gpt_bigcode", "gpt_neox_japanese", "gptj", "granite", "jamba", "lfm2", "llama4_text", "llama:dynamic_rope",
    "mamba", "minimax", "mixtral", "openai-gpt", "phi3:longrope", "qwen2_moe:every_second_sparse", "qwen3_next",
    "roberta", "rwkv",
}  # fmt: skip


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-architecture")
        metafunc.parametrize("name", sorted(every_architecture.CONFIGS if every else SHARE))


@pytest.mark.slow
def test_architecture(name, tmp_path, request):
    found = outcomes.tried(name, tmp_path)
    if request.config.getoption("--every-architecture"):
        place = paths.ROOT / "build" / "architectures" / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({column: asdict(outcome) for column, outcome in found.items()}))
    else:
        written = outcomes.answers(TABLE.read_text())
        assert {column: outcome.answer for column, outcome in found.items()} == written[name], (
            f"docs/architectures.md says otherwise: {found}"
        )


def test_the_table_has_every_class():
    assert set(SHARE) <= set(every_architecture.CONFIGS)
    assert set(outcomes.answers(TABLE.read_text())) == set(every_architecture.CONFIGS)
    kinds = {name.partition(":")[0] for name in every_architecture.CONFIGS}
    assert kinds | set(every_architecture.CANNOT) >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
