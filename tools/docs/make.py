"""`make docs`: README.md and docs/ anew, and the notebooks as they were executed, where executed copies are there."""

import sys

from layer_redundancy.core.errors import StudyError
from tools.docs import notebooks, pages


def main() -> None:
    """Writes every page; one line for whoever runs it if a page cannot be."""
    try:
        for name in pages.names():
            pages.page(name).write_text(pages.render(name), encoding="utf-8")
            print(f"{pages.page(name).relative_to(pages.paths.ROOT)}: rendered")
        for line in notebooks.write_all():
            print(line)
    except StudyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
