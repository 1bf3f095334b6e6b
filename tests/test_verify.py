"""Comparing a run's tables with the expected ones, on made-up tables and on those that are committed."""

import csv
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from layer_redundancy import cli, verify
from layer_redundancy.config import profiles
from layer_redundancy.config.notebooks import chosen_notebooks
from layer_redundancy.core import paths, verdicts
from layer_redundancy.core.errors import StudyError
from layer_redundancy.experiments import depth_ranks
from layer_redundancy.verify import Columns, Rules, Tolerance

TABLE = """block,loss,95 %,kept,seconds
none,3.2437931,2.77 to 3.71,True,10.5
0,11.050217,10.50 to 11.60,False,11.5
1,6.5079383,-0.010 to 0.020,False,12.5
"""
KINDS = {
    "number": Tolerance("number", relative=1e-3, absolute=1e-5),
    "count": Tolerance("count"),
    "training": Tolerance("training", relative=0.05),
    "timing": Tolerance("timing", compared=False),
}
RULES = Rules(KINDS, (Columns("timing", ("*",), ("seconds",)),), {"ranking": ("selection",)})
PROFILES = ["smoke", "embedded"]


def verdict(tmp_path: Path, expected: str, got: str, name: str = "table", rules: Rules = RULES) -> verify.Verdict:
    """The verdict on one table, given as text."""
    for folder, text in (("expected", expected), ("got", got)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.csv").write_text(text)
    (found,) = verify.verify(tmp_path / "got", tmp_path / "expected", rules)
    return found


def told(found: verify.Verdict) -> list[str]:
    assert found.state == "differs"
    return [str(difference) for difference in found.differences]


def test_a_table_is_as_expected_to_itself(tmp_path):
    assert verdict(tmp_path, TABLE, TABLE).good


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("11.050217", "11.060217"),  # 0.9 per thousand
        ("2.77 to 3.71", "2.78 to 3.70"),  # the last printed digit
        ("-0.010 to 0.020", "-0.011 to 0.019"),
        ("10.5\n", "99.5\n"),  # seconds
    ],
)
def test_what_lies_within_the_tolerance_is_as_expected(tmp_path, old, new):
    assert verdict(tmp_path, TABLE, TABLE.replace(old, new)).good


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "11.050217",
            "11.070217",
            "loss: row 2 (0): 11.070217 instead of 11.050217 (number, within 0.1 % or 1e-05)",
        ),
        ("2.77 to 3.71", "2.79 to 3.71", '95 %: row 1 (none): "2.79 to 3.71" instead of "2.77 to 3.71"'),
        ("-0.010 to 0.020", "0.010 to 0.020", '95 %: row 3 (1): "0.010 to 0.020" instead of "-0.010 to 0.020"'),
        ("2.77 to 3.71", "2.77 or 3.71", '95 %: row 1 (none): "2.77 or 3.71"'),
        ("True", "False", 'kept: row 1 (none): "False" instead of "True"'),
        ("6.5079383", "", "loss: row 3 (1): nothing instead of 6.5079383"),
        ("6.5079383", "inf", 'loss: row 3 (1): "inf" instead of 6.5079383'),
    ],
)
def test_what_lies_beyond_is_named_by_column_and_row(tmp_path, old, new, message):
    (line,) = told(verdict(tmp_path, TABLE, TABLE.replace(old, new)))
    assert line.startswith(message)


def test_several_rows_of_a_column_are_told_in_one_line(tmp_path):
    (line,) = told(verdict(tmp_path, TABLE, TABLE.replace("11.05", "12.05").replace("6.5", "7.5")))
    assert line.startswith("loss: row 2 (0): 12.050217") and line.endswith("; 1 more rows")


def test_whole_numbers_are_exact_but_not_a_large_number_without_a_point(tmp_path):
    counts = "block,tokens\n1,20000\n2,40000\n"
    assert told(verdict(tmp_path, counts, counts.replace("20000", "20001")))
    large = "block,perplexity\n1,2.5\n2,10250694\n"
    assert verdict(tmp_path, large, large.replace("10250694", "10250701")).good


