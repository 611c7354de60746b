"""A pruned folder from a stranger: refused in one line, or harmless; nothing runs, nothing large is made."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sinf.bundle.folder import require_place
from sinf.data.images import Preprocessing
from sinf.errors import ModelError
from sinf.graph.trace import trace
from sinf.models import BaseModel, ModelSpec, load_model, plain
from sinf.models.to_plain import make_plain, to_plain
from sinf.pipelines.comparison import save
from sinf.storage import config as storage
from sinf.storage import schema
from tiny import COLOUR, Mixed, randomise

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


@pytest.fixture(scope="module")
def model() -> BaseModel:
    torch.manual_seed(0)
    network = randomise(Mixed(["residual", "gate", "concat"], width=4)).eval()
    description, state = to_plain(trace(network, COLOUR))
    spec = ModelSpec("plain:mixed", 6, COLOUR, description)
    made = make_plain(description, COLOUR.size)
    made.load_state_dict(state)
    return BaseModel(made.requires_grad_(False), spec)


@pytest.fixture(scope="module")
def folder(model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    path = tmp_path_factory.mktemp("pruned") / "model"
    save(model, path, list("abcdef"), provenance={"criterion": "residual", "seed": 2**63})
    return path


@pytest.fixture
def twin(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "twin"
    path.mkdir()
    for each in (CONFIG, WEIGHTS, CARD):
        (path / each).write_bytes((folder / each).read_bytes())
    return path


X = torch.randn(3, *COLOUR.size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def attempt(path: Path, load: Callable[[Path], nn.Module] = plain.load) -> torch.Tensor | str:
    """Answers, or the refusal: anything but a ValueError or a ModelError of one line is a failure."""
    try:
        network = load(path)
    except (ValueError, ModelError) as error:
        refusal = str(error)
        if "\n" in refusal or len(refusal) > 800:
            raise AssertionError(f"not one line: {refusal[:2000]}") from error
        return refusal
    return network(X.clone())


def by_sinf(path: Path) -> nn.Module:
    return load_model(str(path)).module


LOADERS = [plain.load, by_sinf]


def write(path: Path, config: Any, *, digest: bool = False) -> None:
    """``digest`` writes it as somebody would who knows how."""
    if digest and isinstance(config, dict) and "digest" in config:
        try:
            config = config | {"digest": plain.digest(config)}
        except (ValueError, RecursionError):  # not finite
            return
    (path / CONFIG).write_text(json.dumps(config))


def positions(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a config; of lists and records the first, a middle and the last entry."""
    if path:
        yield path
    keys: list[Any] = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    for key in keys if len(keys) <= 12 else [keys[0], keys[len(keys) // 2], keys[-1]]:
        yield from positions(value[key], (*path, key))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


DELETED = object()
CHANGES: dict[str, Any] = {
    "deleted": DELETED, "none": None, "true": True, "zero": 0, "negative": -1, "two": 2, "half": 0.5, "huge": 10**12,
    "larger": 10**300, "nan": float("nan"), "infinite": float("inf"), "word": "word", "path": "a.b", "empty": "",
    "long": "x" * 5000, "list": [], "record": {}, "numbers": [1, 2, 3], "step": {"$step": "x"}, "tuple": {"$tuple": 3},
    "dtype": {"$dtype": "load"}, "deep": nested(40), "deeper": nested(900), "wide": [0] * 3000, "dunder": "__class__",
}  # fmt: skip


def changed(config: Any, path: tuple[Any, ...], value: Any) -> Any:
    config = copy.deepcopy(config)
    place = config
    for key in path[:-1]:
        place = place[key]
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return config


def mutations(config: Any, part: int, parts: int) -> Iterator[tuple[str, Any]]:
    """Every field in every way; ``part`` of ``parts`` of them."""
    number = 0
    for path in positions(config):
        for name, value in CHANGES.items():
            number += 1
            if number % parts == part:
                yield f"{path} {name}", changed(config, path, value)


def check_mutations(folder: Path, twin: Path, part: int, parts: int) -> int:
    config = json.loads((folder / CONFIG).read_text())
    expected = attempt(folder)
    count = 0
    for what, config_now in mutations(config, part, parts):
        same = config_now == config and repr(config_now) == repr(config)
        write(twin, config_now)
        for load in LOADERS:
            stale = attempt(twin, load)
            assert isinstance(stale, str) or (same and torch.equal(stale, expected)), what
        write(twin, config_now, digest=True)
        for load in LOADERS:
            forged = attempt(twin, load)
            assert isinstance(forged, str) or forged.shape == (3, 6), what
        count += 1
    return count


def test_a_sample_of_all_changes_of_every_field(folder: Path, twin: Path) -> None:
    """With the digest as it was, refused; with one of its own, refused or a network that runs."""
    assert check_mutations(folder, twin, 7, 131) > 15


@pytest.mark.slow
def test_every_change_of_every_field(folder: Path, twin: Path) -> None:
    assert check_mutations(folder, twin, 0, 1) > 2000


def flipped(folder: Path, twin: Path, name: str, step: int) -> int:
    """Flip a bit in every so many bytes of a file."""
    data, expected, count = (folder / name).read_bytes(), attempt(folder), 0
    for place in range(0, len(data), step):
        bad = bytearray(data)
        bad[place] ^= 1 << (place % 8)
        (twin / name).write_bytes(bad)
        for load in LOADERS[count % 2 :][:1]:
            result = attempt(twin, load)
            assert isinstance(result, str) or torch.equal(result, expected), (name, place)
        count += 1
    return count


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_flipped_bytes_are_refused_or_change_nothing(folder: Path, twin: Path, name: str) -> None:
    assert flipped(folder, twin, name, 199) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_thousands_of_flipped_bytes(folder: Path, twin: Path, name: str) -> None:
    assert flipped(folder, twin, name, 2) > 1000


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 10**6, b"\xff" * 100, b"1" * 10**5, b"[" + b"{}," * 400_000 + b"1]", None],
    ids=["empty", "open", "deep", "binary", "digits", "items", "folder"],
)
def test_files_of_something_else(twin: Path, name: str, content: bytes | None) -> None:
    (twin / name).unlink()
    if content is None:
        (twin / name).mkdir()
    else:
        (twin / name).write_bytes(content)
    for load in LOADERS:
        assert isinstance(attempt(twin, load), str)


