"""What the paper profile takes from elsewhere: repositories, pinned revisions, sizes, licences, and how much of each.

Sizes and numbers of tokens are for `make plan`, which must show what is ahead before anything is downloaded. They are
replaced by the hub's sizes where it can be reached, and by what was counted once the data is there (`make prefetch`).
Standard library only, like `profiles`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        revision: the commit that is studied, where one is known to us; None for the newest.
        gigabytes: size of the weight files that are downloaded (10^9 bytes).
        licence: the licence, as its page names it.
        gated: its licence must be accepted by an account before it can be downloaded.
        ungated: a repository with the same weights that asks for no account; "" where there is none.
        shape: the config's fields that decide how long it takes and how much memory, for planning without the hub.
    """

    revision: str | None
    gigabytes: float
    licence: str
    gated: bool = False
    ungated: str = ""
    shape: Mapping[str, Any] = field(default_factory=dict)


def _llama(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
    }  # fmt: skip


LLAMA_2_7B, LLAMA_2_13B = _llama(4096, 11008, 32, 32), _llama(5120, 13824, 40, 40)
LLAMA_2_70B = _llama(8192, 28672, 80, 64) | {"num_key_value_heads": 8}
BAICHUAN_2_7B = LLAMA_2_7B | {"model_type": "baichuan", "vocab_size": 125696}
BAICHUAN_2_13B = _llama(5120, 13696, 40, 40) | {"model_type": "baichuan", "vocab_size": 125696}
del BAICHUAN_2_13B["max_position_embeddings"]  # as published; that is how the two sizes tell rotary from ALiBi
BAICHUAN_2_13B["model_max_length"] = 4096
RWKV_5_7B = {
    "model_type": "rwkv5", "vocab_size": 65536, "hidden_size": 4096, "num_hidden_layers": 32, "head_size": 64,
    "intermediate_size": 14336,
}  # fmt: skip