@pytest.mark.parametrize("name", ["rwkv5-6.6m", "Vicuna-7B-v1.5", "smollm2-135m", "GPTQ, 4 bits", "(12, 13)"])
def test_numbers_in_names_are_exact(tmp_path, name):
    table = f'model,loss\n"{name}",2.5\n'
    last = next(c for c in reversed(name) if c.isdigit())
    other = name[::-1].replace(last, str((int(last) + 1) % 10), 1)[::-1]
    assert told(verdict(tmp_path, table, table.replace(name, other)))


def test_missing_and_new_columns_and_rows_are_told(tmp_path):
    lines = [line.split(",") for line in TABLE.splitlines()]
    lacking = "\n".join(",".join(line[:1] + line[2:]) for line in lines) + "\n"
    assert told(verdict(tmp_path, TABLE, lacking)) == ["loss: column is missing"]
    assert told(verdict(tmp_path, lacking, TABLE)) == ["loss: column is not expected"]
    assert told(verdict(tmp_path, TABLE, "".join(TABLE.splitlines(True)[:-1]))) == ["2 rows instead of 3"]


def test_rows_in_another_order_are_told_and_those_with_a_key_are_matched(tmp_path):
    ranking = "selection,loss,removed\ntaylor,4.2,3\nrandom,4.201,5\n"
    first, *rows = ranking.splitlines(True)
    turned = first + "".join(reversed(rows))
    assert told(verdict(tmp_path, ranking, turned)) == ["the rows stand in another order"]
    keyed = tmp_path / "keyed"
    keyed.mkdir()
    assert verdict(keyed, ranking, turned, "ranking").good
    assert told(verdict(keyed, ranking, turned.replace("3\n", "4\n"), "ranking"))[0].startswith(
        "removed: row 1 (taylor)"
    )
    assert told(verdict(keyed, ranking, turned.replace("taylor", "new"), "ranking")) == [
        "row taylor is missing",
        "row new is not expected",
    ]


