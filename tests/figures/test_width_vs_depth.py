"""The figures of notebook 05 show what they are given."""

from layer_redundancy.figures import width_vs_depth

from .frames import damage_frame, everywhere_frame


def test_heads_of_all_blocks_are_drawn_with_the_dense_model_and_chance():
    loss, accuracy = width_vs_depth.head_removal(everywhere_frame()).axes
    assert len(loss.containers) == 1 and len(accuracy.containers) == 2
    assert [line.get_ydata()[0] for line in accuracy.lines if line.get_gid() == "chance"] == [0.5, 0.25]
    assert [line.get_ydata()[0] for line in loss.lines if line.get_gid() == "dense"] == [0]
    labels = {text.get_text() for text in accuracy.get_legend().get_texts()}
    assert labels >= {"copying, n=200", "copying: dense model", "copying: chance"}


def test_without_a_task_the_loss_is_drawn_alone():
    table = everywhere_frame()
    assert len(width_vs_depth.head_removal(table[table["measurement"] == "perplexity"]).axes) == 1


def test_damage_distributions_draw_shares_and_what_was_chosen():
    (axes,) = width_vs_depth.damage_distributions(damage_frame(9)).axes
    (blocks,) = [line for line in axes.lines if line.get_label().startswith("one block, n=9")]
    assert blocks.get_ydata()[-1] == 1 and blocks.get_xdata()[0] == 0.05
    chosen = {line.get_label(): line.get_xdata()[0] for line in axes.lines if line.get_gid() == "chosen"}
    assert chosen == {"48 chosen heads: 0.30": 0.3, "the chosen block: 0.05": 0.05}
