"""The figures of notebooks 10 and 11 show what they are given."""

import numpy as np
import pandas as pd

from layer_redundancy.experiments import block_pruning
from layer_redundancy.experiments import healing as recipes
from layer_redundancy.figures import plots, plots_healing
from layer_redundancy.measures import selections
from test_block_pruning import L, found
from test_recipes import FOUND, selected


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_block_pruning_sets_healed_beside_not_healed():
    rows = block_pruning.table(found(), L, 1000)
    figure = plots_healing.block_pruning(rows, 1000, (45, 55))
    left, right = figure.axes
    drawn = lines(left)
    assert list(drawn) == [
        "similarity, not healed", "simple rule, not healed", "last blocks, not healed", "similarity, healed",
        "simple rule, healed",
    ]  # fmt: skip
    np.testing.assert_allclose(drawn["simple rule, healed"].get_ydata(), [2.0, 2.4, 2.55])
    np.testing.assert_allclose(drawn["simple rule, not healed"].get_xdata(), [0, 100 / 3, 50])
    assert left.get_yscale() == "log" and "nats a token" in left.get_ylabel() and "n = 10" in right.get_ylabel()
    np.testing.assert_allclose(lines(right)["similarity, healed"].get_ydata(), [0.8, 0.8, 0.3])
    assert any("paper" in text.get_text() for text in right.texts)
    alone = plots_healing.block_pruning(rows.assign(task=""), 1000)
    assert len(alone.axes) == 1, "a profile without tasks"


def test_recipes_have_a_panel_a_cost():
    table = recipes.recipe_table(FOUND, 100, seed=0)
    figure = plots_healing.recipes(table)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["head and last 3", "LoRA, rank 8"]
    assert len(figure.axes) == 5 and figure.axes[4].lines[-1].get_xdata()[0] == 4.0
    curves = recipes.curve_table(FOUND, 256)
    drawn = lines(plots_healing.training_curves(curves).axes[0])
    np.testing.assert_allclose(drawn["LoRA, rank 8"].get_xydata(), [[0, 9], [1024, 3.05]])


def test_selections_and_healing_curves():
    chosen = [selected(name, 2.0 + i) for i, name in enumerate(selections.SELECTIONS)]
    figure = plots_healing.selections(recipes.selection_table(chosen))
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names[0] == "random" and names[-1] == "reverse order"
    rows = pd.DataFrame(
        [
            ("whole model", 0, 0, 3.0),
            ("similarity", 2, 0, 5.0),
            ("similarity", 2, 64, 4.0),
            ("simple rule", 2, 64, 6.0),
        ],
        columns=["rule", "count", "tokens", "held_out"],
    )
    figure = plots_healing.healing_curves(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["similarity", "simple rule"]
    assert lines(figure.axes[0])["2"].get_ydata().tolist() == [5.0, 4.0]


def test_files_are_the_same_byte_for_byte(tmp_path):
    rows = block_pruning.table(found(), L, 1000)
    for folder in ("a", "b"):
        plots.save(plots_healing.block_pruning(rows, 1000), rows, tmp_path / folder, "figure", "caption")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