def test_the_last_rule_that_fits_a_row_counts(tmp_path):
    rules = Rules(
        KINDS, (Columns("training", ("t*",), ("loss",)), Columns("timing", ("table",), ("loss",), {"block": ["[01]"]}))
    )
    found = verdict(tmp_path, TABLE, TABLE.replace("11.05", "99.05").replace("3.2437931", "3.3437931"), rules=rules)
    assert [(tolerance.kind, columns) for tolerance, columns in found.wider.items()] == [
        ("training", ["loss"]),
        ("timing", ["loss"]),
    ]
    assert "as expected  (training, within 5 %; timing, not compared)" in verify.report([found])[0]
    assert told(verdict(tmp_path, TABLE, TABLE.replace("3.2437931", "3.6437931"), rules=rules))


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A root with two notebooks of one table each, and what the embedded profile should give."""
    for name, at in {"NOTEBOOKS": "notebooks", "FIGURES": "figures", "RUNS": "runs", "EXPECTED": "expected"}.items():
        monkeypatch.setattr(paths, name, tmp_path / at)
        (tmp_path / at).mkdir()
    for number, call in (
        ("01_first", 'study.save(figure, data, \\"one\\")'),
        ("02_second", 'study.save_table(t, \\"two\\")'),
    ):
        cell = f'{{"cell_type": "code", "source": ["if True:\\n", "    {call}"]}}'
        (tmp_path / "notebooks" / f"{number}.ipynb").write_text(f'{{"cells": [{cell}]}}')
        executed = tmp_path / "runs" / "embedded" / f"{number}.ipynb"
        executed.parent.mkdir(exist_ok=True)
        executed.touch()
    shutil.copy(paths.ROOT / "data" / "expected" / "tolerances.toml", tmp_path / "expected")
    for folder in (tmp_path / "figures" / "embedded", tmp_path / "expected" / "embedded"):
        folder.mkdir()
        for name in ("one", "two"):
            (folder / f"{name}.csv").write_text(TABLE)
    return tmp_path


def run(*arguments: str) -> tuple[int, list[str]]:
    """Exit status of the command and the lines that it prints."""
    done = CliRunner().invoke(cli.app, ["verify", *arguments])
    if isinstance(done.exception, StudyError):  # which `cli.main` prints as one line
        return done.exit_code, [f"error: {done.exception}"]
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output.splitlines()


def test_one_line_and_the_exit_status_say_it_all(study):
    assert run("embedded") == (0, ["one  as expected", "two  as expected", "embedded: 2 of 2 tables as expected"])
    (study / "figures" / "embedded" / "two.csv").write_text(TABLE.replace("11.05", "12.05"))
    status, lines = run("embedded", "--brief")
    assert status == 1
    assert [line.strip()[:5] for line in lines] == ["two  ", "loss:", "embed"]
    assert lines[-1] == "embedded: 1 of 2 tables as expected; 1 differs (two)"
    assert run("embedded", "--brief", "--no-fail") == (0, lines)
    assert run("embedded", "--notebooks", "01")[0] == 0


def test_tables_that_are_missing_or_not_expected_fail(study):
    (study / "figures" / "embedded" / "one.csv").rename(study / "figures" / "embedded" / "three.csv")
    assert run("embedded") == (
        1,
        [
            "one    MISSING",
            "three  NOT EXPECTED",
            "two    as expected",
            "embedded: 1 of 2 tables as expected; 1 missing (one); 1 not expected (three)",
        ],
    )
    assert run("embedded", "--notebooks", "02_second 2")[0] == 0


def test_notebooks_that_were_not_run_are_named(study):
    (study / "runs" / "embedded" / "02_second.ipynb").unlink()
    assert run("embedded")[1][-1] == "embedded: 2 of 2 tables as expected (not run here: 02)"
    (study / "runs" / "embedded" / "01_first.ipynb").unlink()
    status, lines = run("embedded")
    assert status == 1, "committed tables would be compared with themselves"
    assert lines == ["error: no notebook of embedded was run here: make figures PROFILE=embedded, or give --tables"]
    assert run("embedded", "--tables", str(study / "figures" / "embedded"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huge"], "unknown profile 'huge'"),
        (["paper"], "nothing to compare paper with: there are expected tables of embedded, or give --expected"),
        (["embedded", "--model", "org/name"], "nothing to compare embedded-org--name with"),
        (["embedded", "--notebooks", "09"], 'no notebook "09": choose from 01_first 02_second'),
        (["embedded", "--tables", "nowhere"], "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_line(study, arguments, message):
    status, lines = run(*arguments)
    assert status == 1
    assert len(lines) == 1 and message in lines[0]


def test_a_torn_table_is_one_line(study):
    (study / "figures" / "embedded" / "two.csv").write_text("block,loss\n1\n")
    status, lines = run("embedded")
    assert status == 1
    assert len(lines) == 1 and "two.csv is no whole table" in lines[0]


def test_a_whole_run_can_become_what_is_expected(study):
    new = TABLE.replace("11.05", "12.05")
    (study / "figures" / "embedded" / "one.csv").write_text(new)
    (study / "figures" / "embedded" / "stale.csv").write_text(new)
    (study / "expected" / "embedded" / "gone.csv").write_text(new)
    assert run("embedded", "--renew") == (0, ["embedded: 2 tables are expected now (1 changed, 0 new, 1 gone)"])
    assert sorted(path.name for path in (study / "expected" / "embedded").iterdir()) == ["one.csv", "two.csv"]
    assert (study / "expected" / "embedded" / "one.csv").read_text() == new


def test_part_of_a_run_cannot(study):
    (study / "runs" / "embedded" / "02_second.ipynb").unlink()
    before = {path: path.read_text() for path in (study / "expected").rglob("*.csv")}
    status, lines = run("embedded", "--renew")
    assert status == 1
    assert len(lines) == 1 and "only a whole run can be what is expected, and 02 was not run here" in lines[0]
    assert run("embedded", "--renew", "--model", "org/name")[0] == 1
    assert {path: path.read_text() for path in (study / "expected").rglob("*.csv")} == before


def test_an_unknown_kind_in_the_rules_is_one_line(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text('[kinds]\nnumber = {}\ncount = {}\n[[columns]]\nkind = "guess"\ntables = ["*"]\ncolumns = ["*"]\n')
    with pytest.raises(StudyError, match=r"rules\.toml: .*guess"):
        Rules.read(path)


# --- What is committed -----------------------------------------------------------------------------------------------


def committed(profile: str) -> dict[str, Path]:
    return {path.stem: path for path in (paths.EXPECTED / profile).glob("*.csv")}


@pytest.mark.parametrize("profile", PROFILES)
def test_expected_tables_are_as_expected_to_themselves_and_come_from_notebooks(profile):
    folder, rules = paths.EXPECTED / profile, Rules.read(paths.EXPECTED / "tolerances.toml", profile)
    verdicts = verify.verify(folder, folder, rules)
    assert len(verdicts) > 60 and all(one.good for one in verdicts)
    saved = {book.stem: verify.saved_tables(book) for book in chosen_notebooks()}
    of = {
        table: [book for book, names in saved.items() if any(fnmatchcase(table, name) for name in names)]
        for table in committed(profile)
    }
    assert [name for name, found in of.items() if len(found) != 1] == [], "a table of no notebook, or of two"
    compared = {"14_across_models"} if profile == "smoke" else set()  # which takes several models
    assert {found[0] for found in of.values()} == set(saved) - compared


@pytest.mark.parametrize("profile", PROFILES)
def test_every_table_has_something_that_is_compared(profile):
    rules = Rules.read(paths.EXPECTED / "tolerances.toml", profile)
    for name, path in committed(profile).items():
        columns, rows = verify.read_table(path)
        assert len(set(columns)) == len(columns), f"{name} has two columns of one name"
        assert any(t.compared for column in columns for t in rules.tolerances(name, column, rows)), name


def test_every_rule_is_of_use():
    every = Rules.read(paths.EXPECTED / "tolerances.toml")
    for profile in PROFILES:
        for rule in Rules.read(paths.EXPECTED / "tolerances.toml", profile).columns:
            for pattern in rule.tables:
                one = Columns(rule.kind, (pattern,), rule.columns, rule.rows)
                rows = [
                    row
                    for known in PROFILES
                    for name, path in committed(known).items()
                    for columns, table in [verify.read_table(path)]
                    if any(one.fits(name, column) for column in columns)
                    for row in table
                ]
                assert any(one.fits_row(row) for row in rows), f"no row is meant by {one}"
    for table, keys in every.keys.items():
        for columns, rows in (verify.read_table(committed(profile)[table]) for profile in PROFILES):
            assert set(keys) <= set(columns)
            assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows), f"{table}: no key"


@pytest.mark.parametrize(
    ("table", "column", "of"),
    [
        ("unreasonable_block_pruning", "loss", {"healed": "False"}),
        ("unreasonable_accuracies", "accuracy", {"healed": "False"}),
        ("unreasonable_healing_curves", "held_out", {"tokens": "0"}),
        ("reassessing_recipes", "loss", {"recipe": "nf4"}),
        ("reassessing_accuracies", "accuracy", {"recipe": "untrained"}),
        ("reassessing_capabilities", "accuracy", {"recipe": "whole model"}),
        ("reassessing_selections", "loss", {}),
        ("why_lift_accuracy_by_kept_blocks", "accuracy", {"method": "untuned"}),
    ],
)
def test_what_no_training_touches_is_compared_as_a_number(table, column, of):
    rules = Rules.read(paths.EXPECTED / "tolerances.toml", "embedded")
    _, rows = verify.read_table(committed("embedded")[table])
    meant = [row for row in rows if of.items() <= row.items()]
    assert {one.kind for one in rules.tolerances(table, column, meant)} == {"number"}


@pytest.mark.parametrize("folder", ["embedded", "embedded/gemma3-270m"])
def test_committed_figures_hold_the_expected_tables(folder):
    """So that both are renewed together: `make expect`."""
    shown = {path.name: path.read_text() for path in (paths.ROOT / "figures" / folder).glob("*.csv")}
    assert len(shown) > 20 and shown == {path.name: path.read_text() for path in committed(folder).values()}


def test_a_further_model_has_the_notebooks_that_are_named_for_it(monkeypatch):
    monkeypatch.setattr(paths, "RUNS", paths.ROOT / "nothing-was-run")
    gemma = profiles.get("embedded", model="gemma3-270m")
    assert [path.stem[:2] for path in verify.notebooks_of(gemma)] == ["01", "02", "03", "04"]
    assert [path.stem[:2] for path in verify.notebooks_of(gemma, "03 05")] == ["03"]
    assert verify.is_expected(gemma, "03") and not verify.is_expected(gemma, "05")
    own = verify.notebooks_of(profiles.get("embedded"))
    assert len(own) == 14 and "14_across_models" not in [path.stem for path in own]
    both = profiles.get("embedded", models=("smollm2-135m-instruct", "gemma3-270m"))
    assert len(verify.notebooks_of(both)) == 15
    with pytest.raises(StudyError, match=r"01 02 03 04 was not run here: make figures PROFILE=embedded"):
        verify.expect_run(gemma)
    with pytest.raises(StudyError, match="the profile's own models: leave out MODEL"):
        verify.expect_run(profiles.get("embedded", model="org/one"))


GEMMA = "gemma3-270m"


@pytest.fixture
def several(study, monkeypatch) -> Path:
    """With a further model that was run too, and with what compares it with the profile's own, which was not."""
    for at in ("figures", "expected"):
        folder = study / at / "embedded" / GEMMA
        folder.mkdir()
        for name in ("one", "two"):
            (folder / f"{name}.csv").write_text(TABLE)
        (study / at / "embedded" / "across.csv").write_text(TABLE)
    (study / "runs" / "embedded" / GEMMA).mkdir()
    for number in ("01_first", "02_second"):
        (study / "runs" / "embedded" / GEMMA / f"{number}.ipynb").touch()
    cell = '{"cell_type": "code", "source": ["study.save_table(t, \\"across\\")"]}'
    (study / "notebooks" / "14_across_models.ipynb").write_text(f'{{"cells": [{cell}]}}')
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", f"smollm2 {GEMMA}")
    return study


