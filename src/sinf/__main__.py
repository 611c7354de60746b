"""``python -m sinf`` is ``sinf``."""

from sinf.cli import main

if __name__ == "__main__":
    main()
