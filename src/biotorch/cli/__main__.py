"""`python -m biotorch.cli`, as torchrun starts it."""

from biotorch.cli import app

if __name__ == "__main__":
    app()
