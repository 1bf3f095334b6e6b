"""README.md and docs/: pages say what the committed tables say, or are not made."""

import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from layer_redundancy.config import paper_tables
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from tools.docs import notebooks, pages
from tools.docs.tables import BENCH, EMBEDDED, Tables

MADE = {path.stem: path for path in sorted(notebooks.PAGES.glob("[0-9]*.html"))}


@pytest.fixture
def changed(tmp_path):
    """A function that gives the committed tables with one of them changed."""

    def change(name, edit) -> Tables:
        table = pd.read_csv(EMBEDDED / f"{name}.csv")
        table = edit(table)
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        return Tables((tmp_path, EMBEDDED, BENCH, paths.PAPER))

    return change


def rendered(tmp_path, text, tables=None):
    """A page of one template of the test's own."""
    (tmp_path / "own.md").write_text(text)
    return pages.render("own.md", tables, tmp_path).split("\n", 1)[1]


# ---------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("name", pages.names())
def test_committed_pages_are_those_of_the_committed_tables(name):
    assert pages.page(name).read_text() == pages.render(name), f"{name} is stale: run `make docs`"


def test_what_is_made_is_made_from_these_templates():
    assert {"README.md", "claims.md", "findings.md", "performance.md", "tasks.md"} == set(pages.names())


def test_a_verdict_that_changed_stops_it(tmp_path, changed):
    statement = "ShortGPT leaves more than reverse order, averaged over tasks"

    def doubt(table):
        table.loc[table.statement == statement, "verdict"] = "undecided"
        return table

    call = f'{{% call finding("x", verdict("table1_claim", "{statement}", "supported")) %}}It does.{{% endcall %}}'
    assert rendered(tmp_path, call) == "It does.\n"
    with pytest.raises(StudyError, match=rf"turned: the prose says that '{statement}' is supported, but .*: undecided"):
        rendered(tmp_path, call, changed("table1_claim", doubt))


def test_an_inequality_that_turned_stops_it(changed):
    def harmless(table):
        table.loc[(table.on == "text") & (table.block == 17), "seen"] = False
        return table

    with pytest.raises(StudyError) as error:
        pages.render("findings.md", changed("capability_map", harmless))
    (line,) = str(error.value).splitlines()
    assert line == (
        "docs/templates/findings.md: finding 'most single blocks cost text little, and none nothing' turned: the prose "
        "says that each costs something, at one level for all, but it is 29 against 30, not =="
    )


def test_a_number_that_changed_makes_the_page_stale(changed):
    def nudge(table):
        table.loc[(table.block == 17) & table.task.isna(), "log_increase"] = 0.088
        return table

    text = pages.render("findings.md", changed("figure3_single_layer_removal", nudge))
    committed = pages.page("findings.md").read_text()
    assert "+0.088 nats a token" in text and "+0.088 nats a token" not in committed


def test_a_row_that_is_missing_or_there_twice_is_an_error(tmp_path, changed):
    text = "{{ row('table1_changes', task='copying', model='Dense').accuracy }}"
    for edit, number in (
        (lambda table: table[table.model != "Dense"], 0),
        (lambda table: pd.concat([table, table[table.model == "Dense"]]), 2),
    ):
        with pytest.raises(StudyError, match=f"{number} rows of table1_changes.csv have .*'Dense'"):
            rendered(tmp_path, text, changed("table1_changes", edit))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ row('figure99').x }}", r"no table figure99.csv in embedded, bench, paper"),
        (
            "{{ row('table1_claim', claim='x') }}",
            "table1_claim.csv has no column 'claim': choose from role,",
        ),
        ("{{ row('table1_changes', model='Dense', task='copying').acc }}", "table1_changes.csv has no column 'acc'"),
        ("{{ row('table1_changes', model='Dense', task='copying').accuracy | percent }}", "number of items"),
        ("{{ row('table1_changes', model='Dense', task='copying').accuracy | fixed }}", "number of items"),
        ("{{ rows('why_lift_compared')[0].accuracy }}", "an accuracy without its number of items"),
        ("{{ rows('figure7_reported')[0].low | fixed }}", "an empty cell cannot be printed"),
        ("{% call finding('x') %}It is so.{% endcall %}", "finding 'x' is tied to nothing"),
        ("{% call finding('x', compare('a', 1, '=', 2)) %}{% endcall %}", "no relation '='"),
        ("{{ 1 + }}", ", line 1: "),
    ],
)
def test_a_mistake_in_a_template_is_one_line(tmp_path, text, message):
    with pytest.raises(StudyError, match=message) as error:
        rendered(tmp_path, text)
    assert str(error.value).startswith("docs/templates/own.md") and "\n" not in str(error.value)


