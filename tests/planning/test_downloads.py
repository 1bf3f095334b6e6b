from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import benchmark_items, classification_sets, hub, wheels
from layer_redundancy.evaluate.batches import arrange
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.models import smollm2
from layer_redundancy.models.checks import Sharing
from layer_redundancy.planning import counts, downloads, planner
from layer_redundancy.planning.dry import Needs
from made_up import checkpoint

PAPER = profiles.get("paper")


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "RECORD", tmp_path / "prefetched.json")


@pytest.mark.slow
def test_the_paper_profiles_models_are_the_papers_with_pinned_revisions():
    found = downloads.needs(PAPER)
    assert next(iter(found)) == "meta-llama/Llama-2-7b-hf" and "baichuan-inc/Baichuan2-13B-Base" in found
    assert {"RWKV/v5-Eagle-7B-HF", "TheBloke/Llama-2-7B-GPTQ"} < set(found) and len(found) == 6
    for model in found:
        source = sources.MODELS[model]
        assert len(source.revision) == 40 and source.shape and source.gigabytes > 1
        assert not source.gated or sources.MODELS[source.ungated].shape == source.shape
        assert profiles.get("paper", model=model).revision == source.revision
        assert profiles.get("paper", model=model, revision="main").revision == "main"


@pytest.mark.slow
def test_profiles_without_a_hub_download_nothing():
    for name in ("smoke", "embedded"):
        assert downloads.downloads(profiles.get(name)) == []


def test_a_model_inside_packages_is_planned_before_anything_of_it_is_fetched(tmp_path, monkeypatch):
    """Its shape is known, its terms are told, and nobody is asked for a wheel."""
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(wheels, "fetch", lambda *_: pytest.fail("a wheel was fetched"))
    gemma = planner.config_of(profiles.EMBEDDED_GEMMA, None)
    assert (gemma.num_hidden_layers, gemma.hidden_size, gemma.vocab_size) == (18, 640, 262144)
    needed = {profiles.EMBEDDED_GEMMA: Needs(), profiles.EMBEDDED_RWKV: Needs()}
    (found,) = downloads.downloads(profiles.get("embedded"), needed)
    assert (found.name, found.here, found.gigabytes, found.licence) == ("gemma3-270m", False, 0.238, "Gemma")
    assert found.note.startswith("1.1 GB more when it is converted. ") and "ai.google.dev/gemma/terms" in found.note
    assert not any(tmp_path.iterdir())


def test_a_users_model_is_downloaded_alone(tmp_path):
    folder = checkpoint(tmp_path / "model", "llama")
    assert set(downloads.needs(profiles.get("paper", model=str(folder)))) == {str(folder), "RWKV/v5-Eagle-7B-HF"}
    assert not any(map(downloads.on_hub, downloads.needs(profiles.get("embedded", model=str(folder)))))


@pytest.mark.slow
def test_what_is_missing_is_told_with_licences(record):
    found = {d.name: d for d in downloads.downloads(profiles.get("paper"))}
    llama = found["meta-llama/Llama-2-7b-hf"]
    assert not llama.here and "NousResearch/Llama-2-7b-hf" in llama.note and llama.source.endswith("@01c7f73d")
    assert found["mmlu"].source == "cais/mmlu" and "humaneval" not in found
    assert 80 < sum(d.gigabytes for d in found.values()) < 120
    assert found["hellaswag"].gigabytes == 0 < found["shortgpt_hellaswag"].gigabytes  # one repository, counted once


@pytest.mark.slow
def test_what_is_trained_on_and_classified_is_downloaded_too(record):
    needed = downloads.needs(PAPER)
    assert downloads.texts(needed) == ["pg19", "c4", "alpaca"]
    assert downloads.datasets(needed) == ["sst2", "ag_news", "trec", "emotion"]
    found = {d.name: d for d in downloads.downloads(profiles.get("paper"))}
    for name in (*downloads.texts(needed), *downloads.datasets(needed)):
        data = sources.DATA[name]
        assert len(data.revision) == 40 and found[name].source == data.repository and not found[name].here
        assert found[name].gigabytes == data.megabytes / 1000 and found[name].licence == data.licence
    for name in downloads.datasets(needed):
        assert classification_sets.SOURCES[name].repository == sources.DATA[name].repository
    for name in ("smoke", "embedded"):
        none = downloads.needs(profiles.get(name))
        assert downloads.texts(none) == downloads.datasets(none) == []