def test_tables_of_all_named_models_are_compared(several, monkeypatch):
    both = ["embedded: 3 of 3 tables as expected (not run here: 14)", f"embedded/{GEMMA}: 2 of 2 tables as expected"]
    assert run("embedded", "--brief") == (0, both)
    (several / "figures" / "embedded" / GEMMA / "two.csv").write_text(TABLE.replace("11.05", "12.05"))
    status, lines = run("embedded", "--brief")
    assert status == 1 and lines[-1] == f"embedded/{GEMMA}: 1 of 2 tables as expected; 1 differs (two)"
    assert run("embedded", "--brief", "--model", GEMMA) == (1, [line for line in lines if line != both[0]])
    assert run("embedded", "--notebooks", "01", "--brief")[0] == 0
    (several / "runs" / "embedded" / "14_across_models.ipynb").touch()
    assert run("embedded", "--notebooks", "14", "--brief") == (0, ["embedded: 1 of 1 tables as expected"])
    monkeypatch.delenv("LAYER_REDUNDANCY_MODELS")
    assert run("embedded", "--brief") == (0, ["embedded: 3 of 3 tables as expected"]), "it is asked for by name"


def test_the_profiles_own_model_is_not_compared_where_it_is_not_named(several, monkeypatch):
    shutil.rmtree(several / "runs" / "embedded")
    (several / "runs" / "embedded" / GEMMA).mkdir(parents=True)
    (several / "runs" / "embedded" / GEMMA / "01_first.ipynb").touch()
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", f"{GEMMA} org/one")
    assert run("embedded", "--brief") == (0, [f"embedded/{GEMMA}: 2 of 2 tables as expected (not run here: 02)"])
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", f"smollm2 {GEMMA}")
    status, lines = run("embedded")
    assert status == 1 and lines[0].startswith("error: no notebook of embedded was run here")