LLAMA_LICENCE, BAICHUAN_LICENCE = "Llama 2 Community License", "Baichuan 2 Community License"
MODELS: dict[str, HubModel] = {
    "meta-llama/Llama-2-7b-hf": HubModel(
        "01c7f73d771dfac7d292323805ebc428287df4f9", 13.48, LLAMA_LICENCE, True, "NousResearch/Llama-2-7b-hf", LLAMA_2_7B
    ),
    "meta-llama/Llama-2-13b-hf": HubModel(
        "5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1", 26.03, LLAMA_LICENCE, True, "NousResearch/Llama-2-13b-hf",
        LLAMA_2_13B,
    ),
    "meta-llama/Llama-2-70b-hf": HubModel(
        None, 137.96, LLAMA_LICENCE, True, "NousResearch/Llama-2-70b-hf", LLAMA_2_70B
    ),
    "NousResearch/Llama-2-7b-hf": HubModel(
        "dacdfcde31297e34b19ee0e7532f29586d2c17bc", 13.48, LLAMA_LICENCE, shape=LLAMA_2_7B
    ),
    "NousResearch/Llama-2-13b-hf": HubModel(
        "b0491461253755d8c60bf22f0d696b9e337c6375", 26.03, LLAMA_LICENCE, shape=LLAMA_2_13B
    ),
    "baichuan-inc/Baichuan2-7B-Base": HubModel(
        "f9d4d8dd2f7a3dbede3bda3b0cf0224e9272bbe5", 15.01, BAICHUAN_LICENCE, shape=BAICHUAN_2_7B
    ),
    "baichuan-inc/Baichuan2-13B-Base": HubModel(
        "c6f590cab590cf33e78ad834dbd5f9bd6df34a94", 27.79, BAICHUAN_LICENCE, shape=BAICHUAN_2_13B
    ),
    "RWKV/v5-Eagle-7B-HF": HubModel(
        "bb01ae9434eb9f4934c1ebe486eb7d3e25883d72", 15.04, "Apache-2.0", shape=RWKV_5_7B
    ),
    "TheBloke/Llama-2-7B-GPTQ": HubModel(
        "60b5c75d47a7d925782e74d16b6686cf0abbd052", 3.9, LLAMA_LICENCE, shape=LLAMA_2_7B
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Amount:
    """What one variant of a model puts through it for a text or benchmark.

    Attributes:
        items: number of questions, or of blocks of running text.
        sequences: distinct inputs: one a question where letters are compared, one a choice where texts are.
        tokens: tokens of all inputs.
        shared: tokens of all inputs, a prefix that inputs have in common counted once.
        scored: positions that go through the head.
        answers: tokens that are written, at most, where the answer is generated.
        groups: prefixes that inputs share; each goes with as many inputs.
    """

    items: int
    sequences: int
    tokens: int
    shared: int
    scored: int
    answers: int = 0
    groups: int = 0


@dataclass(frozen=True)
class Data:
    """A text, benchmark or data set to classify that is downloaded.

    Attributes:
        repository: repository on the hub; or the address of a single file, or a repository of such files.
        megabytes: rough size of what is downloaded (10^6 bytes).
        licence: the licence, as its page names it; "" where it names none.
        amount: rough amount in Llama-2's tokens; None for running text, whose amount the profile decides.
        revision: the commit that is used, where it is pinned.
    """

    repository: str
    megabytes: float
    licence: str
    amount: Amount | None = None
    revision: str | None = None


def _choices(items: int, choices: float, length: int) -> Amount:
    """Whole prompts of about `length` tokens as choices: every token is scored, so nothing can be shared."""
    sequences = round(items * choices)
    return Amount(items, sequences, sequences * length, sequences * length, sequences * length)


def _texts(items: int, length: int) -> Amount:
    """Texts of a test split to classify, each by itself; what a template and worked examples add is not counted."""
    return Amount(items, items, items * length, items * length, items)


# Keys are names of corpora, tasks or data sets to classify. Items are counts of the data sets. MMLU's tokens were
# counted; the others' are items times typical lengths, from the bytes of the data sets' rows.
_GLUE, _RACE, _FEWCLUE = "aps/super_glue", "ehovy/race", "CLUEbenchmark/FewCLUE"
DATA: dict[str, Data] = {
    "pg19": Data("emozilla/pg19", 36, "Apache-2.0", revision="c021754c8e01c5b1cc83a1f549c1f97fbbb756b8"),
    # One file of C4's training split (356,317 pages; about 152 million tokens by T5's tokenizer, and 164 million are
    # trained on) and one of its validation split.
    "c4": Data("allenai/c4", 360, "ODC-BY", revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2"),
    "alpaca": Data("yahma/alpaca-cleaned", 44, "CC-BY-4.0", revision="12567cabf869d7c92e573c7c783905fc160e9639"),
    "sst2": Data("stanfordnlp/sst2", 3, "unknown", _texts(872, 26), "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"),
    "ag_news": Data("fancyzhx/ag_news", 20, "unknown", _texts(7600, 55), "eb185aade064a813bc0b7f42de02595523103ca4"),
    "trec": Data("SetFit/TREC-QC", 1, "", _texts(500, 11), "0a34640b3cac3affef6f0abdfb81e3d0ecffcf92"),
    "emotion": Data("dair-ai/emotion", 1, "other", _texts(2000, 23), "cab853a1dbdf4c42c2b3ef2173804746df8825fe"),
    "mmlu": Data("cais/mmlu", 5, "MIT", Amount(14042, 14042, 10_200_000, 1_740_000, 14042, groups=57)),
    "shortgpt_cmnli": Data("clue/clue", 54, "unknown", _choices(12241, 3, 150)),
    "shortgpt_hellaswag": Data("Rowan/hellaswag", 37, "MIT", _choices(10042, 4, 100)),
    "shortgpt_piqa": Data("baber/piqa", 3, "unknown", _choices(1838, 2, 50)),
    "shortgpt_chid": Data(_FEWCLUE, 1, "unknown", _choices(2002, 7, 280)),
    "shortgpt_wsc": Data(_FEWCLUE, 1, "unknown", _choices(976, 2, 130)),
    "shortgpt_commonsense_qa": Data("tau/commonsense_qa", 2, "MIT", _choices(1221, 5, 260)),
    "shortgpt_boolq": Data(_GLUE, 6, "other", _choices(3270, 2, 155)),
    "shortgpt_race_high": Data(_RACE, 34, "other", Amount(3498, 3498, 1_750_000, 660_000, 3498, groups=1045)),
    "shortgpt_race_middle": Data(_RACE, 8, "other", Amount(1436, 1436, 450_000, 180_000, 1436, groups=362)),
    "shortgpt_c3": Data("nlpdata/c3", 1, "non-commercial research", _choices(1825, 3.6, 250)),
    "shortgpt_cmmlu": Data(
        "haonan-li/cmmlu", 1, "CC-BY-NC-4.0", Amount(11582, 11582, 12_700_000, 2_000_000, 11582, groups=67)
    ),
    "shortgpt_xsum": Data("EdinburghNLP/xsum", 338, "unknown", Amount(1000, 1000, 560_000, 560_000, 0, 100)),
    "hellaswag": Data(
        "Rowan/hellaswag", 37, "MIT", Amount(10042, 40168, 3_900_000, 2_000_000, 1_400_000, groups=10042)
    ),
    "piqa": Data("baber/piqa", 3, "unknown", Amount(1838, 3676, 165_000, 130_000, 90_000, groups=1838)),
    "wsc": Data(_GLUE, 1, "other", Amount(104, 104, 6_000, 6_000, 104)),
    "commonsense_qa": Data("tau/commonsense_qa", 2, "MIT", Amount(1221, 1221, 80_000, 80_000, 1221)),
    "boolq": Data(_GLUE, 6, "other", Amount(3270, 3270, 460_000, 460_000, 3270)),
    "race": Data("EleutherAI/race", 5, "other", Amount(1045, 4180, 2_300_000, 620_000, 30_000, groups=1045)),
    "gsm8k_cot": Data("openai/gsm8k", 3, "MIT", Amount(1319, 1319, 820_000, 820_000, 0, 256)),
    "humaneval": Data("openai/openai_humaneval", 1, "MIT", Amount(164, 164, 26_000, 26_000, 0, 1024)),
}

# sha256 of files on no hub, by their path among GitHub's raw files.
FILES = {
    "nlpdata/c3/dd2d89324e961786a1a9eec73ae13f1c6b800384/data/c3-d-dev.json": (
        "8c7054930a40aeb288ad7c51c42fa93d54aef678ccab29c75d46a7432f4f6278"
    ),
    "CLUEbenchmark/FewCLUE/349d34535a6520b93829bde6fdb264d82a251f48/datasets/chid/test_public.json": (
        "95ced0f30b80a964994ef3eff486ba7b2880e5e4f3aa5be571eb1e88066eed4b"
    ),
    "CLUEbenchmark/FewCLUE/09136670c8b21a54f6777b8cbb4494699d27c6d7/datasets/chid/dev_few_all.json": (
        "9a826d6173e032e5cf73b41be48b293dc553ad306a9c8b913ffb6829abc68a2f"
    ),
    "CLUEbenchmark/FewCLUE/349d34535a6520b93829bde6fdb264d82a251f48/datasets/cluewsc/test_public.json": (
        "52532104368b124c88a29dc24665d4f749c68a6fcaa18cd9101e2b5fd514d704"
    ),
}


def pinned(model: str) -> str | None:
    """The commit that stands for a hub id unless the user names another; None where none is known."""
    return MODELS[model].revision if model in MODELS else None
