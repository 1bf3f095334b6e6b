"""`layer-redundancy`, or `python -m layer_redundancy`: signals are looked after before anything is imported."""

from layer_redundancy.core import interrupts


def main() -> None:
    """Runs the command line; a user's mistake is one line on stderr."""
    interrupts.end_at_once()
    from layer_redundancy import cli

    cli.main()


if __name__ == "__main__":
    main()