def test_what_helpers_print(tmp_path, changed):
    dense = "{% set d = row('table1_changes', model='Dense', task='copying') %}"

    def by_hand(table):
        columns = ["accuracy", "low", "high", "n", "chance"]
        table.loc[table.model == "Dense", columns] = [0.75, 0.65, 0.83, 60, 0.25]
        return table

    tables = changed("table1_changes", by_hand)
    for text, expected in {
        "{{ d.accuracy }}": "75 % (65 to 83, n = 60)",
        "{{ 62957.6 | fixed }} {{ -1.25 | fixed(2) }} {{ 0.5 | signed(1) }}": "62,958 −1.25 +0.5",
        "{{ 0.123 | percent(1) }}": "12.3 %",
    }.items():
        assert rendered(tmp_path, dense + text, tables) == expected


def test_a_finding_is_wrapped_and_a_bold_answer_begins_a_paragraph(tmp_path):
    call = "{% call finding('x', compare('1 < 2', 1, '<', 2)) %}\n"
    text = rendered(tmp_path, f"{call}one\n{{% endcall %}}\n{call}**two** {'word ' * 30}9 %\n{{% endcall %}}\n")
    assert text.startswith("one\n\n**two** word")
    assert max(map(len, text.splitlines())) <= 120


def test_every_claim_stands_on_the_page_of_findings():
    template = (pages.TEMPLATES / "findings.md").read_text()
    claims = {path.stem for path in EMBEDDED.glob("*_claim.csv")} - {"table1_reported_claim"}
    assert len(claims) >= 10
    assert claims == set(re.findall(r'verdicts\("(\w+)"\)', template))


@pytest.mark.parametrize("name", pages.names())
def test_no_measured_number_is_typed(name):
    """Decimals and percents come from tables; but for the level of intervals, and what others claim in words."""
    text = (pages.TEMPLATES / name).read_text()
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|```.*?```|`.*?`|\([^()\s]*\.(?:png|md)\S*\)", "", text, flags=re.DOTALL)
    typed = re.findall(r"(?<![\w.])\d+(?:\.\d+)? %|\b\d+\.\d+\b(?! GB)", text)
    python, said = ["3.11", "3.12", "3.13", "2403.03853"], ["95 %", "92 %", "0.95", "0.05", "2.7", "65 %", "1.3"]
    assert [number for number in typed if number not in python + said] == []


