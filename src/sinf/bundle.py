"""What is saved and loaded: a folder with the base weights once, and for every subgraph only what differs.

    config.json             format, model, classes, clusters, cut point, deferral, thresholds, provenance, sha256s
    model.safetensors       the base model's weights
    subgraphs.safetensors   PART.kept.GROUP (kept channels, base coordinates) and PART.mix.LAYER (C, k) for every part;
                            PART.whole.PARAMETER where whole weights differ
    router.safetensors      the route predictor
    times.json              what tails cost on the machines where sinf tune measured it, if it did
    README.md               a model card

It is written to a temporary folder and renamed, so that a kill or a full disk leaves what was there. No pickle.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sinf.clusters import Clusters
from sinf.deferral import Deferral
from sinf.errors import BundleError, DataError, StorageError
from sinf.files import replacing_folder, sha256, write_json, write_tensors
from sinf.grouping import TailTimes
from sinf.models import ModelSpec, load_spec
from sinf.models.load import PLAIN, REFERENCE_NAMES
from sinf.models.plain import FORMAT as PLAIN_FORMAT
from sinf.models.trace import trace
from sinf.network import Network, Part
from sinf.risk import Threshold
from sinf.router import RoutePredictor, RouterConfig
from sinf.routing import part_name

FORMAT = 5
_FILES = ("model.safetensors", "subgraphs.safetensors", "router.safetensors", "README.md")
_TIMES = "times.json"
_LIBRARIES = ("timm:", "torchvision:", "hf:", PLAIN)
_NEEDED = {"model", "classes", "clusters", "cut", "deferral", "threshold", "router", "provenance", "sha256"}


@dataclass(frozen=True)
class Bundle:
    """A trained classifier with its semantic subgraphs; see :class:`sinf.SemanticModel` for running it."""

    spec: ModelSpec
    class_names: tuple[str, ...]
    clusters: Clusters
    cut: str
    deferral: Deferral
    threshold: Threshold | None
    parts: dict[str, Part]
    base_state: dict[str, Tensor]
    router: RoutePredictor
    router_config: RouterConfig
    provenance: dict[str, str]
    times: tuple[TailTimes, ...] = ()

    def times_of(self, engine: str, precision: str, threads: int) -> TailTimes | None:
        """What tails cost in an engine, as far as it was measured."""
        return next((each for each in self.times if each.setting == (engine, precision, threads)), None)

    def network(self) -> Network:
        """The base model taken apart, with this bundle's weights (not copied)."""
        with torch.device("meta"):
            module = load_spec(self.spec)
        module.load_state_dict(self.base_state, strict=True, assign=True)
        for name, buffer in module.named_buffers():
            if buffer.is_meta:
                raise BundleError("every buffer of the model must be in its weights", got=name)
        return Network(trace(module.requires_grad_(False), self.spec.preprocessing), self.cut)

    # ---- saving

    def save(self, folder: str | Path) -> None:
        """Write the bundle; an existing bundle in ``folder`` is replaced, anything else is refused.

        Raises:
            BundleError: the folder holds something else, or cannot be written; what was there stays.
        """
        replace_bundle(Path(folder), self._write)

    def _write(self, folder: Path) -> None:
        network_coupling = self.network().coupling
        tensors: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            tensors |= part.to_tensors(network_coupling, f"{name}.")
        if not tensors:
            tensors = {"common.kept.none": torch.zeros(0, dtype=torch.int32)}
        write_tensors(self.base_state, folder / "model.safetensors")
        write_tensors(tensors, folder / "subgraphs.safetensors")
        write_tensors(self.router.state_dict(), folder / "router.safetensors")
        (folder / "README.md").write_text(self._card())
        if self.times:
            write_times(self.times, folder)
        config = {
            "sinf_format": FORMAT,
            "model": self.spec.to_json(),
            "classes": list(self.class_names),
            "clusters": {n: list(m) for n, m in zip(self.clusters.names, self.clusters.members, strict=True)},
            "cut": self.cut,
            "deferral": asdict(self.deferral),
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "router": asdict(self.router_config),
            "provenance": self.provenance,
            "sha256": {name: sha256(folder / name) for name in _FILES},
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def _card(self) -> str:
        lines = ["---", "library_name: sinf", "pipeline_tag: image-classification", "---", ""]
        lines += [f"# {self.spec.name}, semantic inference", ""]
        lines += [
            f"{len(self.class_names)} classes in {len(self.clusters)} semantic clusters; cut after `{self.cut}`.",
            "",
        ]
        if self.threshold is not None:
            t = self.threshold
            lines += [
                "| on the calibration images | |",
                "|---|---|",
                f"| loss against the base model | {100 * t.loss:.2f} points (limit {100 * t.max_loss:g}) |",
                f"| a subgraph runs | {100 * t.tried:.1f} % |",
                f"| fallback to the full tail | {100 * t.fallback:.1f} % |",
                "",
                t.promise(),
                "",
            ]
        lines += [f"- {key}: {value}" for key, value in sorted(self.provenance.items())]
        lines += [f"- machine: {platform.machine()}, torch {torch.__version__}", ""]
        lines += ["```python", "from sinf import SemanticModel", "", 'model = SemanticModel.from_pretrained("FOLDER")']
        lines += ["logits = model(images)  # (B, classes)", "```", ""]
        return "\n".join(lines)

    # ---- loading

    @staticmethod
    def load(folder: str | Path, *, allow_factory: bool = False) -> Bundle:
        """Read a bundle; tensors are memory-mapped.

        ``allow_factory`` permits a model of the user's own code (``package.module:factory``), which is imported and
        run.

        Raises:
            BundleError: not a bundle, another format, or a file that is missing, damaged or changed.
        """
        folder = Path(folder)
        config = read_config(folder, _NEEDED)
        check_files(folder, config, _FILES)
        try:
            spec = ModelSpec.from_json(config["model"])
            check_origin(spec, allow_factory)
            router_config = RouterConfig(**config["router"])
            clusters = Clusters(tuple(config["clusters"]), tuple(tuple(m) for m in config["clusters"].values()))
            bundle = Bundle(
                spec=spec,
                class_names=tuple(config["classes"]),
                clusters=clusters,
                cut=config["cut"],
                deferral=Deferral(**config["deferral"]),
                threshold=None if config["threshold"] is None else Threshold(**config["threshold"]),
                parts={},
                base_state=map_tensors(folder / "model.safetensors"),
                router=RoutePredictor((1, 1, 1), len(clusters), router_config),
                router_config=router_config,
                provenance=config["provenance"],
                times=read_times(folder),
            )
            return bundle._with_parts(folder)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise BundleError(
                f"the bundle in {folder} contradicts itself", got=error, remedy="build it again"
            ) from error

    def _with_parts(self, folder: Path) -> Bundle:
        network = self.network()
        tensors = map_tensors(folder / "subgraphs.safetensors")
        names = ["common", "fallback", *(part_name(cluster) for cluster in range(len(self.clusters)))]
        by_part: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key, tensor in tensors.items():
            name, _, rest = key.partition(".")
            if rest != "kept.none":
                by_part[name][rest] = tensor
        parts = {name: Part.from_tensors(part, network.coupling, "") for name, part in by_part.items()}
        router = RoutePredictor(network.feature_shape(parts["common"]), len(self.clusters), self.router_config)
        router.load_state_dict(map_tensors(folder / "router.safetensors"))
        return replace(self, parts=parts, router=router.eval().requires_grad_(False))


def read_times(folder: Path) -> tuple[TailTimes, ...]:
    """What ``sinf tune`` has measured; nothing where it has not."""
    path = folder / _TIMES
    if not path.is_file():
        return ()
    try:
        return tuple(TailTimes.from_json(each) for each in json.loads(path.read_text())["tails"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{path} must be as sinf tune writes it", got=error, remedy="remove it, or tune again"
        ) from error


def replace_times(folder: Path, new: TailTimes) -> None:
    """Store what was measured in a bundle, in the place of earlier times of the same setting."""
    kept = (each for each in read_times(folder) if each.setting != new.setting)
    write_times((*kept, new), folder)


def write_times(times: tuple[TailTimes, ...], folder: Path) -> None:
    """Put what was measured beside the rest of a bundle."""
    write_json({"tails": [asdict(each) for each in times]}, folder / _TIMES)


def folder_of(source: str | Path) -> Path:
    """The folder of a bundle, from the hub when there is no such folder here."""
    folder = Path(source)
    if not folder.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(source)))
        except Exception as error:  # the hub client raises many types for "cannot be had"
            raise DataError(f"no bundle {source}, in a folder or on the hub", got=type(error).__name__) from error
    return folder