@pytest.mark.slow
def test_all_of_it_is_fetched_once(record, monkeypatch, tmp_path):
    asked, needed = [], downloads.needs(PAPER)
    corpora_of = {name: (lambda name=name: asked.append(name) or tmp_path, ("*.txt",)) for name in downloads.CORPORA}
    monkeypatch.setattr(downloads, "CORPORA", corpora_of)
    for function in ("fetch_model", "fetch_task", "fetch_texts"):
        monkeypatch.setattr(downloads, function, lambda name, *_: asked.append(getattr(name, "name", name)))
    downloads.prefetch(profiles.get("paper"), lambda _: None)
    of_paper = {d.name for d in downloads.downloads(profiles.get("paper"))}
    assert len(asked) == len(set(asked)) and set(asked) == of_paper and {"c4", "alpaca", "trec"} < of_paper
    assert set(counts.read_record()) == of_paper - set(needed)
    asked.clear()
    downloads.prefetch(profiles.get("paper"), lambda _: None)
    assert not set(downloads.datasets(needed)) & set(asked) and "mmlu" not in asked  # it goes on where it was
    with pytest.raises(
        StudyError, match=r"^corpus 'pg19' has no \*.txt in the hub's cache: run `make prefetch` again$"
    ):
        downloads.check_texts(downloads.texts(needed))
    (tmp_path / "a.txt").touch()
    downloads.check_texts(downloads.texts(needed))


def test_texts_to_classify_are_counted(record, tokenizer, monkeypatch):
    data = classification_sets.load("movie_reviews")
    exact = counts.count_texts("movie_reviews", tokenizer)
    ids = tokenizer(list(data.test.texts)).input_ids
    monkeypatch.setattr(counts, "SAMPLE", len(ids) // 2)
    assert exact.items == exact.scored == len(ids)
    about = counts.count_texts("movie_reviews", tokenizer)
    assert about.items == len(ids) and about.tokens == pytest.approx(sum(map(len, ids)), rel=0.05)


def test_weights_are_taken_in_one_form():
    assert hub.weight_files(["a.bin", "model-1-of-2.safetensors"]) == "*.safetensors"
    assert hub.weight_files(["a.bin"]) == "*.bin"


def test_a_model_with_a_missing_shard_is_not_complete(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    (tmp_path / "model-1.safetensors").touch()
    assert not hub.is_complete(tmp_path)
    (tmp_path / "model-2.safetensors").touch()
    assert hub.is_complete(tmp_path)


@pytest.mark.parametrize("name", ["mmlu_dev_fewshot", "mmlu_dev_continuation", "copying"])
def test_counted_amounts_are_what_runs(tokenizer, name, monkeypatch):
    items = benchmark_items.load(TaskBudget(name), tokenizer)
    work = arrange(ChoiceTask(items).sequences, Sharing(prefixes=True))
    exact = counts.count(TaskBudget(name), tokenizer)
    assert exact.items == items.num_items == items.total and exact.sequences == len(work.order)
    assert exact.tokens == sum(len(s.input_ids) for s in work.sequences) and exact.shared == work.num_tokens()
    monkeypatch.setattr(counts, "SAMPLE", items.num_items // 2)
    about = counts.count(TaskBudget(name), tokenizer)
    assert about.items == exact.items
    for field in ("tokens", "shared", "scored"):
        assert getattr(about, field) == pytest.approx(getattr(exact, field), rel=0.1), field


def test_counted_amounts_replace_what_is_about_so(record):
    about, counted = counts.amounts("some/model")
    assert about["mmlu"] == sources.DATA["mmlu"].amount
    mine = replace(about["mmlu"], tokens=5)
    counts.note("mmlu", {"some/model": mine})
    counts.note("mmlu")  # a later visit loses nothing
    counts.note("gsm8k_cot")  # whose answers nobody can count before they are written
    found, counted = counts.amounts("some/model")
    assert found["mmlu"] == mine and counted and counts.amounts("other")[0]["mmlu"] == about["mmlu"]


def test_a_damaged_record_is_as_none(record):
    counts.RECORD.write_text("{")
    assert counts.read_record() == {}
