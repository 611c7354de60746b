"""A pruned model beside its base: measured, and saved as a plain model.

The folder needs torch and safetensors to be loaded, and nothing of sinf (see :mod:`sinf.models.plain`):

    config.json         layers and steps as data, classes, what it is fed, how it was made, what was measured
    model.safetensors   the tensors, by the names that they had in the base model
    load.py             the loader
    README.md           a model card
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sinf.data import BATCH, LabelledImages
from sinf.engine.prepare import prepare
from sinf.errors import StorageError
from sinf.files import replacing_folder, sha256, write_tensors
from sinf.measure import machine
from sinf.memory import DEFAULT, Memory, activations, weight_bytes
from sinf.models import BaseModel, ModelSpec, plain
from sinf.models.load import PLAIN
from sinf.models.trace import trace
from sinf.schema import parse_file
from sinf.subgraph.coupling import couple
from sinf.subgraph.select import MacCount
from sinf.timing import Latency, latency

Progress = Callable[[str, int, int], None]
_TIMED = 500  # images that batches are made of


@dataclass(frozen=True)
class Size:
    """Of one input: MACs and parameters."""

    macs: int
    parameters: int

    @staticmethod
    def of(model: BaseModel) -> Size:
        graph = trace(model.module, model.spec.preprocessing)
        macs = MacCount(graph, couple(graph, free_output=True)).total()
        return Size(macs, sum(p.numel() for p in {id(p): p for p in model.module.parameters()}.values()))


@dataclass(frozen=True)
class Comparison:
    """Base beside pruned: accuracies are fractions of 1 over ``images``, ``loss`` is in percentage points."""

    images: int
    base_top1: float
    top1: float
    loss: float
    base: Size
    pruned: Size
    times: tuple[Latency, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def compare(
    base: BaseModel,
    pruned: BaseModel,
    images: LabelledImages,
    *,
    batches: tuple[int, ...] = (1, 32),
    pairs: int = 200,
    threads: int = 1,
    progress: Progress | None = None,
    memory: int = DEFAULT,
) -> Comparison:
    """Accuracy, MACs, parameters, and the time of each batch size, base and pruned in turns, prepared alike, in as many
    bytes as ``memory`` says."""
    progress = progress or (lambda step, done, total: None)
    before, after = (prepare(trace(model.module, model.spec.preprocessing)) for model in (base, pruned))
    budget = Memory(memory)
    batch = budget.batch(
        "comparison", activations(before).forward, BATCH, fixed=4 * weight_bytes(before) + budget.cache
    )
    images.limit(budget.cache, batch)
    right, done = [0, 0], 0
    for x, y in images.batches(base.spec.preprocessing):
        for which, model in enumerate((before, after)):
            right[which] += int((model(x).argmax(1) == y).sum())
        done += len(y)
        progress("evaluating", done, len(images))
    x = images.inputs(base.spec.preprocessing)[:_TIMED]
    times = tuple(
        latency(
            before, after, x, batch=batch, pairs=pairs if batch == 1 else max(10, pairs // 10), threads=threads,
            progress=lambda done, total, batch=batch: progress(f"batch {batch}", done, total),  # type: ignore[misc]
        )
        for batch in batches
    )  # fmt: skip
    return Comparison(
        images=len(images),
        base_top1=right[0] / len(images),
        top1=right[1] / len(images),
        loss=100 * (right[0] - right[1]) / len(images),
        base=Size.of(base),
        pruned=Size.of(pruned),
        times=times,
    )


def check_target(folder: Path) -> None:
    """Refuse a folder that holds something else, before anything is computed."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_plain(folder))):
        raise StorageError(
            "only a pruned model may be replaced", got=f"{folder} holds other files", remedy="name another"
        )


