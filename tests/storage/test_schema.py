"""JSON is read through a schema: bounded before it is parsed, strict after, one line for whatever is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinf.errors import BundleError, ConfigError, SinfError
from sinf.storage import schema
from sinf.storage.schema import Record, Share, parse, read_json, record_of, validated


@dataclass(frozen=True)
class Sample:
    share: float
    count: int
    names: tuple[str, ...]
    note: str | None

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ConfigError("count must not be 13", got=13)


SAMPLE = record_of(Sample, share=Share)
GOOD = Sample(0.5, 3, ("a", "b"), None)


class Outer(Record):
    inner: SAMPLE  # type: ignore[valid-type]


def test_a_dataclass_comes_back_as_it_was() -> None:
    assert validated(asdict(GOOD), SAMPLE, BundleError, "it") == GOOD
    assert validated({"inner": asdict(GOOD)}, Outer, BundleError, "it").inner == GOOD


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"share": -0.1}, "share"),
        ({"share": True}, "share"),
        ({"share": "0.5"}, "share"),
        ({"share": 10**400}, "share"),
        ({"count": 1.5}, "count"),
        ({"count": 2**60}, "count"),
        ({"count": 13}, "count must not be 13"),
        ({"names": "ab"}, "names"),
        ({"names": ["a", None]}, r"names\.1"),
        ({"names": ["a" * 1_000_000]}, r"names\.0"),
        ({"names": ["a"] * 100_001}, "names"),
        ({"note": 3}, "note"),
        ({"other": 3}, "other"),
    ],
)
def test_every_other_value_is_refused_by_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(BundleError, match=place) as caught:
        validated(asdict(GOOD) | change, SAMPLE, BundleError, "it")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b"[" * 1_000_000, "levels"),
        (b'{"a":' * 1_000_000, "levels"),
        (b"9" * 5000, "JSON"),
        (b" " * (schema.MAX_BYTES + 1), "MB"),
    ],
)
def test_what_is_no_bounded_json_is_refused_before_it_is_parsed(content: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        parse(content, BundleError, "it")


def test_brackets_in_strings_have_no_depth() -> None:
    assert parse(json.dumps(["[" * 1000, '"\\[' * 1000]).encode(), BundleError, "it") == ["[" * 1000, '"\\[' * 1000]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(BundleError, match="no such file"):
            read_json(path, SAMPLE, BundleError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(value=JSON)
def test_nothing_but_a_sample_is_taken_for_one(value: Any) -> None:
    with pytest.raises(SinfError):
        validated(parse(json.dumps(value).encode(), BundleError, "it"), SAMPLE, BundleError, "it")


@given(content=st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(content: bytes) -> None:
    with suppress(BundleError):
        assert parse(content, BundleError, "it") == json.loads(content)


def schemas(kind: type[Record] = Record) -> list[type[Record]]:
    return [kind, *(each for below in kind.__subclasses__() for each in schemas(below))]


def lists_in(core: Any) -> list[dict[str, Any]]:
    """All lists of any length in a schema of pydantic-core, but those of any JSON, in which no value is wrong."""
    if isinstance(core, dict):
        anything = "JsonValue" in str(core.get("items_schema"))
        mine = [core] if core.get("type") == "list" or "variadic_item_index" in core else []
        mine = [] if anything else mine
        return mine + [each for value in core.values() for each in lists_in(value)]
    return [each for value in core for each in lists_in(value)] if isinstance(core, list | tuple) else []


def test_every_list_of_every_schema_is_refused_at_its_first_wrong_value() -> None:
    import sinf.bundle.semantic
    import sinf.dynamic.bundle
    import sinf.edge  # noqa: F401  (their schemas)

    checked = 0
    for kind in schemas():
        for each in lists_in(kind.__pydantic_core_schema__):
            assert each.get("fail_fast"), (kind, each)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400 + ".0"])
def test_a_number_beyond_all_floats_is_no_number(number: str) -> None:
    """It would be read as infinity, of which no digest can be made."""
    with pytest.raises(BundleError, match="no number"):
        parse(f'{{"threshold": {number}}}'.encode(), BundleError, "it")
