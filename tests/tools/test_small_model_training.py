"""Training of the small RWKV and of its transformer twin, in small; and the models that came out of it."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import articles
from layer_redundancy.models import checkpoints, loading
from tools.small_models import compressors as compression
from tools.small_models import rates
from tools.small_models import texts as training_texts
from tools.small_models import train as training
from tools.small_models.train import Settings

TINY = Settings(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=2,
    head_size=16,
    steps=60,
    windows=2,
    window_tokens=32,
    warmup=5,
    autocast=False,
)
BOTH = pytest.mark.parametrize(
    "tiny", [TINY, dataclasses.replace(TINY, kind="transformer")], ids=["rwkv", "transformer"]
)
TEXT = "the cat sat on the mat and the dog sat on the log. "
SOURCES = {"wikipedia": [TEXT * 40, TEXT[::-1] * 40], "news": [TEXT * 30]}


@BOTH
def test_training_learns_and_writes_a_log(tmp_path, tiny):
    model, tokenizer, log = training.train(tiny, SOURCES, [TEXT * 4], tmp_path)
    assert [row["step"] for row in log] == [50, 60]
    assert log[-1]["tokens"] == 60 * 2 * 32
    fresh = training.initial_model(tiny)
    before, after = (training.bits_per_byte(m, tokenizer, [TEXT * 4]) for m in (fresh, model))
    assert after < 0.5 * before
    assert log[-1]["bits_per_byte"] == pytest.approx(after, abs=1e-3)


@pytest.mark.slow
@BOTH
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, tiny):
    whole, *_ = training.train(tiny, SOURCES, [TEXT], tmp_path / "whole")
    script = (
        # One thread, as conftest.py says: sums over more are rounded otherwise, and training amplifies that.
        "import sys, torch; sys.path[:0] = ['tests', 'tests/tools']\n"
        "import test_small_model_training as t; torch.set_num_threads(1)\n"
        "t.training.CHECKPOINT_SECONDS = 0\n"
        "tiny = t.dataclasses.replace(t.TINY, kind=sys.argv[2])\n"
        "t.training.train(tiny, t.SOURCES, [t.TEXT], t.training.Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "parts"), tiny.kind], cwd=paths.ROOT)
    checkpoint = tmp_path / "parts" / f"{training.fingerprint(tiny, SOURCES, [TEXT])}.pt"
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < TINY.steps
    parts, _, log = training.train(tiny, SOURCES, [TEXT], tmp_path / "parts")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert log[-1]["step"] == TINY.steps


def test_other_settings_and_texts_are_another_run(monkeypatch):
    other = dataclasses.replace(TINY, seed=1)
    shorter = {**SOURCES, "news": [TEXT]}
    runs = [(TINY, SOURCES, [TEXT]), (other, SOURCES, [TEXT]), (TINY, shorter, [TEXT]), (TINY, SOURCES, [])]
    names = {training.fingerprint(*run) for run in runs}
    monkeypatch.setitem(training_texts.SHARES, "news", 0.5)
    assert len(names | {training.fingerprint(TINY, SOURCES, [TEXT])}) == 5
    tokenizer = training.train_tokenizer(SOURCES["news"], 300)
    streams = training.streams(SOURCES, tokenizer)
    first, again = (training.windows(streams, TINY, 3) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 33)
    assert not torch.equal(first, training.windows(streams, other, 3))


def test_divergence_is_one_line(tmp_path):
    wild = dataclasses.replace(TINY, learning_rate=1e38)
    with pytest.raises(StudyError, match="training diverged at step 2: lower the learning rates"):
        training.train(wild, SOURCES, [], tmp_path)


@pytest.mark.parametrize("vocab_size", [257, 400])
def test_every_text_survives_the_tokenizer(vocab_size):
    tokenizer = training.train_tokenizer(SOURCES["wikipedia"], vocab_size)
    for text in ("Ünïcødé, 漢字 🦜\n\n\ttabs  and spaces ", TEXT, "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_tokens_to_ids(training.END) == 0 and len(tokenizer) <= vocab_size


def test_bits_per_byte_do_not_depend_on_the_forwards_length():
    model = training.initial_model(TINY).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tokenizer = training.train_tokenizer(SOURCES["news"], 300)
    values = [training.bits_per_byte(model, tokenizer, [TEXT * 5], context) for context in (7, 64, 512)]
    assert max(values) - min(values) < 1e-5


# ------------------------------------------------------------------------------------------------ the twin

TWIN = training.RECIPES["transformer"]


def test_the_twin_differs_from_the_rwkv_in_nothing_but_what_mixes_tokens():
    assert dataclasses.replace(training.RECIPES["rwkv"], kind="transformer") == TWIN or training.RATES.is_file()
    tokens = training.streams(SOURCES, training.train_tokenizer(SOURCES["news"], 300))
    twin = dataclasses.replace(TINY, kind="transformer")
    assert torch.equal(training.windows(tokens, TINY, 7), training.windows(tokens, twin, 7))
    weights = []
    for settings in training.RECIPES.values():
        model = training.initial_model(settings)
        matrices, rest = (o.param_groups[0]["params"] for o in training.optimizers(model, settings))
        assert len(matrices) + len(rest) == len(list(model.parameters()))
        weights.append(sum(p.numel() for p in matrices))
        assert all(not half.weight.any() for _, half in training._halves(model)), "blocks add nothing at first"
        assert len(training._halves(model)) == 2 * settings.num_hidden_layers
    assert weights == [12 * 479_232] * 2
    assert model.config.num_attention_heads == model.config.num_key_value_heads == 6
    assert model.config.max_position_embeddings == 512 and not model.config.tie_word_embeddings


def noisy(settings):
    model = training.initial_model(settings).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


@BOTH
def test_a_short_text_costs_what_one_forward_says(tiny):
    model, tokenizer = noisy(tiny), training.train_tokenizer(SOURCES["news"], 300)
    text = TEXT[:20]
    ids = torch.tensor([[0, *tokenizer(text).input_ids]])
    likely = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
    expected = -likely.sum().item() / np.log(2) / len(text)
    for carry in (None, False):
        assert training.bits_per_byte(model, tokenizer, [text], 64, carry) == pytest.approx(expected, rel=1e-5)


@BOTH
@pytest.mark.parametrize("repeats", [1, 2, 7])
def test_windows_score_every_token_once_with_half_a_window_before_it(tiny, repeats):
    model, tokenizer = noisy(tiny), training.train_tokenizer(SOURCES["news"], 300)
    text = TEXT * repeats
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    found = training.bits_per_byte(model, tokenizer, [text], 32, carry=False)
    assert max(seen) <= 32
    ids = [0, *tokenizer(text).input_ids]
    nats = 0.0
    for place in range(1, len(ids)):  # one token at a time
        start = 0 if place <= 32 else 16 * ((place - 17) // 16)
        assert place - start <= 32 and (start == 0 or place - start > 16)
        logits = model(torch.tensor([ids[start:place]])).logits[0, -1]
        nats -= logits.log_softmax(-1)[ids[place]].item()
    assert found == pytest.approx(nats / np.log(2) / len(text), rel=1e-5)


def test_rates_are_tried_once_and_as_widely_for_either_kind(tmp_path, monkeypatch):
    asked = [*rates.grid(300)]
    widths = {
        kind: {(s.matrix_learning_rate, s.learning_rate) for s in asked if s.kind == kind} for kind in training.NAMES
    }
    assert widths["rwkv"] == widths["transformer"] and len(asked) == 10
    monkeypatch.setattr(rates, "grid", lambda steps: [dataclasses.replace(TINY, steps=steps)])
    arguments = (2, SOURCES, [TEXT], tmp_path, tmp_path / "rates.csv")
    first = rates.try_rates(*arguments)
    assert len(first) == 1 and float(first[0].bits_per_byte) > 0 and not list(tmp_path.glob("*.pt"))
    monkeypatch.setattr(rates, "train", None)
    assert rates.try_rates(*arguments) == first
    monkeypatch.setattr(training, "RATES", tmp_path / "rates.csv")
    assert f"{float(first[0].bits_per_byte):.3f}, came of 0.006 for matrices" in training.tried("rwkv")
    assert training.tried("transformer") == ""


def test_only_the_recipe_is_shipped():
    assert training.home(TWIN) == paths.MODELS / profiles.EMBEDDED_TWIN
    without = dataclasses.replace(TWIN, dropout=0.0)
    assert training.home(without) == paths.CACHE / "small-models" / "llama-6.6m-dropout-0"
    assert "make twin-train DROPOUT=0" in training._introduction(without, 6.54)


# ------------------------------------------------------------------------------------------------ what must be beaten


def direct_kneser_ney(training: bytes, evaluation: bytes, order: int) -> float:
    """The same model by its definition, with dictionaries."""
    from collections import Counter

    def grams(data, n, pad):
        data = b"\0" * pad + data
        return [data[i - n + 1 : i + 1] for i in range(pad, len(data))]

    top = Counter(grams(training, order, order - 1))
    levels = {order: top}
    for n in range(order - 1, 0, -1):
        levels[n] = Counter(gram[1:] for gram in levels[n + 1])

    def probability(gram):
        if not gram:
            return 1 / 256
        counts = levels[len(gram)]
        once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once else 0
        context = {g: c for g, c in counts.items() if g[:-1] == gram[:-1]}
        if not context:
            return probability(gram[1:])
        total = sum(context.values())
        return (max(counts[gram] - discount, 0) + discount * len(context) * probability(gram[1:])) / total

    return -np.mean([np.log2(probability(gram)) for gram in grams(evaluation, order, order - 1)])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_model_is_its_definition(order):
    training, evaluation = ["abracadabra, the cat sat. " * 2, "a dog sat on a log"], ["abra sat on the dog z"]
    direct = direct_kneser_ney(b"\n\n".join(t.encode() for t in training), evaluation[0].encode(), order)
    assert compression.ngram_bits_per_byte(training, evaluation, order) == pytest.approx(direct, rel=1e-12)


def test_compressors_know_order_from_noise():
    noise = np.random.default_rng(0).integers(32, 127, 4000).astype(np.uint8).tobytes().decode()
    assert compression.xz_bits_per_byte([noise]) > 6 > 1 > compression.xz_bits_per_byte([TEXT * 80])
    assert compression.ngram_bits_per_byte([noise], [noise[::-1]], 3) > 6
    assert compression.ngram_bits_per_byte([TEXT * 20], [TEXT * 4], 5) < 1
    with pytest.raises(ValueError, match="order must be 1 to 7"):
        compression.ngram_bits_per_byte(["a"], ["b"], 8)


# ------------------------------------------------------------------------------------------------ what is shipped


@pytest.fixture(scope="module")
def shipped():
    identity = checkpoints.identify(profiles.get("smoke", model=profiles.EMBEDDED_RWKV))
    return identity, loading.load(identity), loading.load_tokenizer(identity)


FOLDER = paths.MODELS / profiles.EMBEDDED_RWKV


def test_shipped_model_is_small_and_deep_enough(shipped):
    identity, model, _ = shipped
    assert identity.num_hidden_layers >= 12 and identity.num_attention_heads == 0 and identity.max_length is None
    assert (FOLDER / "model.safetensors").stat().st_size <= 16e6
    assert model.config.model_type == "rwkv5" and model.config.model_version == "5.2"


def test_shipped_model_beats_xz_on_text_it_has_not_seen(shipped):
    _, model, tokenizer = shipped
    texts = [text[:3000] for text in articles("wikipedia", "evaluation")[:8]]
    mine = training.bits_per_byte(model, tokenizer, texts)
    assert mine < compression.xz_bits_per_byte(articles("wikipedia", "evaluation"))
    card = (FOLDER / "README.md").read_text()
    rows = dict(line.strip("| ").split(" | ") for line in card.splitlines() if line.count("|") == 3 and "." in line)
    scores = {name: float(value) for name, value in rows.items() if value.replace(".", "").isdigit()}
    assert scores["this model"] < min(scores["xz -9"], *(v for k, v in scores.items() if "n-gram" in k))
    assert abs(mine - scores["this model"]) < 0.25  # the card is this model's: beginnings cost more than whole articles


def test_shipped_twin_is_as_good_as_the_rwkv_within_a_twentieth():
    folder = paths.MODELS / profiles.EMBEDDED_TWIN
    identity = checkpoints.identify(profiles.get("smoke", model=profiles.EMBEDDED_TWIN))
    assert (identity.num_hidden_layers, identity.num_attention_heads, identity.max_length) == (12, 6, 512)
    assert (folder / "model.safetensors").stat().st_size <= 16e6
    assert (folder / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
    texts = [text[:3000] for text in articles("wikipedia", "evaluation")[:8]]
    costs = []
    for name in profiles.TRAINED_HERE:
        of = checkpoints.identify(profiles.get("smoke", model=name))
        costs.append(training.bits_per_byte(loading.load(of), loading.load_tokenizer(of), texts))
    assert costs[1] < 1.05 * costs[0]


@pytest.mark.parametrize("name", profiles.TRAINED_HERE)
def test_shipped_log_is_of_a_whole_run(name):
    log = pd.read_csv(paths.MODELS / name / "training_log.csv")
    assert log.step.iloc[-1] == Settings().steps and log.loss.iloc[-1] < 0.7 * log.loss.iloc[0]
    judged = log.bits_per_byte.dropna()
    assert len(judged) >= 10 and judged.min() < judged.iloc[0]


@pytest.mark.slow
def test_weights_of_the_best_step_are_kept(tmp_path):
    """Training on one text and validating on noise: what is learnt late makes validation worse, and is not kept."""
    long = dataclasses.replace(TINY, steps=500, dropout=0.0)
    noise = [np.random.default_rng(3).integers(32, 127, 400).astype(np.uint8).tobytes().decode()]
    model, tokenizer, log = training.train(long, SOURCES, noise, tmp_path)
    judged = {row["step"]: row["bits_per_byte"] for row in log if row["bits_per_byte"] != ""}
    assert list(judged) == [250, 500] and judged[250] < judged[500]
    assert training.kept_step(log) == 250
    assert training.bits_per_byte(model, tokenizer, noise) == pytest.approx(judged[250], abs=1e-3)


@BOTH
def test_dropout_is_of_training_alone(tiny):
    settings = dataclasses.replace(tiny, dropout=0.5)
    model = training.initial_model(settings)
    ids = torch.arange(20)[None]
    plain = model.eval()(ids).logits
    training.add_dropout(model, settings.dropout)
    assert torch.equal(model.eval()(ids).logits, plain)
    assert not torch.equal(model.train()(ids).logits, plain)


@pytest.mark.slow
def test_training_texts_hold_no_evaluation_article():
    sources = training_texts.training_texts()
    assert set(sources) == set(training_texts.SHARES) and sum(training_texts.SHARES.values()) == pytest.approx(1)
    everything = "\n\n".join(text for texts in sources.values() for text in texts)
    assert 8e6 < len(everything) < 12e6
    held_out = [*articles("wikipedia", "evaluation"), *training_texts.validation_texts()]
    held_out = [p for text in held_out for p in text.split("\n\n")]
    assert not [paragraph for paragraph in held_out if paragraph in everything]
    assert "To be, or not to be,--that is the question:--" in everything
    paragraphs = [" ".join(p.split()) for p in everything.split("\n\n") if len(p) > 60]
    assert len(set(paragraphs)) > 0.99 * len(paragraphs)
