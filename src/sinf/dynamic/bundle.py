"""What is saved and loaded of a dynamically pruned network: a folder like that of semantic inference.

config.json          format, method, model, classes, gates, sites, provenance, sha256s
model.safetensors    the base model's weights
dynamic.safetensors  weights and gates as they were trained together, thresholds included
README.md            a model card
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sinf.bundle import FORMAT, check_files, check_origin, map_tensors, read_config, replace_bundle
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.errors import BundleError
from sinf.files import sha256, write_tensors
from sinf.models import BaseModel, ModelSpec, load_spec

_FILES = ("model.safetensors", "dynamic.safetensors", "README.md")
_NEEDED = {"model", "classes", "gates", "sites", "provenance", "sha256"}


@dataclass(frozen=True)
class DynamicBundle:
    """A trained classifier with gates; see :class:`sinf.dynamic.model.DynamicModel` for running it.

    ``state`` are the tensors of a :class:`GatedNetwork` whose gates stand at ``sites``.
    """

    spec: ModelSpec
    class_names: tuple[str, ...]
    gates: GateConfig
    sites: tuple[str, ...]
    base_state: dict[str, Tensor]
    state: dict[str, Tensor]
    provenance: dict[str, str]

    @staticmethod
    def of(
        network: GatedNetwork,
        spec: ModelSpec,
        base_state: dict[str, Tensor],
        class_names: list[str],
        provenance: dict[str, str],
    ) -> DynamicBundle:
        """A trained network, and the weights that its training started from."""
        state = {key: value.detach().clone() for key, value in network.state_dict().items()}
        sites = tuple(site.name for site in network.sites)
        return DynamicBundle(spec, tuple(class_names), network.config, sites, base_state, state, provenance)

    def network(self) -> GatedNetwork:
        """The trained network with its gates, in eval mode; its tensors are a copy."""
        network = attach(BaseModel(load_spec(self.spec), self.spec), self.gates)
        found = tuple(site.name for site in network.sites)
        if found != self.sites:
            got = f"{len(found)} sites instead of {len(self.sites)}"
            raise BundleError("gates must stand where they were trained", got=got, remedy="install the same versions")
        network.load_state_dict(self.state)
        return network.requires_grad_(False).eval()

    def base(self) -> BaseModel:
        """The base model, as it was before gates were trained."""
        module = load_spec(self.spec)
        module.load_state_dict(self.base_state)
        return BaseModel(module.requires_grad_(False).eval(), self.spec)

    def save(self, folder: str | Path) -> None:
        """Write the bundle; an existing bundle in ``folder`` is replaced, anything else is refused.

        Raises:
            BundleError: the folder holds something else, or cannot be written; what was there stays.
        """
        replace_bundle(Path(folder), self._write)

    def _write(self, folder: Path) -> None:
        write_tensors(self.base_state, folder / "model.safetensors")
        write_tensors(self.state, folder / "dynamic.safetensors")
        (folder / "README.md").write_text(self._card())
        config = {
            "sinf_format": FORMAT,
            "method": "dynamic",
            "model": self.spec.to_json(),
            "classes": list(self.class_names),
            "gates": asdict(self.gates),
            "sites": list(self.sites),
            "provenance": self.provenance,
            "sha256": {name: sha256(folder / name) for name in _FILES},
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def _card(self) -> str:
        lines = ["---", "library_name: sinf", "pipeline_tag: image-classification", "---", ""]
        lines += [f"# {self.spec.name}, dynamic pruning", ""]
        lines += [
            f"{len(self.class_names)} classes; {len(self.sites)} convolutions with gates ({self.gates.kind}).",
            "",
        ]
        lines += [f"- {key}: {value}" for key, value in sorted(self.provenance.items())]
        lines += [f"- machine: {platform.machine()}, torch {torch.__version__}", ""]
        lines += ["```python", "import sinf", "", 'model = sinf.from_pretrained("FOLDER")']
        lines += ["logits = model(images)  # (B, classes)", "```", ""]
        return "\n".join(lines)

    @staticmethod
    def load(folder: str | Path, *, allow_factory: bool = False) -> DynamicBundle:
        """Read a bundle; tensors are memory-mapped.

        Raises:
            BundleError: not a dynamic bundle, another format, or a file that is missing, damaged or changed.
        """
        folder = Path(folder)
        config = read_config(folder, _NEEDED, "dynamic")
        check_files(folder, config, _FILES)
        try:
            spec = ModelSpec.from_json(config["model"])
            check_origin(spec, allow_factory)
            gates = dict(config["gates"])
            gates["sites"] = None if gates["sites"] is None else tuple(gates["sites"])
            return DynamicBundle(
                spec=spec,
                class_names=tuple(config["classes"]),
                gates=GateConfig(**gates),
                sites=tuple(config["sites"]),
                base_state=map_tensors(folder / "model.safetensors"),
                state=map_tensors(folder / "dynamic.safetensors"),
                provenance=config["provenance"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the bundle in {folder} contradicts itself", got=error, remedy="train it again"
            ) from error
