"""Which class of a model each label of some data is.

A label is looked up in a file of the caller's where there is one, then by name: first as it is written, then without
regard to case, spaces, underscores and hyphens, then among other names of the classes (synonyms, ImageNet's synsets).
The first of these that knows it decides; where that is several classes, or none knows it, nothing is guessed. A model
that has no names for its classes has numbers, and so may the data.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sinf.data.images import LabelledImages
from sinf.data.label_file import read_label_file
from sinf.errors import DataError

#: In the place of a file: the numbers of the data's classes are the model's.
NUMBERS = "numbers"
_REMEDY = 'name them in a file: --labels labels.json, {"label of the data": "class of the model" or its number}'
_SHOWN = 5
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ModelClasses:
    """Names of a model's classes, all different, by number; ``others`` are more names of each, ``source`` is where they
    come from."""

    names: tuple[str, ...]
    source: str
    others: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def of(names: list[str] | tuple[str, ...], source: str, others: tuple[tuple[str, ...], ...] = ()) -> ModelClasses:
        """Names that repeat get their number."""
        times = Counter(names)
        unique = tuple(name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names))
        return ModelClasses(unique, source, others)


@dataclass(frozen=True)
class Matched:
    """Images whose labels are the model's class numbers and whose class names are the model's, and what was done to
    them, in one sentence, or None for nothing."""

    images: LabelledImages
    said: str | None


def are_numbers(names: list[str] | tuple[str, ...]) -> bool:
    """Whether names are no names: the class numbers in their order, as of labels without names, or as transformers
    calls what nobody has named."""
    return all(name in (str(number), f"LABEL_{number}") for number, name in enumerate(names))


def match_labels(
    images: LabelledImages,
    count: int,
    model_classes: ModelClasses | None,
    *,
    file: str | Path | None = None,
    likely: ModelClasses | None = None,
) -> Matched:
    """The images as a model of ``count`` classes sees them.

    Args:
        model_classes: the names of its classes, where it has any.
        file: a file that :func:`sinf.data.label_file.read_label_file` reads, or ``"numbers"``.
        likely: names that it may well have though nobody says so; they are taken if they hold all labels.

    Raises:
        DataError: a label is none of the model's classes, or may be several; some of them are named.
    """
    if model_classes is not None and (len(model_classes.names) != count or are_numbers(model_classes.names)):
        model_classes = None
    if file is None and model_classes is None:
        plain = _by_number(images, count)
        if plain is not None:
            return plain
    if file == NUMBERS:
        plain = _by_number(images, count, asked=True)
        if plain is None:
            raise DataError(
                f"{images.name}: numbers of the data's classes must be the model's",
                got=f"{images.classes} classes instead of {count}",
                remedy=_REMEDY,
            )
        return Matched(plain.images if model_classes is None else _named(plain.images, model_classes.names), plain.said)
    given = {} if file is None else read_label_file(file)
    if not given and images.numbered:
        return _numbers_of(images, count, model_classes)
    return _by_name(images, count, model_classes or likely, given, certain=model_classes is not None)


def _by_number(images: LabelledImages, count: int, asked: bool = False) -> Matched | None:
    """As they are, where there are as many classes, or where the data has numbers only."""
    written = [int(name) for name in images.class_names if name.isdecimal()]
    if asked and len(set(written)) == images.classes and max(written) < count:  # folders that are named by numbers
        names = [str(number) for number in range(count)]
        return Matched(images.relabelled(list(written), names), _numbers_said(images, count))
    if images.classes == count:
        said = None
        if len(written) == count and written != sorted(written):
            row = next(row for row, number in enumerate(written) if row != number)
            said = (
                f"{images.name}: classes are counted in the order of their names: class {row} is {written[row]!s} "
                "(--labels numbers takes the names for the numbers)"
            )
        return Matched(images, said)
    if (images.numbered or asked) and images.classes <= count:
        names = [*images.class_names, *(str(number) for number in range(images.classes, count))]
        if len(set(names)) == count:
            return Matched(images.relabelled(list(range(images.classes)), names), _numbers_said(images, count))
    return None


def _numbers_said(images: LabelledImages, count: int) -> str:
    return f"{images.name}: its labels are numbers, taken for those of the model's {count} classes"


def _numbers_of(images: LabelledImages, count: int, model_classes: ModelClasses | None) -> Matched:
    """Data without names, for a model with names."""
    if images.classes > count or model_classes is None:
        raise DataError(
            f"{images.name}: labels must be class numbers of the model, 0..{count - 1}",
            got=f"numbers up to {images.classes - 1}",
            remedy=_REMEDY,
        )
    named = images.relabelled(list(range(images.classes)), list(model_classes.names))
    return Matched(named, _numbers_said(images, count))


def _named(images: LabelledImages, names: tuple[str, ...]) -> LabelledImages:
    return images.relabelled(list(range(images.classes)), list(names))


def _by_name(
    images: LabelledImages,
    count: int,
    model_classes: ModelClasses | None,
    given: dict[str, str | int | None],
    *,
    certain: bool,
) -> Matched:
    used = images.used_classes()
    finder = None if model_classes is None else _Finder(model_classes)
    mapping: list[int | None] = [None] * images.classes  # None: no image has it, or it is left out
    wrong: list[str] = []
    by_file = left_out = 0
    for number in used:
        label = images.class_names[number]
        if label in given:
            by_file += 1
            target = given[label]
            left_out += target is None
            candidates = [] if target is None else _of_file(label, target, count, finder)
            mapping[number] = candidates[0] if candidates else None
            continue
        candidates = finder.find(label) if finder is not None else []
        if len(candidates) == 1:
            mapping[number] = candidates[0]
        else:
            several = " or ".join(str(each) for each in candidates[:3])
            wrong.append(repr(label) if not candidates else f"{label!r} (class {several})")
    times = Counter(mapping[number] for number in used if mapping[number] is not None)
    for number in used:  # only a file may put several labels into one class
        label, to = images.class_names[number], mapping[number]
        if label not in given and to is not None and times[to] > 1:
            wrong.append(f"{label!r} (class {to} like another)")
    if wrong:
        raise _unmatched(images, count, wrong, len(used), model_classes if certain else None)
    if left_out == len(used):
        raise DataError(f"{images.name}: labels must leave some images", got="all left out", remedy=_REMEDY)
    names = list(model_classes.names) if model_classes is not None else _names_of(images, count, mapping)
    matched = images.relabelled(mapping, names)
    return Matched(matched, _said(images, matched, count, model_classes, by_file, left_out, mapping, certain))


def _of_file(label: str, target: str | int, count: int, finder: _Finder | None) -> list[int]:
    """The class that a file names, by its number or as the model calls it."""
    candidates = [target] if isinstance(target, int) and target < count else []
    if isinstance(target, str) and finder is not None:
        candidates = finder.find(target)
    if len(candidates) != 1:
        what = f"0..{count - 1}" if finder is None else f"0..{count - 1} or one name of one class"
        raise DataError(f"the labels file must name a class of the model, {what}", got=f"{label!r}: {target!r}")
    return candidates


class _Finder:
    """Finds classes by what they are called."""

    def __init__(self, model_classes: ModelClasses) -> None:
        self._steps: list[dict[str, list[int]]] = [{}, {}, {}]
        for number, name in enumerate(model_classes.names):
            self._steps[0].setdefault(name, []).append(number)
            self._steps[1].setdefault(_simple(name), []).append(number)
        for number, others in enumerate(model_classes.others):
            for other in {_simple(each) for each in others}:
                self._steps[2].setdefault(other, []).append(number)

    def find(self, label: str) -> list[int]:
        """The classes that a label may mean: one, several or none."""
        for names, each in zip(self._steps, (label, _simple(label), _simple(label)), strict=True):
            if each in names:
                return names[each]
        return []


def _simple(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def _names_of(images: LabelledImages, count: int, mapping: list[int | None]) -> list[str]:
    """Of a model without names: the data's first name for a class, and the number of the others."""
    names = [f"class {number}" for number in range(count)]
    for number in reversed(range(images.classes)):
        target = mapping[number]
        if target is not None:
            names[target] = images.class_names[number]
    return names