def test_a_forged_hash_of_other_tensors(folder: Path, twin: Path) -> None:
    """Whoever writes a digest of his own can write tensors of his own: they must still be those of the layers."""
    from safetensors.torch import load_file, save_file

    from sinf.storage.files import sha256

    state = load_file(folder / WEIGHTS)
    first = next(iter(state))
    for other in ({**state, first: torch.zeros(3)}, {**state, "more": torch.zeros(3)}, {}, {first: state[first]}):
        save_file(other, twin / WEIGHTS)
        config = json.loads((folder / CONFIG).read_text())
        config["sha256"][WEIGHTS] = sha256(twin / WEIGHTS)
        write(twin, config, digest=True)
        for load in LOADERS:
            assert "tensors" in str(attempt(twin, load))


@pytest.mark.parametrize("version", ["sinf-plain-1", "sinf-plain-2"])
def test_folders_of_an_earlier_version(folder: Path, twin: Path, model: BaseModel, version: str) -> None:
    """They had a format of their own: not loaded, but written again in their place."""
    config = json.loads((folder / CONFIG).read_text())
    config = {"format": version, "network": config["model"]["options"], "made_by": {}}
    write(twin, config)
    assert f"format 8 (got {version}): write it again" in str(attempt(twin, plain.load))
    assert f"format 8 (got '{version}'): build the bundle again" in str(attempt(twin, by_sinf))
    require_place(twin)
    save(model, twin, list("abcdef"))
    assert isinstance(attempt(twin), torch.Tensor)


def test_the_loader_and_sinf_read_the_same_format() -> None:
    assert (plain.FORMAT, plain.WEIGHTS) == (storage.FORMAT, WEIGHTS)
    assert (plain.MAX_BYTES, plain.MAX_ITEMS) == (schema.MAX_BYTES, schema.MAX_ITEMS)


@pytest.mark.parametrize("method", ["semantic", "dynamic"])
def test_a_bundle_of_another_method_is_no_plain_model(folders: dict[str, Path], method: str) -> None:
    for load in LOADERS:
        assert "the method static" in str(attempt(folders[method], load))


# ---- what is described


def network(*steps: dict[str, Any], layers: dict[str, Any] | None = None) -> dict[str, Any]:
    """The steps between an input and an output that has the shape of logits."""
    last = steps[-1]["name"] if steps else "x"
    ends = [
        {"name": "pooled", "do": "method", "of": "mean", "args": [{"$step": last}, [2, 3]]},
        {"name": "out", "do": "output", "args": [{"$step": "pooled"}]},
    ]
    return {"layers": layers or {}, "tensors": {}, "steps": [{"name": "x", "do": "input"}, *steps, *ends]}


