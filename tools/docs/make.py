"""`make docs`: README.md and docs/ anew, and the notebooks as they were executed, where executed copies are there."""

import sys

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from tools.docs import notebooks, pages


def main() -> None:
    """Writes every page; one line for whoever runs it if a page cannot be."""
    try:
        rendered = {pages.page(name): pages.render(name) for name in pages.names()}  # all of them, or none is written
        for path, text in rendered.items():
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(paths.ROOT)}: rendered")
        for line in notebooks.write_all():
            print(line)
    except StudyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
