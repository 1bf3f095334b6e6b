from hypothesis import given
from hypothesis import strategies as st

from layer_redundancy.evaluate import prefixes


def test_few_shot_items_share_the_examples_of_their_subject():
    maths, history = tuple(range(100, 140)), tuple(range(200, 250))
    inputs = [(*maths, 1, 2, 3), (*history, 4, 5), (*maths, 1, 7), (8, 9), (*history, 6, 7, 8, 9)]
    groups = {tuple(sorted(members)): length for length, members in prefixes.shared_prefixes(inputs, [1] * 5)}
    assert groups == {(0, 2): 41, (1, 4): 50, (3,): 0}


def test_answers_share_the_question_and_the_scored_part_stays_out():
    question = tuple(range(10, 30))
    inputs = [(*question, 5, 6, 7), (*question, 5, 8)]
    assert prefixes.shared_prefixes(inputs, [3, 2]) == [(20, [0, 1])]
    assert prefixes.shared_prefixes(inputs, [13, 2]) == [(10, [0, 1])]
    assert sorted(prefixes.shared_prefixes(inputs, [20, 2])) == [(0, [0]), (0, [1])]


def test_the_deeper_of_two_levels_wins_where_it_saves_more():
    general, question = tuple(range(50, 60)), tuple(range(20, 45))
    other = tuple(range(70, 95))
    inputs = [general + rest for rest in ((*question, 1), (*question, 2), (*other, 1), (*other, 2))]
    groups = prefixes.shared_prefixes(inputs, [1] * 4)
    assert sorted(length for length, _ in groups) == [35, 35]


sequences = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30).map(tuple), max_size=12)


@given(sequences, st.data())
def test_every_sequence_is_in_one_group_and_its_prefix_is_shared(inputs, data):
    scored = [data.draw(st.integers(1, len(ids))) for ids in inputs]
    groups = prefixes.shared_prefixes(inputs, scored)
    assert sorted(i for _, members in groups for i in members) == list(range(len(inputs)))
    for length, members in groups:
        assert len({inputs[i][:length] for i in members}) == 1
        assert all(length <= len(inputs[i]) - scored[i] and length < len(inputs[i]) for i in members)
        assert length == 0 or (length >= prefixes.MIN_PREFIX and len(members) > 1)