def test_the_readme_is_short():
    text = pages.page("README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1500
    assert len(re.findall(r"!\[", text)) == 3


@pytest.mark.parametrize(
    "path", [paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        target, _, anchor = link.partition("#")
        file = (path.parent / target) if target else path
        assert file.exists(), f"{path.name} links to {link}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


def test_one_line_for_whoever_makes_them(tmp_path):
    """The command itself, in a copy of the study whose table has turned."""
    for name in ("docs", "figures/embedded", "figures/bench", "tools", "src/layer_redundancy"):
        ignore = shutil.ignore_patterns("*.png", "*.pdf", "*.safetensors", "__pycache__")
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=ignore)
    claim = tmp_path / "figures" / "embedded" / "table1_claim.csv"
    claim.write_text(claim.read_text().replace("refuted", "supported"))
    command = [sys.executable, "-m", "tools.docs.make"]
    environment = {"PYTHONPATH": str(tmp_path / "src"), "LAYER_REDUNDANCY_ROOT": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "turned" in done.stderr
    assert not (tmp_path / "README.md").exists(), "nothing is written when a page of them cannot be"


# ---------------------------------------------------------------------------------------------------- notebooks


def cells(text: str) -> list[str]:
    """The prose and the code of a notebook's page, cell by cell."""
    found = BeautifulSoup(text, "html.parser").select("div.text_cell_render, div.input div.highlight")
    return [cell.get_text().strip() for cell in found]


@pytest.mark.parametrize("name", MADE)
def test_a_page_holds_the_committed_notebook(name):
    committed = cells(notebooks.page(paths.NOTEBOOKS / f"{name}.ipynb"))
    assert len(committed) > 8
    assert cells(MADE[name].read_text()) == committed, f"{name}.html is stale: run `make figures docs`"


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_small_and_its_pictures_are_there(name):
    text = MADE[name].read_text()
    page = BeautifulSoup(text, "html.parser")
    pictures = [image["src"] for image in page.select("img")]
    assert pictures and all((notebooks.PAGES / picture).resolve().is_relative_to(EMBEDDED) for picture in pictures)
    assert [picture for picture in pictures if not (notebooks.PAGES / picture).exists()] == []
    assert not page.select("script, iframe") and "base64" not in text and len(text) < 60_000
    assert not notebooks.PLACE.search(text)
    assert [link["href"] for link in page.select("link")] == ["style.css"] and (notebooks.PAGES / "style.css").exists()


def test_the_list_of_pages_is_that_of_the_notebooks():
    page = BeautifulSoup((notebooks.PAGES / "index.html").read_text(), "html.parser")
    assert (notebooks.PAGES / "index.html").read_text() == notebooks.index(), "the list is stale: run `make docs`"
    assert [link["href"] for link in page.select("li a")] == [path.name for path in MADE.values()]
    assert len(page.select("li")) == len(list(paths.NOTEBOOKS.glob("*.ipynb")))


def test_what_a_page_keeps_of_outputs(tmp_path):
    source = 'study.save(\n    draw(x),\n    x,\n    "figure3_single_layer_removal",\n)'
    stream, data = nbformat.v4.new_output, lambda **kinds: nbformat.v4.new_output("display_data", kinds)
    outputs = [
        stream("stream", name="stderr", text="a bar"),
        stream("stream", name="stdout", text="what was found"),
        data(**{"image/png": "AAAA", "text/plain": "<Image>"}),
        data(**{"text/html": "<style scoped>x</style><table><tr><td>7</td></tr></table>"}),
        data(**{"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a widget"}),
    ]
    injected = nbformat.v4.new_code_cell("profile = 1", metadata={"tags": ["injected-parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# Title"), injected, nbformat.v4.new_code_cell(source, outputs=outputs)]
    path = tmp_path / "01_own.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    text = notebooks.page(path)
    assert "what was found" in text and "<td>7</td>" in text
    (image,) = BeautifulSoup(text, "html.parser").select("img")
    assert image["src"] == "../../figures/embedded/figure3_single_layer_removal.png"
    for left_out in ("a bar", "a widget", "AAAA", "scoped", "profile = 1"):
        assert left_out not in text


def test_a_page_with_a_picture_that_is_nowhere_or_a_place_is_refused(tmp_path):
    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    place = nbformat.v4.new_output("stream", name="stdout", text=str(paths.Path.home() / "data"))
    for source, output, message in (
        ('study.save(f, x, "no_such_figure")', picture, "run `make figures NOTEBOOKS=01_own`"),
        ("1", picture, "run `make figures NOTEBOOKS=01_own`"),
        ("1", place, "names a place on this machine"),
    ):
        cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell(source, outputs=[output])]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_own.ipynb")
        with pytest.raises(StudyError, match=message):
            notebooks.page(tmp_path / "01_own.ipynb")


def test_a_statement_and_its_verdict_are_a_line(tmp_path):
    rows = [("", "a", "text", 1.0, 2.0, "refuted"), ("", "a", "copying", 3.0, 2.0, "supported")]
    rows += [("primary", "b | c", "text", 0.5, 0.25, "supported")]
    columns = ["role", "statement", "on", "measured", "threshold", "verdict"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "own_claim.csv", index=False)
    found = rendered(tmp_path, "{{ told('own_claim') }} {{ told('own_claim', 'a', on='text') }}", Tables((tmp_path,)))
    assert found == "*supported*: b \\| c (0.5 against 0.25) *refuted*: a (1 against 2)"
    with pytest.raises(StudyError, match=r"2 rows of own_claim\.csv have statement = 'a': name one"):
        rendered(tmp_path, "{{ told('own_claim', 'a') }}", Tables((tmp_path,)))


def test_what_is_said_beside_a_quotation_is_of_one_that_is_there():
    template = (pages.TEMPLATES / "claims.md").read_text()
    beside = re.findall(r'^ +"([\w.]+)": ', template, re.MULTILINE)
    assert len(beside) > 10 and set(beside) <= set(paper_tables.table("claims")["claim"])
