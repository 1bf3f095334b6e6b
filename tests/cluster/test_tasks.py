"""What is sent to a worker and what it answers, in one process."""

import logging
import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
import torch

from layer_redundancy.cluster import code, worker
from layer_redundancy.cluster.tasks import Answer, Lacks, Order, OtherModel, Place
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result

KEY = Key("model", "0,1", "perplexity", "data")
RESULT = Result({"perplexity": 23.25})


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """A worker leaves settings of its process behind it."""
    monkeypatch.setenv("LAYER_REDUNDANCY_NOTEBOOK", "")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(act, **more) -> Answer:
    """What a worker of this process answers, as the driver gets it."""
    return pickle.loads(pickle.dumps(worker.run(Order(act, **more).packed())))


class Opens:
    """Something that runs when it is opened."""

    def __init__(self, act):
        self.act = act

    def __reduce__(self):
        return self.act, ()


# ------------------------------------------------------------------------------------------------ what is sent


def test_an_order_says_first_which_code_it_is_of():
    theirs, content = pickle.loads(Order(partial(int, "3"), notebook="02", threads=2).packed())
    assert theirs == code.here() and isinstance(content, bytes)
    opened = cloudpickle.loads(content)
    assert (opened.act(), opened.notebook, opened.threads) == (3, "02", 2)


def test_nothing_of_another_code_is_opened(monkeypatch):
    opened = []
    theirs = code.here() | {"torch": "1.0"}
    order = pickle.dumps((theirs, cloudpickle.dumps(Opens(partial(opened.append, 1)))))
    answer = worker.run(order)
    assert answer.refused == f"torch {code.here()['torch']} there and 1.0 here" and opened == []


def test_a_worker_looks_at_the_shared_path_first_and_then_in_its_cache(tmp_path):
    place = Place(folder=str(tmp_path / "shared"), name="received-1")
    assert place.candidates(tmp_path / "cache") == []
    (tmp_path / "cache" / "received-1").mkdir(parents=True)
    assert place.candidates(tmp_path / "cache") == [str(tmp_path / "cache" / "received-1")]
    (tmp_path / "shared").mkdir()
    assert place.candidates(tmp_path / "cache") == [str(tmp_path / "shared"), str(tmp_path / "cache" / "received-1")]


# ------------------------------------------------------------------------------------------------ what is answered


def test_the_value_and_what_was_stored_come_back():
    def act():
        worker._here.store.put(replace(KEY, variant="0"), "name", RESULT)
        return worker._here.store.get(KEY).summary, os.environ["LAYER_REDUNDANCY_NOTEBOOK"], torch.get_num_threads()

    answer = run(act, given=[(KEY, "name", RESULT)], notebook="02_single_layer_removal", threads=2)
    assert answer.value == ({"perplexity": 23.25}, "02_single_layer_removal", 2)
    assert {row[1] for row in answer.stored.results} == {"0,1", "0"}
    assert answer.seconds > 0 and not answer.refused and answer.error is None and answer.lacks is None
    assert answer.worker == "here"


def test_each_order_has_a_store_of_its_own():
    run(lambda: worker._here.store.put(KEY, "name", RESULT))
    assert run(lambda: worker._here.store.get(KEY)).value is None


def test_a_mistake_is_answered_with_what_was_stored_before_it():
    def act():
        worker._here.store.put(KEY, "name", RESULT)
        raise StudyError("too little memory")

    answer = run(act)
    assert str(answer.error) == "too little memory" and len(answer.stored.results) == 1


def test_a_fault_of_the_program_is_raised():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_what_is_said_comes_back_once_and_is_not_printed(capfd, caplog):
    def act():
        logging.getLogger("layer_redundancy.somewhere").warning("odd")
        logging.getLogger("layer_redundancy.somewhere").info("usual")
        print("drawn")

    assert run(act).remarks == ["odd"]
    assert capfd.readouterr() == ("", "") and not caplog.records


def _lacks():
    raise Lacks("a folder", "received-1")


def _other():
    raise OtherModel("model org/name is 12 there and 13 here")


def _mistaken():
    raise StudyError("no such model")


def test_what_keeps_an_order_from_being_opened_is_answered(tmp_path):
    """A study is opened where the order is, so that an order whose model is not there does nothing at all."""

    def answer(opens) -> Answer:
        return run(partial(_touched, tmp_path / "done", Opens(opens)))

    lacks = answer(_lacks).lacks
    assert (lacks.folder, lacks.name) == ("a folder", "received-1")
    assert answer(_other).refused == "model org/name is 12 there and 13 here"
    assert str(answer(_mistaken).error) == "worker here: no such model"
    assert not (tmp_path / "done").exists()


def _touched(path: Path, _: object) -> None:
    path.touch()
