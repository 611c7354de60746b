"""The command line: ``sinf VERB``. Nothing heavy is imported before a verb runs."""

from sinf.cli.app import main

__all__ = ["main"]