def test_what_compares_a_model_that_the_profile_lacks_is_none_of_its_tables(several, monkeypatch):
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", "smollm2 org/one")
    assert run("embedded", "--brief") == (0, ["embedded: 3 of 3 tables as expected"]), "it lies in a folder of its own"
    given = ["--tables", str(several / "figures" / "embedded"), "--expected", str(several / "expected" / "embedded")]
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", f"smollm2 {GEMMA}")
    assert len(run("embedded", "--brief", *given)[1]) == 1, "folders that are given are compared once"


def test_a_further_models_run_can_become_what_is_expected(several, monkeypatch):
    monkeypatch.delenv("LAYER_REDUNDANCY_MODELS")
    new = TABLE.replace("11.05", "12.05")
    for folder in ("embedded", f"embedded/{GEMMA}"):
        (several / "figures" / folder / "one.csv").write_text(new)
    line = "2 tables are expected now (1 changed, 0 new, 0 gone)"
    assert run("embedded", "--renew", "--model", GEMMA) == (0, [f"embedded/{GEMMA}: {line}"])
    assert (several / "expected" / "embedded" / "one.csv").read_text() == TABLE, "of the profile's own nothing changes"
    assert run("embedded", "--renew") == (0, ["embedded: 3 tables are expected now (1 changed, 0 new, 0 gone)"])
    assert (several / "expected" / "embedded" / GEMMA / "one.csv").read_text() == new
    assert (several / "expected" / "embedded" / "across.csv").read_text() == TABLE


