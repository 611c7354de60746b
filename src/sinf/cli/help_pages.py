"""The help of a verb: one page of what most people need, and with ``--help-all`` everything, by headings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from sinf.option import HEADINGS

MOST = 12  # options of a verb that has no second page
_FIRST = ("Arguments", "Options")
_ALL = "all options"


class Verb(TyperCommand):
    """A command with such help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[Any]] = {name: [] for name in (*_FIRST, *HEADINGS)}
        each: Any
        for each in self.get_params(ctx):
            sections["Arguments" if each.param_type_name == "argument" else each.rich_help_panel or "Options"].append(
                each
            )
        options = [each for name, section in sections.items() if name != "Arguments" for each in section]
        few = len(options) - len(("--help", "--help-all")) <= MOST
        if few:
            sections["Options"] = [each for each in sections["Options"] if each.name != "help_all"]
        whole = few or (ctx.obj or {}).get(_ALL)
        for name, section in sections.items():
            if section and (whole or name in _FIRST):
                with formatter.section(name):
                    formatter.write_dl([_row(each, ctx) for each in section])
        if not whole:
            with formatter.section("More, with --help-all"):
                for line in _names({name: sections[name] for name in HEADINGS}, formatter.width - 2):
                    formatter.write(f"  {line}\n")


def show_all(context: typer.Context, asked: bool | None) -> None:
    """What ``--help-all`` does."""
    if asked:
        context.ensure_object(dict)[_ALL] = True
        print(context.get_help())
        context.exit()


def _row(option: Any, context: Any) -> tuple[str, str]:
    """A switch that is off needs no flag that turns it off."""
    name, text = option.get_help_record(context)
    if getattr(option, "secondary_opts", None) and not option.default:
        name = option.opts[0]
    return name, text


def _names(sections: dict[str, list[Any]], width: int) -> Iterator[str]:
    """Lines with the flags under each heading."""
    wide = max(map(len, sections)) + 2
    for name, options in sections.items():
        flags = " ".join(option.opts[0] for option in options)
        for place, line in enumerate(textwrap.wrap(flags, width - wide, break_on_hyphens=False)):
            yield f"{'' if place else name:<{wide}}{line}"
