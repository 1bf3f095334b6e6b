from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import tiny_models
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import plain_forwards, scoring, sweep
from layer_redundancy.evaluate.scoring import ChoiceTask, WrittenAnswers
from layer_redundancy.models import compiled, loading
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, identity, ragged_sequences


def test_targets_may_lie_across_the_heads_chunks(tmp_path, monkeypatch):
    model, measurement = loading.prepare(tiny_models.build("gemma2")), Continuations(ragged_sequences())
    results = []
    for rows in (512, 7):
        monkeypatch.setattr(scoring, "HEAD_ROWS", rows)
        with Store(tmp_path / str(rows)) as store:
            stack = decoder_stack(model)
            results.append(sweep.run(identity(), lambda: stack, [(0, 3)], [measurement], store, 200, progress=False))  # noqa: B023
    whole, chunks = (r[measurement.name][0, 3].arrays for r in results)
    np.testing.assert_allclose(whole["logprob"], chunks["logprob"], atol=1e-5)
    assert whole["greedy"].tolist() == chunks["greedy"].tolist()


def by_definition(stack, states, sequences):
    """Log-softmax in float64 of the model's own logits, row by row; the first of equal maxima is the greedy one."""
    logits, expected, end = stack.logits(states).double(), [], 0
    for sequence in sequences:
        end += sequence.num_scored
        expected.append([])
        for target in sequence.targets:
            rows = logits[end - len(target) : end]
            logprob = sum((row - row.logsumexp(0))[token].item() for row, token in zip(rows, target, strict=True))
            first = [row.tolist().index(row.max().item()) for row in rows]
            expected[-1].append((logprob, first == list(target)))
    return expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])  # gemma2 caps its logits
def test_scores_are_those_of_the_definition(name, dtype, monkeypatch):
    stack, sequences = decoder_stack(loading.prepare(tiny_models.build(name).to(dtype))), ragged_sequences()
    variants, num_rows = 3, sum(s.num_scored for s in sequences)
    states = torch.randn(variants, num_rows, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Where every other target is what the model would say, some are greedy.
    first = stack.logits(states[0]).argmax(-1).tolist()
    ends = np.cumsum([s.num_scored for s in sequences])
    for i in range(0, len(sequences), 2):
        said = tuple(first[ends[i] - sequences[i].num_scored : ends[i]])
        sequences[i] = replace(sequences[i], targets=(said, *sequences[i].targets))
    targets = scoring.Targets(sequences)
    expected = [by_definition(stack, rows, sequences) for rows in states]
    assert len({greedy for of_variant in expected for outputs in of_variant for _, greedy in outputs}) == 2
    # All at once; chunks whose borders lie within sequences; slabs of one row.
    for rows, slab in ((512, 2**24), (7, 4 * 97 * 5), (10, 1)):
        monkeypatch.setattr(scoring, "HEAD_ROWS", rows)
        monkeypatch.setattr(scoring, "slab_bytes", lambda _, slab=slab: slab)
        got = scoring.score(stack, states.flatten(0, 1), targets, variants)()
        for of_variant, wanted in zip(got, expected, strict=True):
            assert [len(outputs) for outputs in of_variant] == [len(s.targets) for s in sequences]
            for (logprob, greedy), (by_hand, first_maximum), target in zip(
                chain(*of_variant), chain(*wanted), (t for s in sequences for t in s.targets), strict=True
            ):
                assert logprob == pytest.approx(by_hand, abs=2e-6 * len(target), rel=1e-6)
                assert greedy == first_maximum


def test_the_first_of_equal_maxima_is_the_greedy_one():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0]])
    row, token = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 2, 1, 2])
    for of_tokens in (scoring._of_tokens, scoring._fused):
        for dtype in (torch.float32, torch.bfloat16):
            logprob, greedy = of_tokens(logits.to(dtype), row, token)
            assert greedy.tolist() == [False, True, False, True, False, False, True]
            torch.testing.assert_close(logprob, logits.log_softmax(-1)[row, token])


