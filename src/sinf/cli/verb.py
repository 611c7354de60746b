"""A verb is a function; its parameters are options, or dataclasses whose fields are, or hold such dataclasses
(:mod:`sinf.option`). From these come its command, its pages of help, the run files that it reads, and the config in
what it writes for programs.

Why typer, and this file: cyclopts and tyro make options of dataclasses too, but neither knows a first page of help, or
units, so that both need such a file as well; and both draw boxes around help and errors, which are one line here.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from sinf.cli.help_pages import show_all
from sinf.errors import ConfigError, DoesNotPayError
from sinf.option import RUN, Option
from sinf.storage import files

_JSON = Option("Also write the result to this file.", RUN)
Json = Annotated[Path | None, _JSON]

_EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Given:
    """An option of a verb: ``name`` in Python, ``key`` in run files."""

    name: str
    key: str
    kind: Any
    option: Option
    default: Any

    @staticmethod
    def of(name: str, hint: Any, default: Any) -> Given | None:
        """None where a hint has no ``Option``."""
        if get_origin(hint) is not Annotated:
            return None
        kind, *notes = get_args(hint)
        option = next((note for note in notes if isinstance(note, Option)), None)
        return None if option is None else Given(name, option.flag or name, kind, option, default)

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    def parameter(self) -> inspect.Parameter:
        """What typer makes an option of."""
        option, kind, default = self.option, self.kind, self.default
        optional, given = NoneType in get_args(kind), default is not None and default is not _EMPTY
        if optional:
            kind = next(each for each in get_args(kind) if each is not NoneType)
        if option.unit is not None:
            kind, default = option.unit.kind, option.unit.say(default) if given else default
        elif get_origin(kind) is tuple:
            kind, default = list[get_args(kind)[0]], list(default) if given else default  # type: ignore[misc]
        text = f"{option.help}  [default: {option.otherwise}]" if default is None and option.otherwise else option.help
        about: dict[str, Any] = {"help": text, "min": option.low, "max": option.high}
        made: Any
        if option.positional:
            made = typer.Argument(**about)
        else:
            flag = f"{self.flag}/--no-{self.flag[2:]}" if kind is bool else self.flag
            made = typer.Option(flag, **about, rich_help_panel=option.panel or None, show_default=default is not False)
        kind = kind | None if optional else kind
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
        )

    def all(self) -> list[Given]:
        return [self]

    def value(self, all_written: Mapping[str, Any]) -> Any:
        """The value in Python, of what was written by key."""
        written = all_written[self.key]
        if written is None:
            return None
        if self.option.unit is not None:
            return self.option.unit.read(written, self.flag)
        return tuple(written) if isinstance(written, list) else written


class Group:
    """The options of a dataclass, and of those that it holds, with the defaults of an instance of it where there is
    one."""

    def __init__(self, kind: type, default: Any) -> None:
        hints = get_type_hints(kind, include_extras=True)
        self.kind = kind
        self.parts: dict[str, Group | Given] = {}
        for field in fields(kind):
            # A dataclass that a factory makes has the defaults of its own fields.
            own = _EMPTY if field.default is MISSING else field.default
            part = _part(field.name, hints[field.name], own if default is _EMPTY else getattr(default, field.name))
            if part is not None:
                self.parts[field.name] = part

    def value(self, written: Mapping[str, Any]) -> Any:
        return self.kind(**{name: part.value(written) for name, part in self.parts.items()})

    def all(self) -> list[Given]:
        return [given for part in self.parts.values() for given in part.all()]


def _part(name: str, hint: Any, default: Any) -> Group | Given | None:
    """The options of a parameter, or of a field; None where there are none."""
    kinds = [each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each)]
    if len(kinds) != 1:
        return Given.of(name, hint, default)
    group = Group(kinds[0], _EMPTY if default is None else default)
    return group if group.parts else None


def options_of(function: Callable[..., Any]) -> dict[str, Group | Given | None]:
    """By parameter what its options are; None for the context."""
    parameters = inspect.signature(function, eval_str=True).parameters
    return {name: _part(name, each.annotation, each.default) for name, each in parameters.items()}


def verb(function: Callable[..., dict[str, Any] | None], *, runs: bool = False) -> Callable[..., None]:
    """The command of a function. One that returns a record has ``--json``, which also has what was measured of
    something that does not pay. One that ``runs`` also takes ``--config``, and its record holds the command, and the
    config, that make it do the same again."""
    made = options_of(function)

    def write(record: dict[str, Any], written: dict[str, Any]) -> None:
        if runs:
            again = {key: _plain(value) for key, value in written.items() if key not in _OWN and value is not None}
            record = record | {"command": command_line(), "config": again}
        files.write_json(record, written["json"])

    def run(context: typer.Context, **written: Any) -> None:
        try:
            record = function(**{name: context if one is None else one.value(written) for name, one in made.items()})
        except DoesNotPayError as reason:
            if written.get("json") is not None:
                write({"does_not_pay": str(reason), **reason.numbers}, written)
            raise
        if record is not None and written["json"] is not None:
            write(record, written)

    own = dict(_OWN)
    if not runs:
        del own["config"]
    if inspect.signature(function).return_annotation in (None, "None"):
        del own["json"]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", kind, annotation=typer.Context)]
    parameters += [each.parameter() for one in made.values() if one is not None for each in one.all()]
    parameters += [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in own.items()]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def command_line() -> str:
    """What was typed, as a line for a shell. Secrets are in files that the environment names, so none is in it."""
    return shlex.join(["sinf", *sys.argv[1:]])


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _word(value: Any) -> Any:
    """A number as the command line has it, which says itself what is no number of its kind."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _read_config(context: typer.Context, path: Path | None) -> None:
    """Take what the file says where nothing else is given."""
    if path is None:
        return
    from sinf.storage.schema import parse_file, shortened  # help needs no pydantic

    record = parse_file(path, ConfigError, remedy="name a JSON file of options, or what --json wrote")
    if isinstance(record, dict) and isinstance(record.get("config"), dict):
        record = record["config"]  # what --json wrote
    if not isinstance(record, dict):
        raise ConfigError("--config must hold options by name", got=f"{path}: {type(record).__name__}")
    params = {str(each.name): each for each in context.command.params if each.name not in _OWN}
    for key, value in record.items():
        if key not in params:
            near = get_close_matches(key, params, 1)
            remedy = f"call it {near[0]}" if near else f"leave it out; {context.command_path} --help-all lists them"
            raise ConfigError(
                "--config must hold options of this verb", got=f"{shortened(repr(key))} in {path}", remedy=remedy
            )
        repeats = getattr(params[key], "multiple", False) or params[key].nargs != 1
        several = value if repeats and isinstance(value, list) else [value]
        if any(isinstance(each, (list, dict)) for each in several):
            got = f"{shortened(repr(value), 80)} in {path}"
            raise ConfigError(f"{key} of --config must be what the option takes", got=got, remedy="give one value")
        if value is not None:
            record[key] = [_word(each) for each in several] if repeats else _word(value)
    context.default_map = record


#: What verbs have besides their own.
_OWN: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(
            help="Options from a JSON file, or a record that --json wrote; those given here count instead.",
            callback=_read_config, is_eager=True, rich_help_panel=RUN,
        ),
    ],
    "json": Given("json", "json", Path | None, _JSON, None).parameter().annotation,
    "help_all": Annotated[
        bool | None, typer.Option("--help-all", help="Show all options and exit.", callback=show_all, is_eager=True)
    ],
}  # fmt: skip
