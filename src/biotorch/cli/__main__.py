"""The program `biotorch`, and `python -m biotorch.cli`, as torchrun starts it."""

import sys


def main() -> None:
    """Run a command; Ctrl-C ends it with one line, also while modules are imported."""
    try:
        from biotorch.cli.app import app

        app()
    except KeyboardInterrupt:
        print("\nstopped by SIGINT", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