def test_compiled_log_softmax_is_one_graph_for_all_lengths_and_as_it_is_where_there_is_none(monkeypatch, caplog):
    torch._dynamo.reset()
    counted = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKEND", counted)
    monkeypatch.setattr(scoring, "_refused", [])
    generator = torch.Generator().manual_seed(0)

    def compare(rows, tokens):
        logits = torch.randn(rows, 31, generator=generator)
        row, token = (torch.randint(0, most, (tokens,), generator=generator) for most in (rows, 31))
        for got, wanted in zip(
            scoring._at_once(logits, row, token), scoring._of_tokens(logits, row, token), strict=True
        ):
            torch.testing.assert_close(got, wanted)

    for rows, tokens in ((7, 9), (12, 5), (5, 5)):
        compare(rows, tokens)
    assert counted.frame_count == 1 and not scoring._refused

    def broken(*_):
        raise RuntimeError("no such compiler\nreally")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with caplog.at_level("INFO"):
        compare(7, 9)
        compare(8, 9)
    (line,) = [record.message for record in caplog.records if "not compiled" in record.message]
    assert "log-softmax" in line and "\n" not in line
    torch._dynamo.reset()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_told(value):
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    row, token = torch.tensor([0, 1]), torch.tensor([2, 3])
    for of_tokens in (scoring._of_tokens, scoring._fused):
        first, second = of_tokens(logits, row, token)[0].tolist()
        assert scoring.finite([[(first, True)]]) and not scoring.finite([[(0.0, True)], [(second, False)]])


def test_perplexity_by_hand():
    blocks = type("Blocks", (), {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]), "fingerprint": "x"})
    measurement = scoring.Perplexity(blocks)
    assert [s.input_ids for s in measurement.sequences] == [(5, 6), (8, 9)]
    assert [s.targets for s in measurement.sequences] == [((6, 7),), ((9, 10),)]
    result = measurement.result([[(-1.0, True)], [(-3.0, False)]])
    assert result.summary == {"perplexity": pytest.approx(np.e), "nll": 1.0, "tokens": 4}
    assert result.arrays["nll"].tolist() == [1.0, 3.0]


def asked(choices: list[list[tuple[int, ...]]], gold: list[int | None]) -> SimpleNamespace:
    """A task's items: prompts of four tokens, and choices."""
    requests = [
        SimpleNamespace(doc=doc, choice=i, context_ids=(5, 6, 7, 8 + doc), continuation_ids=choice)
        for doc, of_item in enumerate(choices)
        for i, choice in enumerate(of_item)
    ]
    items = [SimpleNamespace(gold=one) for one in gold]
    return SimpleNamespace(
        name="made_up", num_fewshot=0, num_items=len(items), items=items, requests=requests, fingerprint="made up"
    )


def test_an_answer_is_written_where_a_greedy_continuation_is_the_right_choice():
    model = tiny_models.build("llama")
    ids = [torch.tensor([[5, 6, 7, 8 + doc]]) for doc in range(3)]
    with torch.no_grad():
        greedy = []
        for prompt in ids:
            for _ in range(2):
                prompt = torch.cat([prompt, model(input_ids=prompt).logits[:, -1:].argmax(-1)], dim=1)
            greedy.append(tuple(prompt[0, 4:].tolist()))
    other = [((first + 1) % 90, second) for first, second in greedy]
    items = asked([[other[0], greedy[0]], [greedy[1], other[1]], [greedy[2][:1], other[2]]], gold=[1, 1, 0])
    measured = WrittenAnswers(ChoiceTask(items))
    result = measured.result(plain_forwards.score(model, measured.sequences))
    assert result.arrays["written"].tolist() == [1, 0, 1] and result.summary["items"] == 3
    with pytest.raises(StudyError, match="made_up has items without a single right choice"):
        WrittenAnswers(ChoiceTask(asked([[(1,), (2,)]], gold=[None]))).result([[(0.0, True)], [(0.0, True)]])
