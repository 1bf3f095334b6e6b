"""Training on tiny random models: what is trained, and going on after a kill, a lack of memory, a broken checkpoint."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import safe_globals

import tiny_models
from layer_redundancy.core import devices, paths
from layer_redundancy.core.errors import DoesNotFit, StudyError
from layer_redundancy.train import trainer, training_loop
from layer_redundancy.train.training_loop import Optimization

IDS = tiny_models.tokens(12, 9)
EXAMPLES = [{"input_ids": row} for row in IDS]


def model(trained: str = ""):
    built = tiny_models.build("llama", scale=1.0)
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(trained in name)
    return built


def fit(folder, steps=8, built=None, **changes):
    built = built or model()
    folder.mkdir(exist_ok=True)
    optimization = Optimization(steps, batch=4, learning_rate=1e-2, warmup=2)
    return built, training_loop.fit(built, EXAMPLES, optimization, folder, seed=3, **changes)


def equal(one, other, atol=0.0):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=atol, rtol=0) for a, b in pairs)


def test_it_is_adamw_on_the_same_examples_by_hand(tmp_path):
    trained, fitted = fit(tmp_path / "a", steps=3)
    by_hand = model()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.0)
    order, losses = np.random.default_rng(3).permutation(12), []
    for step, scale in enumerate((0.0, 0.5, 1.0)):  # warmup of two steps; the cosine begins at its peak
        optimizer.param_groups[0]["lr"] = 1e-2 * scale
        ids = IDS[order[4 * step : 4 * step + 4]]
        loss = by_hand(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    np.testing.assert_allclose(fitted.curve()[1], losses, rtol=1e-5)
    assert equal(trained, by_hand, atol=1e-5)
    assert fitted.trainable == sum(p.numel() for p in trained.parameters())
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_nothing_of_a_training_waits_for_the_garbage_collector(tmp_path):
    gc.collect()
    gc.disable()
    try:
        built, _ = fit(tmp_path / "a", steps=1)
        left = weakref.ref(built), weakref.ref(built.get_input_embeddings().weight)
        del built
        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()


def test_only_what_requires_a_gradient_is_trained_and_counted(tmp_path):
    before, (after, fitted) = model(), fit(tmp_path / "a", built=model("layers.4."))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new) != ("layers.4." in name)
    trainable = sum(p.numel() for name, p in after.named_parameters() if "layers.4." in name)
    assert fitted.trainable == trainable
    weights = sum(4 * p.numel() for p in after.parameters())
    assert weights + 12 * trainable < fitted.peak_bytes < weights + 12 * trainable + 200_000, "and activations"
    _, whole = fit(tmp_path / "b")
    assert whole.peak_bytes > fitted.peak_bytes


def test_held_out_numbers_are_taken_before_and_after(tmp_path):
    def validate(model):
        assert not model.training
        return training_loop.causal_loss(model, {"input_ids": IDS[:2]}).item()

    trained, fitted = fit(tmp_path / "a", steps=7, validate=validate, validate_every=3)
    steps, values = fitted.curve("validation")
    assert steps.tolist() == [0, 3, 6, 7]
    assert values[0] == pytest.approx(validate(model().eval()), rel=1e-5)
    assert values[-1] == pytest.approx(validate(trained), rel=1e-5)
    assert fitted.curve()[0].tolist() == list(range(1, 8)) and fitted.seconds > 0


@pytest.mark.slow
def test_a_smaller_batch_gives_the_same_weights_when_memory_runs_out(tmp_path, remarks):
    whole, expected = fit(tmp_path / "a")

    def scarce(model, batch):
        if len(batch["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return training_loop.causal_loss(model, batch)

    halved, fitted = fit(tmp_path / "b", loss=scarce)
    assert "out of memory, going on with 2 of a step's 4 examples at a time" in remarks()
    assert equal(whole, halved, atol=1e-4)
    np.testing.assert_allclose(fitted.curve()[1], expected.curve()[1], rtol=1e-4)

    def never(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DoesNotFit, match="training on one example does not fit"):
        fit(tmp_path / "c", loss=never)
    assert devices.lacks_memory(torch.OutOfMemoryError())


def test_a_training_that_stops_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path, monkeypatch, remarks):
    expected, through = fit(tmp_path / "a")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    calls = []

    def stops(model, batch):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return training_loop.causal_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", loss=stops)
    again, fitted = fit(tmp_path / "b")
    assert "going on at step 5 of 8" in remarks()
    assert equal(expected, again)
    assert fitted.curve()[1].tolist() == through.curve()[1].tolist() and fitted.peak_bytes == through.peak_bytes


def test_a_half_written_checkpoint_is_passed_over(tmp_path, monkeypatch):
    expected, _ = fit(tmp_path / "a")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    fit(tmp_path / "b")
    (last,) = (tmp_path / "b").glob("checkpoint-*")
    assert training_loop.last_checkpoint(tmp_path / "b") == last
    (tmp_path / "b" / "checkpoint-4-copy").mkdir()
    broken = tmp_path / "b" / "checkpoint-8"
    broken.mkdir()
    (broken / training_loop.WEIGHTS).write_bytes(b"half")
    assert training_loop.last_checkpoint(tmp_path / "b") == last
    (last / training_loop.OPTIMIZER).write_bytes(b"")
    assert training_loop.last_checkpoint(tmp_path / "b") is None
    again, _ = fit(tmp_path / "b")
    assert equal(expected, again)


KILLED = """
import sys, time
sys.path[:0] = {tests!r}
import test_training_loop
from layer_redundancy.train import trainer, training_loop
from pathlib import Path
trainer.CHECKPOINT_SECONDS = 0
def slow(model, batch):
    time.sleep(0.1)
    return training_loop.causal_loss(model, batch)
