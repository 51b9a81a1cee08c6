"""The program `biotorch`, and `python -m biotorch.cli`, as torchrun starts it."""

import sys


def main() -> None:
    """Run a command. Ctrl-C ends it with one line instead of a traceback, even during imports."""
    try:
        from biotorch import _memory
        from biotorch.cli.app import app

        _memory.keep_freed()
        app()
    except KeyboardInterrupt:
        print("\nstopped by SIGINT", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
