"""Things of one kind by name: criteria, compressors, engines, methods of dynamic pruning. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sinf.errors import ConfigError

E = TypeVar("E")


class Registry(dict[str, E]):
    """Entries by name, in the order in which they were registered.

    Args:
        what: one entry in words, for messages.
        same: what two entries have in common that stand for the same thing.
        unknown: the rule that an unknown name breaks; by default all names are listed in it.
    """

    def __init__(self, what: str, same: Callable[[E], object], unknown: str | None = None) -> None:
        super().__init__()
        self._what, self._same, self._unknown = what, same, unknown

    def register(self, name: str, entry: E) -> None:
        """Let an entry be found by its name; the same thing may be registered again.

        Raises:
            ConfigError: another one has that name.
        """
        if name in self and self._same(self[name]) is not self._same(entry):
            raise ConfigError(f"every {self._what} has a name of its own", got=name, remedy="give another name")
        self[name] = entry

    def find(self, name: str) -> E:
        """The entry of that name.

        Raises:
            ConfigError: there is none.
        """
        if name in self:
            return self[name]
        names = ", ".join(self)
        if self._unknown is None:
            raise ConfigError(f"the {self._what} must be one of {names}", got=name)
        raise ConfigError(self._unknown, got=name, remedy=f"take one of {names}")