test_training_loop.fit(Path({folder!r}), steps=40, loss=slow)
"""


@pytest.mark.slow
def test_kill_9_loses_no_more_than_a_checkpoint(tmp_path, remarks):
    folder = tmp_path / "a"
    code = KILLED.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])], folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 120
    while training_loop.last_checkpoint(folder) is None and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    expected, _ = fit(tmp_path / "b", steps=40)
    again, fitted = fit(folder, steps=40)
    assert "going on at step" in remarks()
    assert equal(expected, again, atol=1e-5) and len(fitted.curve()[0]) == 40


def test_a_workplace_is_kept_until_the_work_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    with pytest.raises(RuntimeError), training_loop.workplace({"a": 1}) as folder:
        (folder / "kept").write_text("")
        raise RuntimeError
    with training_loop.workplace({"a": 2}) as other:
        assert other != folder
    with training_loop.workplace({"a": 1}) as again:
        assert again == folder and (again / "kept").exists()
    assert not list(tmp_path.iterdir())


def test_weights_of_16_bits_are_trained_in_32(tmp_path):
    built = model().bfloat16()

    def validate(model):
        return training_loop.causal_loss(model, {"input_ids": IDS[:2]}).item()

    trained, fitted = fit(tmp_path / "a", built=built, validate=validate, validate_every=8)
    assert {p.dtype for p in trained.parameters()} == {torch.bfloat16}
    assert trained(input_ids=IDS).logits.dtype == torch.bfloat16, "as before, no float32 at its end"
    assert fitted.curve()[1][-1] < fitted.curve()[1][0]
    in_full, _ = fit(tmp_path / "b")
    assert equal(trained.float(), in_full, atol=0.05)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_file", full)
    with pytest.raises(StudyError, match=r"cannot write a checkpoint to .* \(No space left on device\)"):
        fit(tmp_path / "a")


def test_what_cannot_be_trained_is_one_line(tmp_path):
    def diverges(model, batch):
        return training_loop.causal_loss(model, batch) * float("nan")

    with pytest.raises(StudyError, match="the loss is nan at step 1: choose a lower learning rate"):
        fit(tmp_path / "a", loss=diverges)
    with pytest.raises(StudyError, match="no weight is to be trained"):
        fit(tmp_path / "b", built=model("nothing"))
    small = Optimization(8, batch=4, learning_rate=1e-8, schedule="polynomial")
    with pytest.raises(StudyError, match="a polynomial schedule ends at 1e-07: choose a higher rate"):
        training_loop.fit(model(), EXAMPLES, small, tmp_path / "d")
    with pytest.raises(StudyError, match="no examples to train on"):
        training_loop.fit(model(), [], Optimization(1, 1, 1e-3), tmp_path)


def test_a_checkpoint_holds_json_and_tensors_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    fit(tmp_path / "a", built=model("layers.4."))
    (last,) = (tmp_path / "a").glob("checkpoint-*")
    assert json.loads((last / training_loop.STATE).read_text())["global_step"] == 7
    with safe_globals():  # numpy's random state, as Trainer allows it
        for file in last.glob("*.pt*"):
            torch.load(file, weights_only=True)
    size = sum(4 * p.numel() for name, p in model().named_parameters() if "layers.4." in name)
    assert size < (last / training_loop.WEIGHTS).stat().st_size < size + 4000
