import logging
from contextlib import contextmanager

import pytest
from IPython.core.interactiveshell import InteractiveShell
from tqdm import tqdm

from layer_redundancy import study
from layer_redundancy.core import log


@contextmanager
def unconfigured():
    """The package's logger in a program that has no logging of its own; pytest's stands aside."""
    root, logger = logging.getLogger(), logging.getLogger(log.PACKAGE)
    kept = root.handlers, logger.handlers, logger.level
    root.handlers, logger.handlers = [], []
    logger.setLevel(logging.NOTSET)
    try:
        yield logger
    finally:
        root.handlers, logger.handlers = kept[:2]
        logger.setLevel(kept[2])


def test_remarks_are_plain_lines_once(capsys):
    with unconfigured():
        log.show()
        log.show()
        logging.getLogger("layer_redundancy.study").info("loading a model")
        logging.getLogger("another").info("not ours")
    assert capsys.readouterr() == ("", "loading a model\n")


def test_a_remark_stands_above_a_progress_bar(capsys):
    with unconfigured() as logger:
        log.show()
        with tqdm(total=2, desc="bar", mininterval=0):
            capsys.readouterr()
            logger.warning("left out")
            shown = capsys.readouterr().err
    assert "left out\n" in shown and "bar" in shown.split("left out\n")[1]


@pytest.mark.parametrize("whose", ["root", "layer_redundancy"])
def test_a_users_own_logging_is_left_alone(whose, capsys):
    own = logging.NullHandler()
    with unconfigured() as logger:
        logging.getLogger(None if whose == "root" else whose).addHandler(own)
        log.show()
        assert logging.getLogger().handlers + logger.handlers == [own] and logger.level == logging.NOTSET
        logger.info("nothing")
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_remarks_and_a_program_does_not(capsys, monkeypatch):
    for shell, shown in ((None, ""), (InteractiveShell, "a remark\n")):
        monkeypatch.setattr(study, "get_ipython", lambda shell=shell: shell)
        with unconfigured():
            study.Study.open("smoke")
            logging.getLogger("layer_redundancy.study").info("a remark")
        assert capsys.readouterr().err == shown


def test_who_sets_up_logging_later_has_no_line_twice(capsys):
    with unconfigured() as logger:
        log.show()
        logging.getLogger().addHandler(logging.NullHandler())
        logger.info("theirs to show")
    assert capsys.readouterr().err == ""


def test_a_library_does_not_set_up_logging_for_everybody():
    with unconfigured():
        root = logging.getLogger()
        level = root.level
        with log.undisturbed():
            logging.basicConfig(level=logging.INFO)
            assert root.handlers and root.level == logging.INFO
        assert not root.handlers and root.level == level
