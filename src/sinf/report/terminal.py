"""The terminal: names of files, classes and clusters are shown as they are written, whatever they hold."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from sinf.errors import printable


class Terminal(Console):
    """A console to which brackets are brackets and no styles, and whose texts do not steer it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
