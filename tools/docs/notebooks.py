"""The embedded notebooks as they were executed, to be read in a browser: HTML without scripts, pictures linked."""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from tools.docs.tables import EMBEDDED

PAGES = paths.ROOT / "docs" / "notebooks"
EXECUTED = paths.RUNS / "embedded"
FIGURES = "../../figures/embedded"  # as seen from docs/notebooks/
# Where a user's files lie; written so that it does not find itself.
PLACE = re.compile(r"(?<![\w.}])(?:/(?:home|Users|root|work|mnt|tmp)/|[A-Z]:\\)\w[^\s\"'<]*")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<nav><a href="index.html">All notebooks</a> · {note}</nav>
<main>
{body}
</main>
</body>
</html>
"""


def write_all() -> Iterator[str]:
    """Writes a page for each embedded notebook that has an executed copy, and the list of all; yields what it did.

    Raises:
        StudyError: as `page`.
    """
    for committed in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        executed = EXECUTED / committed.name
        target = PAGES / f"{committed.stem}.html"
        if executed.exists():
            target.write_text(page(executed), encoding="utf-8")
            yield f"{target.relative_to(paths.ROOT)}: written"
        else:
            yield f"{target.relative_to(paths.ROOT)}: left as it is, no executed copy (`make figures` makes them)"
    (PAGES / "index.html").write_text(index(), encoding="utf-8")


def page(executed: Path) -> str:
    """An executed notebook as a page.

    Raises:
        StudyError: it shows a picture that is not in figures/embedded, or names a place on this machine.
    """
    notebook = nbformat.read(executed, as_version=4)
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in cells:
        if cell.cell_type == "code":
            names = saved(cell.source)
            cell.outputs = [shown for output in cell.outputs for shown in _shown(output, executed.stem, names)]
    notebook.cells = cells
    text = PAGE.format(title=html.escape(title(notebook)), note=_note(executed.stem), body=_body(notebook))
    if found := PLACE.search(text):
        raise StudyError(f"{executed.name} names a place on this machine ({found.group()}): no page of it can be kept")
    return text


def _body(notebook: NotebookNode) -> str:
    exporter = HTMLExporter(
        template_name="basic", exclude_anchor_links=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    return "\n".join(line for line in body.splitlines() if line.strip() and line.strip() != "<span></span>")


def saved(source: str) -> list[str]:
    """The names under which a cell saves its figures, in order; of a name that is put together, its beginning."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _is_save(node.func)]
    strings = [
        [node.value for node in ast.walk(call.args[2]) if isinstance(node, ast.Constant)]
        for call in sorted(calls, key=lambda call: call.lineno)
    ]
    return [constants[0] for constants in strings]


def _is_save(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function) in ("study.save", "study.save_reported_figure")


def _shown(output: NotebookNode, name: str, names: list[str]) -> Iterator[NotebookNode]:
    """What a page keeps of an output: what was printed, tables without their style, pictures as links.

    Pictures take their names off the front of `names`.
    """
    if output.output_type == "stream":
        if output.name == "stdout":
            yield output
        return
    data = output.get("data", {})
    if "image/png" in data:
        if not names or not (EMBEDDED / f"{names[0]}.png").exists():
            raise StudyError(f"a picture of {name} is not in figures/embedded: run `make figures NOTEBOOKS={name}`")
        picture = names.pop(0)
        link = f'<img src="{FIGURES}/{picture}.png" alt="{picture}" loading="lazy">'
        yield nbformat.v4.new_output("display_data", {"text/html": link})
    elif "text/html" in data:
        table = re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL)
        yield nbformat.v4.new_output("display_data", {"text/html": table})
    elif "text/plain" in data and not any("widget" in kind for kind in data):
        yield nbformat.v4.new_output("display_data", {"text/plain": data["text/plain"]})


def title(notebook: NotebookNode) -> str:
    """A notebook's first heading."""
    return next(
        line.removeprefix("# ") for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("# ")
    )


def _note(stem: str) -> str:
    return f"<code>notebooks/{stem}.ipynb</code>, executed on the embedded profile"


def index() -> str:
    """The list of all pages."""
    lines = []
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        heading = f"{path.stem.split('_')[0]}. {html.escape(title(nbformat.read(path, as_version=4)))}"
        there = (PAGES / f"{path.stem}.html").exists()
        lines.append(f'<li><a href="{path.stem}.html">{heading}</a></li>' if there else f"<li>{heading}</li>")
    told = (
        "<p>The pictures are the committed ones; tables and printed lines are those of the run that made a page. Where "
        "that was another run or processor, they agree within what <code>make verify</code> allows.</p>"
    )
    body = "\n".join(["<h1>The notebooks, as they were executed</h1>", told, "<ol>", *lines, "</ol>"])
    return PAGE.format(title="The notebooks", note="executed on the embedded profile", body=body)
