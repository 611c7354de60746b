"""What the verbs print of names that strangers chose: brackets are brackets, and nothing steers the terminal."""

from __future__ import annotations

import pytest

from sinf.errors import DataError, printable
from sinf.report.artefacts import show_classes
from sinf.report.terminal import Terminal

#: Rich's own words, one that closes nothing, a code for a picture, a colour, another title, and text written backwards.
EVIL = ("[red]a", "[/b]", ":warning:", "\x1b[31mc", "\x1b]0;title\x07d", "\u202ee")


@pytest.mark.parametrize("name", EVIL)
def test_names_are_shown_as_they_are_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"image": f"pictures/{name}.png", "classes": [{"name": name, "probability": 0.5}], "milliseconds": 1.0}
    if "/" not in name:
        show_classes([record])
    Terminal(width=140).print(f"bundle {name}")
    shown = capsys.readouterr().out
    assert f"bundle {printable(name)}" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "/" in name or f"{printable(name)} 50.0 %" in shown


@pytest.mark.parametrize("name", EVIL)
def test_no_error_steers_the_terminal(name: str) -> None:
    said = str(DataError("a class must have a name", got=name, remedy=f"rename {name}"))
    assert said == f"a class must have a name (got {printable(name)}): rename {printable(name)}"
    assert all(each.isprintable() for each in said)


def test_what_is_read_is_left_as_it_is() -> None:
    assert printable("Größe 猫 5 %\n\tæ") == "Größe 猫 5 %\n\tæ"