def check_files(folder: Path, config: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse a bundle whose files are not those that were written."""
    for name in names:
        path = folder / name
        if not path.is_file():
            raise BundleError("a bundle must be whole", got=f"{name} is missing in {folder}", remedy="copy it again")
        if sha256(path) != config["sha256"].get(name):
            raise BundleError(
                "a bundle must be as it was written",
                got=f"{name} in {folder} is damaged or was changed",
                remedy="copy or build it again",
            )


def read_config(folder: Path, needed: set[str], method: str = "semantic") -> dict[str, Any]:
    """The ``config.json`` of a bundle of this method; one without a method is semantic."""
    path = folder / "config.json"
    if not path.is_file():
        raise BundleError("a bundle must be a folder with a config.json", got=folder, remedy="name the bundle's folder")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} must be JSON", got=error, remedy="copy or build the bundle again") from error
    if isinstance(config, dict) and config.get("format") == PLAIN_FORMAT:
        raise BundleError(
            "a bundle must have been written by sinf build",
            got=f"{folder}, a pruned model",
            remedy="give it as MODEL to sinf build, or load it with its load.py",
        )
    if not isinstance(config, dict) or "sinf_format" not in config:
        raise BundleError("a bundle must have been written by sinf", got=f"{path} of something else")
    if config["sinf_format"] != FORMAT:
        raise BundleError(
            f"this version of sinf reads format {FORMAT}",
            got=config["sinf_format"],
            remedy="install the version that wrote it",
        )
    found = config.get("method", "semantic")
    if found != method:
        remedy = "open it with sinf.from_pretrained"
        raise BundleError(f"a bundle of the method {method} is needed", got=f"one of the method {found}", remedy=remedy)
    missing = needed - config.keys()
    if missing or not isinstance(config["sha256"], dict):
        raise BundleError(f"{path} is incomplete", got=", ".join(sorted(missing)) or "sha256", remedy="build it again")
    return config


def check_origin(spec: ModelSpec, allow_factory: bool) -> None:
    known = spec.name in REFERENCE_NAMES or spec.name.startswith(_LIBRARIES)
    if not known and not allow_factory:
        raise BundleError(
            "a bundle with a model of your own code runs that code",
            got=spec.name,
            remedy="pass allow_factory=True (--allow-factory) if you trust it",
        )


def is_bundle(folder: Path) -> bool:
    try:
        return "sinf_format" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def map_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)


def require_place(folder: Path) -> None:
    """Refuse a folder that holds anything but a bundle."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_bundle(folder))):
        raise BundleError("only a bundle may be replaced", got=f"{folder} holds other files", remedy="name another")


def replace_bundle(folder: Path, write: Callable[[Path], None]) -> None:
    """Put what ``write`` writes in the place of a bundle, or of nothing; :meth:`Bundle.save` says what it raises."""
    require_place(folder)
    try:
        with replacing_folder(folder) as partial:
            write(partial)
    except StorageError as error:
        raise BundleError(
            f"the bundle cannot be written to {folder}",
            got=error.got,
            remedy="free space or name a writable folder; what was there is unchanged",
        ) from error