def step(do: str, of: str, *args: Any, name: str = "y", **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "do": do, "of": of, "args": list(args), "kwargs": kwargs}


IMAGE = {"$step": "x"}


def test_the_frame_of_these_tests_is_a_network() -> None:
    assert make_plain(network(step("function", "torch.relu", IMAGE)), COLOUR.size)(X).shape == (3, 3)


FUNCTIONS = """
    zeros ones empty full arange linspace logspace eye randn load save from_file compile set_num_threads frombuffer
    from_numpy asarray tensor hub jit ops classes _C manual_seed set_default_device tril_indices cartesian_prod
    block_diag kron outer cdist bincount nonzero empty_strided fft linalg special overrides utils cuda distributed
"""
METHODS = """
    resize_ resize_as_ set_ share_memory_ numpy tolist item data_ptr storage untyped_storage new_zeros new_empty
    new_full new_ones register_hook requires_grad_ backward apply_ map_ cuda cpu pin_memory to_sparse as_strided
    as_strided_ put_ index_put_ __class__ __reduce_ex__ __setstate__ _make_subclass detach_
"""


@pytest.mark.parametrize("of", FUNCTIONS.split())
def test_functions_that_make_what_a_number_says_cannot_be_named(of: str) -> None:
    with pytest.raises(ModelError, match="no function"):
        make_plain(network(step("function", f"torch.{of}", IMAGE)), COLOUR.size)


@pytest.mark.parametrize("of", METHODS.split())
def test_methods_that_do_more_than_compute_cannot_be_named(of: str) -> None:
    with pytest.raises(ModelError, match="no method"):
        make_plain(network(step("method", of, IMAGE)), COLOUR.size)


@pytest.mark.parametrize(
    "kind",
    ["Bilinear", "Sequential", "Module", "ModuleList", "Transformer", "Embedding", "LSTM", "DataParallel", "LazyLinear",
     "CrossEntropyLoss", "Parameter", "functional", "modules", "Buffer", "__name__", "Container"],
)  # fmt: skip
def test_layers_that_no_network_needs_cannot_be_named(kind: str) -> None:
    with pytest.raises(ModelError, match="no layer"):
        make_plain(network(layers={"a": {"type": kind, "args": {}}}), COLOUR.size)


@pytest.mark.parametrize("args", [{"device": "cpu"}, {"dtype": {"$dtype": "float64"}}, {"colour": 1}, []])
def test_arguments_of_layers_are_those_of_their_kind(args: Any) -> None:
    base = {"in_features": 3, "out_features": 3}
    with pytest.raises(ModelError):
        make_plain(network(layers={"a": {"type": "Linear", "args": base | args if args else args}}), COLOUR.size)


FEW = {"in_features": 8, "out_features": 8}
GREEDY = {
    "repeat": [step("method", "repeat", IMAGE, 1, 1, 10**5, 10**5)],
    "expand": [step("method", "expand", {"$step": "z"}, -1, -1, 10**6, 10**6)],
    "tile": [step("method", "tile", IMAGE, {"$tuple": [1, 1, 10**5, 10**5]})],
    "interpolate": [step("function", "torch.nn.functional.interpolate", IMAGE, scale_factor=1e5)],
    "to a size": [step("function", "torch.nn.functional.interpolate", IMAGE, size=[10**6, 10**6])],
    "pad": [step("function", "torch.nn.functional.pad", IMAGE, [0, 10**6, 0, 10**6])],
    "pool": [step("function", "torch.nn.functional.adaptive_avg_pool2d", IMAGE, 10**6)],
    "unfold": [step("function", "torch.nn.functional.pad", IMAGE, [10**4] * 4, name="z"),
               step("function", "torch.nn.functional.unfold", {"$step": "z"}, 5)],
    "power": [step("function", "operator.pow", 10**9, 10**9)],
    "list": [step("function", "operator.mul", [0], 10**9)],
    "text": [step("function", "operator.mod", "%1000000000d", 1)],
    "outer": [step("function", "torch.flatten", IMAGE, name="f"),
              step("method", "unsqueeze", {"$step": "f"}, 0, name="a"),
              step("method", "unsqueeze", {"$step": "f"}, 1, name="b"),
              step("method", "mul", {"$step": "a"}, {"$step": "b"})],
    "twice": [step("function", "torch.cat", [{"$step": "x" if i == 0 else f"y{i - 1}"}] * 2, 2, name=f"y{i}")
              for i in range(60)],
}  # fmt: skip
GREEDY["expand"] = [step("method", "mean", IMAGE, [2, 3], True, name="z"), *GREEDY["expand"]]


