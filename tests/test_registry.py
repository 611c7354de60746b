"""What is registered is found by its name, in order; names are unique, and what is unknown is refused with the rest."""

from __future__ import annotations

import pytest

from sinf.compress.methods import COMPRESSORS
from sinf.criteria import registry as criteria
from sinf.dynamic.methods import METHODS
from sinf.engine.engines import RUNTIMES
from sinf.errors import ConfigError
from sinf.registry import Registry


def test_entries_are_found_by_name_in_their_order() -> None:
    table: Registry[int] = Registry("number", type)
    table.register("two", 2)
    table.register("one", 1)
    assert table.find("two") == 2
    assert list(table.items()) == [("two", 2), ("one", 1)]


def test_the_same_may_be_registered_again_and_another_may_not() -> None:
    table: Registry[tuple[object, int]] = Registry("pair", lambda entry: entry[0])
    mine, other = object(), object()
    table.register("a", (mine, 1))
    table.register("a", (mine, 2))
    assert table.find("a") == (mine, 2)
    with pytest.raises(ConfigError, match=r"every pair has a name of its own \(got a\)"):
        table.register("a", (other, 3))
    assert table.find("a") == (mine, 2)


def test_what_is_unknown_is_refused() -> None:
    tables: list[Registry[int]] = [Registry("number", type), Registry("number", type, unknown="no such number")]
    for table in tables:
        for value, name in enumerate(("one", "two")):
            table.register(name, value)
    with pytest.raises(ConfigError, match=r"the number must be one of one, two \(got three\)"):
        tables[0].find("three")
    with pytest.raises(ConfigError, match=r"no such number \(got three\): take one of one, two"):
        tables[1].find("three")


@pytest.mark.parametrize("table", [COMPRESSORS, criteria._TABLE, METHODS, RUNTIMES], ids=lambda table: table._what)
def test_what_is_named_on_the_command_line_is_in_one_kind_of_table(table: Registry) -> None:
    assert isinstance(table, Registry)
    for name, entry in list(table.items()):
        table.register(name, entry)
        assert table.find(name) is entry
    with pytest.raises(ConfigError, match="got nobody"):
        table.find("nobody")


def test_a_lazy_entry_is_what_it_names() -> None:
    kind = criteria.kind_of("l1")
    criteria.register(kind)  # it stood there as a module and a class in it
    assert criteria.kind_of("l1") is kind
