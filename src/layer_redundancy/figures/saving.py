"""Figures as files: PNG, PDF and CSV, byte for byte the same for the same data; each whole or not at all."""

import bisect
import io
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from layer_redundancy.core.arguments import shown
from layer_redundancy.core.cache import write_whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.figures.style import CAPTION_SIZE, PNG_DPI, settings, text_width


def save(figure: Figure, data: pd.DataFrame, folder: Path, name: str, caption: str, markdown: str = "") -> list[Path]:
    """Writes a figure as <name>.png (200 dpi), <name>.pdf and its data as <name>.csv; the figure stays as it was.

    The same figure and data give the same bytes. Each file appears whole or not at all.

    Args:
        data: what the figure shows.
        folder: folder of the files, made if need be.
        caption: model, revision, dtype, text and item counts; drawn small beneath the axes, in the image.
        markdown: the same as text, written as <name>.md unless empty.

    Returns:
        The paths written.

    Raises:
        StudyError: a file cannot be written (disk full, no permission); no name of a file, no figure, no table.
    """
    if not isinstance(figure, Figure) or not isinstance(data, pd.DataFrame):
        odd = data if isinstance(figure, Figure) else figure
        raise StudyError(f"{shown(odd)} cannot be saved: give a matplotlib Figure, and its data as a pandas DataFrame")
    check_name(name)
    files = {**_render(figure, caption), "csv": _csv(data)} | ({"md": markdown.encode()} if markdown else {})
    return write_whole({Path(folder) / f"{name}.{kind}": content for kind, content in files.items()})


def save_data(data: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Writes a table as <name>.csv alone: one that is no picture, since it has too many rows. Errors as `save`."""
    check_name(name)
    if not isinstance(data, pd.DataFrame):
        raise StudyError(f"{shown(data)} is no table: give a pandas DataFrame")
    return write_whole({Path(folder) / f"{name}.csv": _csv(data)})


def check_name(name: str) -> None:
    """Raises StudyError where a file so called would lie elsewhere than in its folder, or could not be."""
    if not isinstance(name, str) or not name.strip(". ") or not name.isprintable() or {"/", "\\"} & set(name):
        raise StudyError(f"{shown(name)} is no name of a figure or table: give one without a folder, such as 'table'")


def _render(figure: Figure, caption: str) -> dict[str, bytes]:
    """PNG and PDF of the figure with its caption.

    The canvases are called themselves, since `savefig` draws everything once more before each, to lay it out.
    """
    with settings():
        figure = _laid_out(figure, caption)
        png, pdf = io.BytesIO(), io.BytesIO()
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
        FigureCanvasPdf(figure).print_pdf(pdf, metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def _laid_out(figure: Figure, caption: str) -> Figure:
    """A copy of the figure, made taller by its caption, with a layout that no longer changes."""
    figure = pickle.loads(pickle.dumps(figure))
    width, height = figure.get_size_inches()
    margin = 0.12
    lines = _wrap(caption, (width - 2 * margin) * 72)
    foot = (len(lines) * 1.35 * CAPTION_SIZE / 72 + 2 * margin) if lines else 0.0
    figure.set_size_inches(width, height + foot)
    share = foot / (height + foot)
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    engine: Any = figure.get_layout_engine()  # constrained or tight: both take a rect
    engine.set(rect=(0, share, 1, 1 - share))
    figure.text(
        margin / width,
        (foot - margin) / (height + foot),
        "\n".join(lines),
        size=CAPTION_SIZE,
        color="#555555",
        va="top",
        linespacing=1.35,
        parse_math=False,
        gid="caption",
    ).set_in_layout(False)
    figure.set_dpi(PNG_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # Rounded, since the solver's last bits depend on where its variables lie in memory.
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position(original=True).bounds
        axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
    return figure


def _wrap(text: str, points: float) -> list[str]:
    """Lines of caption no wider than so many points, or of one word."""
    lines = []
    for paragraph in text.splitlines() if text.strip() else []:
        words = paragraph.split()
        while True:
            # Found by halving, since to measure a line at each of its words takes long.
            fit = bisect.bisect(
                range(1, len(words) + 1),
                0.98 * points,
                key=lambda count: text_width(" ".join(words[:count]), CAPTION_SIZE),
            )
            lines.append(" ".join(words[: max(fit, 1)]))
            words = words[max(fit, 1) :]
            if not words:
                break
    return lines


def _csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode()
