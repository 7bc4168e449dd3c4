"""`python -m launcher` is `ptm`, for launchers that start modules, such as torchrun."""

from launcher.cli import main

if __name__ == "__main__":
    main()