@pytest.mark.parametrize("table", ["figure3_claim", "figure2a_removal_order", "table1_measured", "reassessing_recipes"])
def test_a_changed_number_of_a_committed_table_is_found(tmp_path, table):
    """By as much as another seed or a slip of a formula would change it: a third."""
    path = committed("embedded")[table]
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    place = 1 if table == "table1_measured" else 3
    first, _, rest = rows[2][place].partition(" ")
    rows[2][place] = f"{float(first) * 4 / 3:.8g} {rest}".strip()
    with (tmp_path / path.name).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    rules = Rules.read(paths.EXPECTED / "tolerances.toml", "embedded")
    (found,) = verify.verify(tmp_path, paths.EXPECTED / "embedded", rules, [table])
    (difference,) = found.differences
    assert difference.column == rows[0][place] and "row 2" in difference.what


def test_a_comparison_needs_no_model_library():
    code = "import sys, layer_redundancy.verify; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


VERDICTS = [path for path in sorted(paths.FIGURES.glob("embedded/*_claim.csv")) if "power" in path.read_text()]


@pytest.mark.parametrize("table", VERDICTS, ids=lambda path: path.stem)
def test_every_statement_could_have_been_decided(table):
    """One whose power is under 0.8 for what matters is no statement of the study."""
    claims = pd.read_csv(table)
    # Of single models that others measured there are no more numbers to be had: not testable is the answer.
    claims = claims[(claims["statement"] != depth_ranks.CHEAPER) | claims["on"].str.contains("families")]
    assert (claims["power"] >= verdicts.POWER).all(), claims.loc[~(claims["power"] >= verdicts.POWER), "statement"]
    assert claims["role"].tolist().count("primary") == 1 and claims["role"][0] == "primary"
