"""The program `biotorch`, and `python -m biotorch.cli`, as torchrun starts it."""

import sys


def main() -> None:
    """Run a command. Ctrl-C ends it with one line instead of a traceback, even during imports."""
    try:
        import biotorch
        from biotorch import _first_system, _memory

        if not hasattr(biotorch, "__version__"):  # the empty __init__.py of the first system has replaced ours
            sys.exit(f"error: {_first_system.message()}")
        from biotorch.cli.app import app

        _memory.keep_freed()
        app()
    except KeyboardInterrupt:
        print("\nstopped by SIGINT", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
