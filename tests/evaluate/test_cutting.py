import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer_redundancy.config.sources import Amount
from layer_redundancy.core import variants
from layer_redundancy.evaluate import cutting
from layer_redundancy.evaluate.amounts import Sweep
from layer_redundancy.evaluate.batches import arrange
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.evaluate.sweep_estimate import Missing, amounts
from layer_redundancy.evaluate.trie import depth_first, num_block_runs, trie
from layer_redundancy.models.checks import Sharing
from measurements import ragged_sequences

PLAIN = (1.0, 1e12)  # a second a block-token; the head takes no time
variant_sets = st.lists(
    st.sets(st.integers(0, 6), min_size=1).map(lambda kept: tuple(sorted(kept))), min_size=1, max_size=20, unique=True
)


def texts(number, length=10):
    """As many sequences without a common beginning."""
    return arrange([ScoredSequence((k + 3, *range(50, 49 + length)), ((5,),)) for k in range(number)], Sharing(False))


def order(chosen):
    return [variant for variant, _ in depth_first(trie(chosen), None, lambda *_: None)]


@st.composite
def missing_work(draw):
    """Some places that lack some variants, others that lack others, and some that lack nothing."""
    arranged = arrange(ragged_sequences(draw(st.integers(0, 3))), Sharing(prefixes=True))
    of = [draw(st.integers(0, 2)) for _ in arranged.order]
    parts = [([k for k, part in enumerate(of) if part == n], draw(variant_sets)) for n in (0, 1)]
    return Missing(arranged, [part for part in parts if part[0]])


@settings(max_examples=200, deadline=None)
@given(
    missing_work(),
    st.tuples(st.floats(1, 1000), st.floats(1, 1000)),
    st.integers(5, 60),
    st.floats(0.01, 50),
    st.integers(1, 9),
    st.floats(0, 0.5),
)
def test_pieces_are_all_of_the_work_and_each_of_it_once(missing, rates, batch_tokens, seconds, workers, most_lost):
    pieces = cutting.cut(missing, rates, batch_tokens, seconds, workers, most_lost)
    covered = Counter((k, v) for piece in pieces for k in piece.places for v in piece.variants)
    assert covered == Counter((k, v) for places, chosen in missing.parts for k in places for v in chosen)
    assert [p.seconds for p in pieces] == sorted((p.seconds for p in pieces), reverse=True)
    assert pieces == cutting.cut(missing, rates, batch_tokens, seconds, workers, most_lost)
    assert 0 <= cutting.lost(pieces, missing) <= most_lost + 1e-9
    batches = [set(range(*batch)) for batch in missing.arranged.batches(batch_tokens)]
    for piece in pieces:
        assert list(piece.places) == sorted(piece.places)
        part, chosen = next((set(places), of) for places, of in missing.parts if piece.places[0] in places)
        assert set(piece.places) <= part
        inside = [batch & part for batch in batches if batch & set(piece.places)]
        assert set(piece.places) == set().union(*inside), "batches are whole"
        line = order(chosen)
        first = line.index(piece.variants[0])
        assert list(piece.variants) == line[first : first + len(piece.variants)]
        assert len(piece.variants) == len(line) or len(inside) == 1, "several batches run on all variants"
        tokens = missing.arranged.num_tokens(piece.places)
        assert piece.block_tokens == num_block_runs(trie(piece.variants)) * tokens
        # A prefix that two batches share runs in both.
        heads = len(piece.variants) * sum(
            missing.arranged.sequences[missing.arranged.order[k]].num_scored for k in piece.places
        )
        assert piece.seconds >= 0.999 * (piece.block_tokens / rates[0] + heads / rates[1])
        assert len(inside) == 1 or piece.seconds <= 1.001 * seconds


def test_sequences_are_cut_first_which_loses_nothing():
    missing = Missing.all_of(texts(8), variants.single_removal(4))  # 80 tokens, in batches of 20
    runs = num_block_runs(trie(missing.variants))
    (whole,) = cutting.cut(missing, PLAIN, 20, seconds=1e9)
    assert whole.places == tuple(range(8)) and whole.block_tokens == 80 * runs
    assert whole.seconds == pytest.approx(80 * runs) and amounts([missing])["block_tokens_shared"] == 80 * runs
    pieces = cutting.cut(missing, PLAIN, 20, seconds=20 * runs)
    assert [p.places for p in pieces] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert cutting.lost(pieces, missing) == 0 and sum(p.block_tokens for p in pieces) == 80 * runs
    # Three batches and one would do as well, but pieces are as even as may be.
    assert [len(p.places) for p in cutting.cut(missing, PLAIN, 20, seconds=70 * runs)] == [4, 4]
    assert [len(p.places) for p in cutting.cut(missing, PLAIN, 20, seconds=100 * runs, workers=2)] == [2, 2, 2, 2]