def _unmatched(
    images: LabelledImages, count: int, wrong: list[str], used: int, model_classes: ModelClasses | None
) -> DataError:
    shown = ", ".join(wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
    whose = f"the model's {count} classes" + (
        "" if model_classes is None else f" ({model_classes.source}: {model_classes.names[0]!r}, ...)"
    )
    remedy = f"{_REMEDY}, null for images to leave out; or --labels numbers, if its class numbers are the model's"
    if any(_SYNSET.search(each) for each in wrong):
        remedy = f'run: pip install "sinf[timm]", which knows the synsets of ImageNet; or {remedy}'
    return DataError(
        f"{images.name}: each label must be one of {whose}",
        got=f"{len(wrong)} of {used} that are none, or several: {shown}",
        remedy=remedy,
    )


def _said(
    images: LabelledImages,
    matched: LabelledImages,
    count: int,
    model_classes: ModelClasses | None,
    by_file: int,
    left_out: int,
    mapping: list[int | None],
    certain: bool,
) -> str | None:
    reached = {target for target in mapping if target is not None}
    if (
        not by_file
        and images.class_names == matched.class_names
        and mapping == [number if mapping[number] is not None else None for number in range(images.classes)]
    ):
        return None  # the same names in the same order
    parts = [f"{len(images.used_classes())} labels are {len(reached)} of the model's {count} classes"]
    if model_classes is not None:
        parts.append(
            f"by the names of {model_classes.source}" + ("" if certain else ", which the model does not say it has")
        )
    if by_file:
        parts.append(f"{by_file} by the file")
    if left_out:
        parts.append(f"{len(images) - len(matched)} images of {left_out} labels are left out")
    return f"{images.name}: {', '.join(parts)}"