@pytest.mark.parametrize("name", GREEDY)
def test_memory_is_bounded_before_anything_runs(name: str) -> None:
    """By a run without memory; 'outer' grows with the square of the batch."""
    with pytest.raises(ModelError) as caught:
        make_plain(network(*GREEDY[name]), COLOUR.size)
    assert "\n" not in str(caught.value)


def test_a_wide_network_is_wide_because_it_says_so() -> None:
    """Channels that are not in the tensors are refused when these are compared (see below); those in them are right."""
    wide = step("layer", "fc", IMAGE)
    made = make_plain(network(wide, layers={"fc": {"type": "Linear", "args": FEW}}), (3, 8, 8))
    assert made(X).shape == (3, 3)


IN_LITTLE_MEMORY = """
import resource, sys, torch
from sinf.models import plain, load_model
from sinf.errors import ModelError
torch.nn.Conv2d(3, 3, 3)(torch.zeros(1, 3, 8, 8))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
for folder in sys.argv[1:]:
    for load in (plain.load, load_model):
        try:
            load(folder)
        except (ValueError, ModelError) as error:
            print(str(error)[:300])
        else:
            print("loaded")
"""

LARGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "layer": lambda c: c["model"]["options"]["layers"]["head"]["args"].update(out_features=10**9),
    "tensor": lambda c: c["model"]["options"]["tensors"].update(
        t={"kind": "buffer", "shape": [2**20, 2**20], "dtype": "float64"}
    ),
    "steps": lambda c: c["model"]["options"].update(network(*GREEDY["repeat"])),
    "input": lambda c: c["model"]["preprocessing"].update(size=[3, 10**6, 10**6]),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")
def test_a_few_bytes_take_no_memory(folder: Path, tmp_path: Path) -> None:
    """In a process that may take 300 MB more than it has."""
    for name, change in LARGE.items():
        (tmp_path / name).mkdir()
        for each in (WEIGHTS, CARD):
            (tmp_path / name / each).write_bytes((folder / each).read_bytes())
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        write(tmp_path / name, config, digest=True)
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, *(str(tmp_path / name) for name in LARGE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.strip().splitlines()
    assert len(lines) == 2 * len(LARGE)
    assert not any("loaded" in line or "alloc" in line.replace("sinf", "") for line in lines), lines


WORDS = st.sampled_from(["x", "Linear", "$step", "input", "output"])
KEYS = st.sampled_from(["name", "do", "of", "args", "kwargs", "$step", "$tuple", "type"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100)
@given(json_values)
def test_any_json_is_a_network_or_refused(value: Any) -> None:
    whole = network()
    for description in (value, whole | {"layers": value}, whole | {"tensors": {"a": value}}, whole | {"steps": value},
                        whole | {"steps": [whole["steps"][0], value, *whole["steps"][1:]]}):  # fmt: skip
        with pytest.raises(ModelError) if description != whole else _nothing():
            make_plain(description, COLOUR.size)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


# ---- what is written


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(3, 6)
        self.table = nn.Bilinear(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        if self.kind == "method":
            x = x.tril()
        elif self.kind == "function":
            x = torch.tril(x)
        elif self.kind == "layer":
            x = self.table(x, x)
        return self.head(x)


@pytest.mark.parametrize(("kind", "word"), [("method", "tril"), ("function", "tril"), ("layer", "Bilinear at table")])
def test_what_could_not_be_loaded_is_not_written(kind: str, word: str) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        to_plain(trace(Odd(kind), Preprocessing((3, 1, 1), (0.5,) * 3, (0.5,) * 3)))
    assert "\n" not in str(caught.value)


def test_the_card_says_what_importing_means(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "runs its code" in card
    assert 'sinf.load_model("FOLDER")' in card


def test_sinf_runs_nothing_of_a_folder(folder: Path, twin: Path, tmp_path: Path) -> None:
    for name in ("load.py", "__init__.py", "plain.py"):
        (twin / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert torch.equal(attempt(twin, by_sinf), attempt(folder))  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()
