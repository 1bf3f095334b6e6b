"""Bits a byte: of the bytes that the scored tokens stand for, however the text is cut into tokens."""

import numpy as np
import pytest
import transformers as tf

from layer_redundancy.experiments.bits_per_byte import bits_per_byte, piece_bytes
from layer_redundancy.models import smollm2
from made_up import nll_result


def test_bytes_are_those_of_the_scored_tokens():
    tokenizer = tf.AutoTokenizer.from_pretrained(smollm2.folder())
    text = "Ein Käfer – and a 漢字 in one sentence, to the end."
    ids = tokenizer(text).input_ids
    first = len(tokenizer.decode(ids[:1]).encode())
    assert piece_bytes([ids], tokenizer).tolist() == [len(text.encode()) - first]
    tokenizer.clean_up_tokenization_spaces = True  # as many tokenizers are set, which drop the space before a comma
    ids = tokenizer("a , b .").input_ids
    assert piece_bytes([ids], tokenizer).tolist() == [len(" , b .")]


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut():
    """A model that gives every byte the probability 1/4 costs two bits a byte, in tokens of any length."""
    sizes = np.array([10.0, 40.0])
    results = {(0,): nll_result(np.log(4) * sizes), (1,): nll_result(2 * np.log(4) * sizes)}
    assert bits_per_byte(results, [(1,), (0,)], sizes) == pytest.approx(np.array([[4, 4], [2, 2]]))