def test_single_removal_is_cut_where_variants_have_least_in_common():
    missing = Missing.all_of(texts(2), variants.single_removal(30))  # one batch of 20 tokens
    # The first nine variants: 29 + 29 + 28 + ... + 22 = 233 of the 464 block-runs. The first of the others lacks block
    # 9 and has the first eight in common with the one that lacks block 8: 231 + 8 = 239.
    pieces = cutting.cut(missing, PLAIN, 20, seconds=20 * 300)
    assert [p.block_tokens for p in pieces] == [20 * 239, 20 * 233]
    assert [variants.removed_blocks(30, v) for v in pieces[1].variants] == [(i,) for i in range(9)]
    assert [p.seconds for p in pieces] == pytest.approx([20 * 239, 20 * 233])
    assert cutting.lost(pieces, missing) == pytest.approx(8 / 464)
    # However small pieces should be, no more is lost than may be.
    assert 0.08 < cutting.lost(cutting.cut(missing, PLAIN, 20, seconds=20), missing) <= 0.1
    assert len(cutting.cut(missing, PLAIN, 20, seconds=20, most_lost=0.0)) == 2  # without block 0: nothing in common
    assert len(cutting.cut(missing, PLAIN, 20, seconds=20, most_lost=30.0)) == 30


def test_removal_from_the_end_is_not_cut_since_all_variants_begin_alike():
    missing = Missing.all_of(texts(2), variants.cumulative_removal(30, range(29, -1, -1)))
    (whole,) = cutting.cut(missing, PLAIN, 20, seconds=20, workers=8)
    assert whole.block_tokens == 20 * 30 and len(whole.variants) == 30
    heads = (1e12, 2.0)  # half a second a scored position: cuts cost nothing that counts
    pieces = cutting.cut(missing, heads, 20, seconds=10, most_lost=1.0)
    assert len(pieces) >= 3 and sum(len(p.variants) for p in pieces) == 30


def test_variants_are_cut_for_workers_who_would_have_no_batch():
    missing = Missing.all_of(texts(2), variants.single_removal(30))
    assert len(cutting.cut(missing, PLAIN, 20, seconds=1e5)) == 1
    for workers in (2, 3):
        assert len(cutting.cut(missing, PLAIN, 20, seconds=2e4, workers=workers)) >= 2 * workers - 1
    # Pieces of less than a tenth of the seconds are not worth it.
    assert len(cutting.cut(missing, PLAIN, 20, seconds=1e5, workers=3)) == 1


def test_a_plan_that_knows_amounts_alone_cuts_alike():
    chosen = tuple(variants.single_removal(30))
    for number, workers in ((40, 1), (4, 4), (2, 3)):
        arranged = texts(number)
        missing = Missing.all_of(arranged, chosen)
        sweep = Sweep("perplexity", Amount(number, number, 10 * number, 10 * number, number), chosen)
        rates = (1.0, 0.5)
        pieces = cutting.cut(missing, rates, 20, 1e4, workers)
        times, lost = cutting.pieces_of(sweep, rates, 20, 1e4, workers)
        assert times == pytest.approx([p.seconds for p in pieces]) and len(times) > 1
        assert lost == pytest.approx(cutting.lost(pieces, missing))
    assert cutting.pieces_of(Sweep("perplexity", Amount(0, 0, 0, 0, 0), ()), (1.0, 1.0), 20) == ([], 0.0)
    assert cutting.cut(Missing(texts(1), []), (1.0, 1.0), 20) == [] and cutting.lost([], Missing(texts(1), [])) == 0


def test_a_sweep_of_many_batches_and_variants_is_cut_at_once():
    missing = Missing.all_of(texts(4000), list(variants.single_heads(16, 32).values()))
    start = time.perf_counter()
    pieces = cutting.cut(missing, (1000.0, 1e5), 40, seconds=20, workers=1000)
    assert time.perf_counter() - start < 10 and len(pieces) > 2000
    assert 0 < cutting.lost(pieces, missing) <= 0.1
