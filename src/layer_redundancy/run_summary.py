"""The end of a run of several notebooks: how many finished, and why the others did not.

`python -m layer_redundancy.run_summary data/runs/smoke/01_layer_importance.ipynb ...` exits with 1 if one did not.
Standard library only, so that it takes no time.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def reason_file(output: Path) -> Path:
    """Where it stands why there is no executed copy, or only that of an earlier run."""
    return output.with_name(f".{output.stem}.failed")


def note(file: Path, reason: str) -> bool:
    """Writes down in a line why a notebook failed, of an exception its last; False if that cannot be."""
    lines = [line.strip() for line in reason.splitlines() if not line.strip().startswith("partly executed copy:")]
    where, _, kind = lines[0].rpartition(" with ")
    line = f"{where} with {lines[-1]}" if len(lines) > 1 and lines[-1].startswith(kind) else lines[0]
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line, encoding="utf-8")
        return True
    return False


def summary(outputs: Sequence[Path]) -> tuple[list[str], bool]:
    """Lines on a run, and whether all of it finished.

    Args:
        outputs: its executed copies, as they should be there: data/runs/<folder>/<notebook>.ipynb.
    """
    lines = []
    for folder in dict.fromkeys(output.parent for output in outputs):
        figures = os.path.join("figures", *folder.parts[2:], "")  # noqa: PTH118  # the slash at its end
        lines.append(f"Figures and tables: {figures}   executed notebooks: {folder}/")
    failed = []
    first = outputs[0].parent if outputs else None
    for output in outputs:
        file = reason_file(output)
        if file.exists() or not output.exists():
            name = output.stem if output.parent == first else f"{output.parent.name}/{output.stem}"
            why = " ".join(file.read_text(encoding="utf-8").split()) if file.exists() else "it was stopped"
            failed.append(f"{name} ({why})")
    line = f"{len(outputs) - len(failed)} of {len(outputs)} notebooks finished"
    return [*lines, f"{line}; failed: {'; '.join(failed)}" if failed else line], not failed


def main(*outputs: str) -> int:
    """Prints the summary; the exit status."""
    lines, good = summary([Path(one) for one in outputs])
    print(*lines, sep="\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
