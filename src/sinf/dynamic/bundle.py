"""What is saved and loaded of a dynamically pruned network: a folder like that of semantic inference.

config.json          format, method, classes, gates, sites, provenance, sha256 of the others, model, digest
model.safetensors    the base model's weights
dynamic.safetensors  weights and gates as they were trained together, thresholds included
README.md            a model card
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sinf.bundle.folder import consistent, map_tensors, require_fit, spec_of
from sinf.bundle.writing import Payload, bundle_card, write_folder
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.errors import BundleError, ConfigError
from sinf.models import BaseModel, ModelSpec, fit_state, load_spec
from sinf.storage.config import CARD, ConfigRecord, read_config, require_readable
from sinf.storage.schema import Name, record_of, shortened

_FILES = ("model.safetensors", "dynamic.safetensors", CARD)
_Sites = Annotated[tuple[Name, ...], Field(fail_fast=True, min_length=1, max_length=10_000)]


class _Config(ConfigRecord):
    method: str = "dynamic"
    gates: record_of(GateConfig, sites=_Sites | None)  # type: ignore[valid-type]
    sites: _Sites


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
        """The trained network with its gates, in eval mode; its tensors are a copy.

        Raises:
            BundleError: a method of somebody's own is not registered, or what the bundle says does not fit together.
        """
        with consistent(f"of {self.spec.name}"):
            _require_method(self.gates)
            network = attach(BaseModel(load_spec(self.spec, self.base_state), self.spec), self.gates)
            gated = tuple(site.name for site in network.sites)
            if gated != self.sites:
                got = f"{len(gated)} sites instead of {len(self.sites)}"
                raise BundleError(
                    "gates must stand where they were trained", got=got, remedy="install the same versions"
                )
            require_fit(self.state, network.state_dict(), "dynamic.safetensors")
            fit_state(network, self.state, "the gated network")
            for index, site in enumerate(network.sites):
                if (flaw := network.gate(index).flaw()) is not None:
                    got = f"{flaw} at {site.name}"
                    raise BundleError("a gate must be as a training leaves it", got=got, remedy="train it again")
            return network.requires_grad_(False).eval()

    def base(self) -> BaseModel:
        """The base model, as it was before gates were trained."""
        with consistent(f"of {self.spec.name}"):
            module = load_spec(self.spec, self.base_state)
            fit_state(module, self.base_state, self.spec.name)
        return BaseModel(module.requires_grad_(False).eval(), self.spec)

    def save(self, folder: str | Path, *, key: bytes | None = None) -> None:
        """Write the bundle; one that is there is replaced, anything else is refused. With a ``key`` (16 bytes at
        least) it is signed.

        Raises:
            BundleError: the folder holds something else, or cannot be written; what was there stays.
        """
        content = {"gates": asdict(self.gates), "sites": list(self.sites)}
        files = {"model.safetensors": self.base_state, "dynamic.safetensors": self.state}
        gates = f"{len(self.class_names)} classes; {len(self.sites)} convolutions with gates ({self.gates.kind})."
        card = bundle_card("dynamic pruning", [gates, ""], self.provenance, self.spec)
        payload = Payload(
            "dynamic", self.spec, self.class_names, self.provenance, content, files, card,
            lambda _, written: require_readable(written, _Config),
        )  # fmt: skip
        write_folder(Path(folder), payload, key)

    @staticmethod
    def load(folder: str | Path, *, allow_factory: bool = False, key: bytes | None = None) -> DynamicBundle:
        """Read a bundle; tensors are memory-mapped. The options are those of :meth:`sinf.bundle.semantic.Bundle.load`.

        Raises:
            BundleError: not a dynamic bundle, another format, or a file that is missing, damaged, changed or
                contradicts the others.
        """
        folder = Path(folder)
        config = read_config(folder, _Config, _FILES, key)
        with consistent(f"in {folder}"):
            spec = spec_of(config, allow_factory)
            bundle = DynamicBundle(
                spec=spec,
                class_names=config.classes,
                gates=config.gates,
                sites=config.sites,
                base_state=map_tensors(folder / "model.safetensors"),
                state=map_tensors(folder / "dynamic.safetensors"),
                provenance=config.provenance,
            )
            if not spec.is_factory:  # nothing is allocated before it is known that weights are there for it
                with torch.device("meta"):
                    require_fit(bundle.base_state, load_spec(spec).state_dict(), "model.safetensors")
            return bundle


def _require_method(gates: GateConfig) -> None:
    """Refuse gates of a method that is not registered: it may be somebody's own."""
    try:
        _ = gates.method
    except ConfigError as error:
        raise BundleError(
            f"in a bundle {error.rule}",
            got=shortened(error.got, 100),
            remedy="import the file that registers it, by sinf.dynamic.methods.register, before the bundle is opened",
        ) from error