def save(
    pruned: BaseModel,
    folder: str | Path,
    class_names: list[str],
    *,
    made_by: dict[str, Any] | None = None,
    comparison: Comparison | None = None,
) -> None:
    """Write the folder; one that holds another pruned model is replaced, anything else is refused.

    Raises:
        StorageError: the folder holds something else, or cannot be written; what was there stays.
    """
    folder = Path(folder)
    check_target(folder)
    spec = pruned.spec
    with replacing_folder(folder) as partial:
        write_tensors(pruned.module.state_dict(), partial / "model.safetensors")
        shutil.copyfile(plain.__file__, partial / "load.py")
        (partial / "README.md").write_text(_card(spec, made_by or {}, comparison))
        config = {
            "format": plain.FORMAT,
            "name": spec.name.removeprefix(PLAIN),
            "classes": spec.classes,
            "class_names": class_names,
            "preprocessing": asdict(spec.preprocessing),
            "made_by": made_by or {},
            "measured": None if comparison is None else comparison.to_json() | machine(),
            "sha256": {"model.safetensors": sha256(partial / "model.safetensors")},
            "network": spec.options,
        }
        text = json.dumps(config | {"digest": plain.digest(config)}, indent=1) + "\n"
        (partial / "config.json").write_text(text)
        plain.load(partial)  # what is written can be read, or the old folder stays


def _is_plain(folder: Path) -> bool:
    """Of any version, so that a folder of an earlier one can be written again."""
    try:
        config = parse_file(folder / "config.json", StorageError)
    except StorageError:
        return False
    return isinstance(config, dict) and str(config.get("format")).startswith(plain.FORMAT.rstrip("0123456789"))


def _card(spec: ModelSpec, made_by: dict[str, Any], comparison: Comparison | None) -> str:
    lines = ["---", "pipeline_tag: image-classification", "---", "", f"# {spec.name.removeprefix(PLAIN)}, pruned", ""]
    if comparison is not None:
        lines += [f"| on {comparison.images} images | base | pruned |", "|---|---|---|"]
        lines += [f"| {name} | {base} | {ours} |" for name, base, ours in rows_of(comparison)]
        facts = machine()
        lines += ["", f"{facts['processor']}, {facts['versions']}, batch norms folded in both.", ""]
    lines += [f"- {key}: {value}" for key, value in made_by.items()]
    p = spec.preprocessing
    lines += [f"- images: {'x'.join(map(str, p.size))}, values of 0..1 minus {p.mean}, divided by {p.std}", ""]
    lines += ["```python", "from load import load  # torch and safetensors, nothing else", ""]
    lines += ['model = load("FOLDER")', "logits = model(images)  # (B, classes)", "```", ""]
    lines += [
        "Importing a `load.py` that you downloaded runs its code, whatever it is by then. With sinf installed,",
        '`sinf.load_model("FOLDER").module` is the same network, and nothing in the folder is run.',
        "",
    ]
    return "\n".join(lines)


def rows_of(comparison: Comparison) -> list[tuple[str, str, str]]:
    """What a table shows of a comparison: name, base, pruned."""
    c = comparison
    macs, parameters = c.pruned.macs / c.base.macs, c.pruned.parameters / c.base.parameters
    rows = [
        ("top-1", f"{100 * c.base_top1:.2f} %", f"{100 * c.top1:.2f} % ({-c.loss:+.2f} points)"),
        ("MACs", f"{c.base.macs / 1e6:.1f} M", f"{c.pruned.macs / 1e6:.1f} M ({1 / macs:.2f}x fewer)"),
        (
            "parameters",
            f"{c.base.parameters / 1e6:.2f} M",
            f"{c.pruned.parameters / 1e6:.2f} M ({1 / parameters:.2f}x fewer)",
        ),
    ]
    for t in c.times:
        low, high = 100 * t.low, 100 * t.high
        rows.append(
            (
                f"median ms, batch {t.batch}",
                f"{t.base_median:.2f}",
                f"{t.median:.2f} ({100 * t.time_saved:.1f} % of the mean saved, {low:.1f} .. {high:.1f})",
            )
        )
    return rows
