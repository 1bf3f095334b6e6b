"""Devices: what is chosen, what is counted, and what a lack of memory leads to; on the processor."""

import pytest
import torch

from layer_redundancy.core import devices
from layer_redundancy.core.errors import DoesNotFit, StudyError

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_choice_comes_to_a_device_that_is_there(no_gpu):
    assert [devices.found(choice) for choice in devices.CHOICES] == ["cpu"] * 3
    assert devices.resolve("auto") == devices.resolve("cpu") == "cpu"
    assert devices.every("cpu") == [CPU] and not devices.is_gpu("cpu")
    for asked in ("cuda", "cuda:1"):
        with pytest.raises(StudyError, match="sees no CUDA device: use device='cpu'"):
            devices.resolve(asked)


def test_an_unknown_choice_is_one_line():
    for choice in devices.CHOICES:
        devices.check_choice(choice)
    with pytest.raises(StudyError, match="unknown device 'tpu': choose cpu, cuda or auto"):
        devices.check_choice("tpu")


def test_a_gpu_is_chosen_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.found("auto") == devices.found("cuda") == devices.resolve("auto") == "cuda"
    assert devices.found("cpu") == "cpu" and devices.resolve("cuda:1") == "cuda:1"
    assert devices.every("cuda") == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert devices.every("cuda:1") == [torch.device("cuda:1")] and devices.is_gpu("cuda:1")


def test_a_batch_is_halved_when_memory_runs_out_and_for_nothing_else(no_gpu):
    assert devices.halved(5, MemoryError(), "a block") == 2
    assert devices.halved(4, RuntimeError("DefaultCPUAllocator: can't allocate memory"), "a block") == 2
    with pytest.raises(DoesNotFit, match="a block does not fit"):
        devices.halved(1, torch.OutOfMemoryError(), "a block")
    with pytest.raises(ValueError, match="else"):
        devices.halved(4, ValueError("something else"), "a block")


def test_the_processors_memory_speed_and_name():
    assert 0 < devices.available(CPU) <= devices.total_memory(CPU)
    assert devices.allocated(CPU) == 0 and devices.peak_bytes(CPU) > 10_000_000
    assert devices.name(CPU).endswith(" threads")
    assert devices.matmul_rate(torch.float32, CPU) > 1e8
    calls = []
    assert devices.seconds(lambda: calls.append(1), CPU, at_least=0.0) >= 0 and len(calls) == 2


def test_memory_is_counted_storage_by_storage():
    model = torch.nn.Linear(100, 10, bias=False)
    with devices.tensor_peak(model) as peak, torch.no_grad():
        big = torch.zeros(1000, 100)  # 400 kB
        view = big[:500]
        del big, view
        small = torch.zeros(500, 100)  # 200 kB, after the big one is gone
        model(small)
    assert 404_000 <= peak() <= 406_000


def test_what_a_backward_needs_is_counted_once():
    model, inputs = torch.nn.Linear(100, 10, bias=False), torch.zeros(50, 100)
    with devices.saved_for_backward() as saved:
        model(inputs).relu().sum()
    weights = devices.storages(model.parameters())
    assert list(weights.values()) == [4000]
    assert devices.storages([inputs, inputs[:3]]) == {inputs.data_ptr(): 20_000}
    # The inputs, and the output of the ReLU; the weights are no part of it unless the inputs need a gradient.
    assert sum(size for place, size in saved.items() if place not in weights) == 20_000 + 2_000
