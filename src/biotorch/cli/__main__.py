"""`python -m biotorch.cli`, as torchrun starts it."""

from biotorch.cli import main

if __name__ == "__main__":
    main()
