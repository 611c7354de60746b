"""Energy of a model beside that of its base model, where the machine counts it: processors in the kernel's powercap
tree (RAPL), NVIDIA GPUs through NVML.

A counter is that of a whole package or card and of everything that runs on it, and moves about once a millisecond: base
model and the other take turns for blocks of seconds, not batch by batch.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.measure.timing import Progress, pinned_threads, require_timing

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """One counter: ``joules()`` grows; only differences mean something."""

    name: str
    joules: Callable[[], float]


@dataclass(frozen=True)
class Energy:
    """Joules an image by one meter; ``saved`` is 1 - ours / base, ``ours`` the model's."""

    meter: str
    batch: int
    seconds: float
    base: float
    ours: float
    saved: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Rapl:
    """``energy_uj`` of one zone, which starts again at ``max_energy_range_uj``. It must be read before it went around
    twice, which takes minutes."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last, self._total = self._read(), 0

    def _read(self) -> int:
        return int(self._file.read_text())

    def __call__(self) -> float:
        now = self._read()
        self._total += now - self._last + (self._range if now < self._last else 0)
        self._last = now
        return self._total / 1e6


def find_meters(root: Path = POWERCAP) -> tuple[list[Meter], list[str]]:
    """All meters that can be read, and why there are not more."""
    rapl, why = _find_rapl(root)
    nvml, why_not = _find_nvml()
    return [*rapl, *nvml], [*why, *why_not]


def _find_rapl(root: Path) -> tuple[list[Meter], list[str]]:
    meters, why = [], []
    # intel-rapl:0 is a package (of AMD too); intel-rapl:0:1 is a part of it, and intel-rapl-mmio counts it again.
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue
        try:
            name = (zone / "name").read_text().strip()
            meters.append(Meter(f"RAPL {name}", _Rapl(zone)))
        except PermissionError:
            why.append(f"RAPL: {zone}/energy_uj may be read by root only")
        except (OSError, ValueError) as error:
            why.append(f"RAPL: {zone} cannot be read ({error})")
    if not meters and not why:
        why.append(f"RAPL: {root} has no processor package")
    return meters, why


def _find_nvml() -> tuple[list[Meter], list[str]]:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return [], ["NVML: the package nvidia-ml-py is not installed"]
    try:
        nvml.nvmlInit()
        meters = []
        for index in range(nvml.nvmlDeviceGetCount()):
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceGetTotalEnergyConsumption(card)

            def joules(card: Any = card) -> float:
                return nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3

            meters.append(Meter(f"NVML GPU {index}", joules))
    except nvml.NVMLError as error:
        return [], [f"NVML: {error}"]
    return meters, [] if meters else ["NVML: there is no GPU"]


@torch.no_grad()
def energy(
    base: Callable[[Any], Any],
    model: Callable[[Any], Any],
    images: Tensor | np.ndarray,
    meters: list[Meter],
    *,
    batch: int = 1,
    blocks: int = 5,
    seconds: float = 1.0,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Energy]:
    """Joules an image of both, by every meter, from ``blocks`` blocks of ``seconds`` each in turns."""
    require_timing(images, batch=batch, pairs=max(blocks, 2), threads=threads)
    joules = np.zeros((2, len(meters)))
    done = np.zeros(2)
    with pinned_threads(threads):
        for block in range(2 * blocks):
            which = (block + block // 2) % 2  # base, model, model, base: neither profits from the machine's warming up
            running = (base, model)[which]
            before = np.array([meter.joules() for meter in meters])
            end = time.perf_counter() + seconds
            count = 0
            while not count or time.perf_counter() < end:
                running(images[[(count + i) % len(images) for i in range(batch)]])
                count += batch
            joules[which] += np.array([meter.joules() for meter in meters]) - before
            done[which] += count
            if progress is not None:
                progress(block + 1, 2 * blocks)
    each = joules / done[:, None]
    return [
        Energy(meter.name, batch, seconds * blocks, float(b), float(o), float(1 - o / b) if b else float("nan"))
        for meter, b, o in zip(meters, *each, strict=True)
    ]
