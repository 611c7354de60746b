"""What a killed build computed is found again, and nothing is ever taken for what it is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sinf.errors import ConfigError
from sinf.storage import steps
from sinf.storage.steps import StepStore, Tensors


class Counting:
    """A step that counts how often it is computed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Tensors:
        self.times += 1
        return {
            "mix": torch.linspace(-1, 1, 6).reshape(2, 3).half(),
            "kept": torch.tensor([1, 5], dtype=torch.int32),
            "across": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
            "none": torch.zeros(0, 3),
        }


def test_a_step_is_computed_once(tmp_path: Path) -> None:
    compute = Counting()
    computed = StepStore(tmp_path / "deep" / "work").get("router", {"seed": 0}, compute)
    read = StepStore(tmp_path / "deep" / "work").get("router", {"seed": 0}, compute)
    assert compute.times == 1
    assert read.keys() == computed.keys()
    for name, tensor in computed.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_step_that_depends_on_other_things_is_another_one(tmp_path: Path) -> None:
    store, compute = StepStore(tmp_path), Counting()
    for depends in ({"seed": 0}, {"seed": 1}, {"seed": "0"}, {"seed": 0, "cut": "layer1"}, {"seed": [0, 1]}):
        store.get("router", depends, compute)
    store.get("whole", {"seed": 0}, compute)
    assert compute.times == 6
    store.get("router", {"cut": "layer1", "seed": 0}, compute)  # the order of options is no difference
    assert compute.times == 6


def test_a_step_without_tensors_is_remembered_too(tmp_path: Path) -> None:
    times = []

    def compute() -> Tensors:
        times.append(1)
        return {}

    assert StepStore(tmp_path).get("cluster0", {}, compute) == {}
    assert StepStore(tmp_path).get("cluster0", {}, compute) == {}
    assert len(times) == 1


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    store, compute = StepStore(tmp_path), Counting()
    good = store.get("router", {}, compute)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for number, damaged in enumerate((b"", whole[:5], whole[:-1], b"\xff" * len(whole), b"not a tensor at all")):
        path.write_bytes(damaged)
        again = store.get("router", {}, compute)
        assert compute.times == number + 2
        assert torch.equal(again["kept"], good["kept"])
        assert path.read_bytes() == whole
    store.get("router", {}, compute)
    assert compute.times == 6


def test_no_flipped_bit_gives_other_numbers(tmp_path: Path) -> None:
    """Wherever it is: in the header, which may still be one, or in the numbers."""
    store, compute = StepStore(tmp_path), Counting()
    good = store.get("router", {}, compute)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        again = store.get("router", {}, compute)
        assert again.keys() == good.keys()
        for name, tensor in good.items():
            assert again[name].dtype == tensor.dtype
            assert torch.equal(again[name], tensor)
    numbers = sum(tensor.nbytes for tensor in good.values())
    assert compute.times > 1 + numbers  # each of those at least


def test_a_step_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    compute = Counting()
    StepStore(tmp_path).get("router", {}, compute)
    (path,) = tmp_path.iterdir()
    save_file({name: tensor.contiguous() for name, tensor in compute().items()}, path)
    StepStore(tmp_path).get("router", {}, compute)
    assert compute.times == 2


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> Tensors:
        raise KeyboardInterrupt

    store, compute = StepStore(tmp_path), Counting()
    with pytest.raises(KeyboardInterrupt):
        store.get("router", {}, fail)
    assert list(tmp_path.iterdir()) == []
    store.get("router", {}, compute)
    assert compute.times == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("below", ["", "work"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("something else")
    with pytest.raises(ConfigError, match=r"work folder must be writable.*taken"):
        StepStore(tmp_path / "taken" / below)
    assert (tmp_path / "taken").read_text() == "something else"


def test_files_of_a_bounded_store_take_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result beyond is computed again; one that was kept is read, whatever came later."""
    calls: list[str] = []

    def get(name: str, most: int | None) -> bool:
        def compute() -> Tensors:
            calls.append(name)
            return {"x": torch.zeros(1000)}

        store = StepStore(tmp_path, most)
        assert store.get(name, {}, compute)["x"].shape == (1000,)
        return store.has(name, {})

    assert [get(name, 9000) for name in ("a", "b", "c")] == [True, True, False]
    assert [get(name, 9000) for name in ("a", "c")] == [True, False]
    assert calls == ["a", "b", "c", "c"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 9000
    monkeypatch.setattr(steps.shutil, "disk_usage", lambda folder: SimpleNamespace(free=7000))
    assert [get("d", 1 << 20), get("e", None)] == [False, True]  # 4,000 bytes are more than half
