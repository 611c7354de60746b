"""Joules from a fake powercap tree and a fake NVML: counters that go around, may not be read, or are not there."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from sinf.errors import ConfigError
from sinf.measure.energy import Meter, energy, find_meters

RANGE = 262_143_328_850
IMAGES = np.zeros((3, 3, 2, 2), np.float32)


@pytest.fixture(autouse=True)
def _no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages; a part of one and its second face, which must not be counted again."""
    for zone, name in (
        ("intel-rapl", None),
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        folder = tmp_path / zone
        folder.mkdir()
        if name is not None:
            (folder / "name").write_text(f"{name}\n")
            (folder / "energy_uj").write_text("1000000\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return tmp_path


def count(powercap: Path, zone: str, microjoules: int) -> None:
    (powercap / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_every_package_is_one_meter(powercap: Path) -> None:
    meters, why = find_meters(powercap)
    assert [meter.name for meter in meters] == ["RAPL package-0", "RAPL package-1"]
    assert why == ["NVML: the package nvidia-ml-py is not installed"]
    before = [meter.joules() for meter in meters]
    count(powercap, "intel-rapl:1", 3_500_000)
    assert [meter.joules() - start for meter, start in zip(meters, before, strict=True)] == [0, 2.5]


def test_a_counter_that_goes_around(powercap: Path) -> None:
    count(powercap, "intel-rapl:0", RANGE - 1_000_000)
    meter = find_meters(powercap)[0][0]
    before = meter.joules()
    count(powercap, "intel-rapl:0", 500_000)
    assert meter.joules() - before == pytest.approx(1.5)
    count(powercap, "intel-rapl:0", 1_500_000)
    assert meter.joules() - before == pytest.approx(2.5)


def test_no_powercap_is_said(tmp_path: Path) -> None:
    meters, why = find_meters(tmp_path / "powercap")
    assert meters == []
    assert why[0] == f"RAPL: {tmp_path / 'powercap'} has no processor package"


def test_a_counter_that_may_not_be_read(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def refuse(path: Path, *options: object) -> str:
        if path.name == "energy_uj" and path.parent.name == "intel-rapl:0":
            raise PermissionError(13, "Permission denied")
        return read(path, *options)

    monkeypatch.setattr(Path, "read_text", refuse)
    count(powercap, "intel-rapl:1", 5)
    (powercap / "intel-rapl:1" / "max_energy_range_uj").write_text("many\n")
    meters, why = find_meters(powercap)
    assert meters == []
    assert "root" in why[0]
    assert "intel-rapl:1" in why[1]


class FakeNvml(types.ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self, cards: int, millijoules: list[int]) -> None:
        super().__init__("pynvml")
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetCount = lambda: cards
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetTotalEnergyConsumption = lambda card: millijoules[card]


def test_cards_are_meters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = [1000, 2000]
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(2, millijoules))
    meters, _ = find_meters(tmp_path)
    assert [meter.name for meter in meters] == ["NVML GPU 0", "NVML GPU 1"]
    before = meters[1].joules()
    millijoules[1] += 1500
    assert meters[1].joules() - before == pytest.approx(1.5)


def test_a_machine_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(0, [])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert find_meters(tmp_path)[1][1] == "NVML: there is no GPU"

    def fail() -> None:
        raise nvml.NVMLError("Driver Not Loaded")

    nvml.nvmlInit = fail
    assert find_meters(tmp_path) == ([], [f"RAPL: {tmp_path} has no processor package", "NVML: Driver Not Loaded"])


def test_joules_an_image_are_those_of_the_model_that_ran() -> None:
    """The base model takes two joules an image, ours half a joule."""
    spent, sizes = [0.0], []

    def model(joules: float) -> object:
        def run(x: np.ndarray) -> None:
            sizes.append(len(x))
            spent[0] += joules * len(x)

        return run

    meter, other = Meter("fake", lambda: spent[0]), Meter("still", lambda: 7.0)
    found, still = energy(model(2.0), model(0.5), IMAGES, [meter, other], batch=4, blocks=3, seconds=0.001)
    assert (found.meter, found.batch) == ("fake", 4)
    assert (found.base, found.ours, found.saved) == (pytest.approx(2.0), pytest.approx(0.5), pytest.approx(0.75))
    assert (still.base, still.ours) == (0, 0)
    assert still.saved != still.saved
    assert set(sizes) == {4}


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch"):
        energy(print, print, IMAGES, [], batch=0)
    with pytest.raises(ConfigError, match="images"):
        energy(print, print, IMAGES[:0], [])
