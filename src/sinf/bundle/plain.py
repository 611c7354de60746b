"""A smaller network for all classes, as ``sinf prune`` makes it: a module of torch, and the folder that holds it.

The folder needs torch and safetensors to be loaded, and nothing of sinf (see :mod:`sinf.models.plain`):

    config.json         format, method, classes, what was measured, provenance, sha256 of the others, the model (layers
                        and steps as data, what it is fed), digest
    model.safetensors   the tensors; names are those that they had in the base model
    load.py             the loader
    README.md           a model card
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinf.bundle import writing
from sinf.bundle.classifier import Classifier
from sinf.bundle.folder import folder_of
from sinf.data.images import Preprocessing
from sinf.errors import ModelError, VerificationError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.models import BaseModel, ModelSpec, plain
from sinf.models.described import difference, of_graph
from sinf.models.load import PLAIN, PlainConfig, read_plain
from sinf.storage.config import read_card, require_readable

_SAMPLES, _CLOSE = 4, 1e-3


class PlainModel(Classifier, nn.Module):
    """``(B, C, H, W)`` normalised images -> ``(B, classes)`` logits, by one network for all classes.

    ``provenance`` says how it was made, ``measured`` what was measured of it, ``card`` is the text of its model card.
    """

    def __init__(
        self,
        model: BaseModel,
        class_names: list[str] | tuple[str, ...],
        *,
        provenance: dict[str, str] | None = None,
        measured: dict[str, Any] | None = None,
        card: str | None = None,
    ) -> None:
        super().__init__()
        if not model.spec.name.startswith(PLAIN):
            raise ModelError("a plain model describes itself", got=model.spec.name, remedy="make it with sinf.prune")
        if len(class_names) != model.spec.classes:
            got = f"{len(class_names)} names of {model.spec.classes} classes"
            raise ModelError("every class must have a name", got=got, remedy="give those of the images")
        self.network = model.module
        self.spec: ModelSpec = model.spec
        self.provenance, self.measured = provenance or {}, measured
        self.card = card or card_of(model.spec, self.provenance)
        self._names = tuple(class_names)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, allow_factory: bool = False, key: bytes | None = None
    ) -> PlainModel:
        """Load a folder, or from the hub when there is no such folder. Nothing that lies in the folder is run. With a
        ``key``, what is not signed with it is refused; ``allow_factory`` changes nothing, a plain model needs none.

        Raises:
            ModelError: there is no plain model, or a damaged one.
        """
        folder = folder_of(source)
        read = read_plain(folder, key)
        return cls(
            read.model, read.class_names, provenance=read.provenance, measured=read.measured, card=read_card(folder)
        )

    def save_pretrained(self, folder: str | Path, *, key: bytes | None = None) -> None:
        """Write the folder; a bundle that is there is replaced, anything else is refused. With a ``key`` (16 bytes at
        least) it is signed.

        Raises:
            BundleError: the folder holds something else, or cannot be written; what was there stays.
        """

        def finish(partial: Path, written: dict[str, Any]) -> None:
            # Both sinf and load.py can read it, or the old folder stays.
            require_readable(written, PlainConfig)
            plain.load(partial)

        payload = writing.Payload(
            plain.METHOD, self.spec, self._names, self.provenance, {"measured": self.measured},
            {plain.WEIGHTS: self.network.state_dict()}, self.card, finish, {"load.py": Path(plain.__file__)},
        )  # fmt: skip
        writing.write_folder(Path(folder), payload, key)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._names

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    def base_model(self) -> BaseModel:
        return BaseModel(self.network, self.spec)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def _answer(self, images: Tensor) -> tuple[Tensor, None]:
        return self(images), None


@torch.no_grad()
def deployed(model: BaseModel, *, keep_batch_norm: bool = False) -> BaseModel:
    """A network as a plain model that is laid out for running: weights in the order of channels_last, and batch norms
    in the convolutions before them, unless ``keep_batch_norm``. It is what :func:`sinf.graph.prepare.prepare` makes
    for a timing; who trains on needs the batch norms.

    Raises:
        ModelError: the model cannot be described plainly; the message names what is in the way.
        VerificationError: it does not answer as the model does.
    """
    graph = trace(model.module, model.spec.preprocessing)
    made = of_graph(graph if keep_batch_norm else prepare(graph), model.spec)
    made.module.to(memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(_SAMPLES, *made.spec.preprocessing.size, generator=draw)
    apart = difference(model.module(x.clone()), made.module(x.clone()))
    if not apart <= _CLOSE:
        raise VerificationError(
            "what is saved must answer as the network does",
            got=f"a relative difference of {apart:.2g}",
            remedy="report it with the model's name",
        )
    return made


def has_batch_norms(module: nn.Module) -> bool:
    """Whether there are batch norms of torch, which training needs."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def card_of(spec: ModelSpec, provenance: dict[str, str], table: list[str] | None = None) -> str:
    """The text of a model card; ``table`` are its lines about what was measured."""
    usage = [
        "```python",
        "import sinf",
        "",
        'model = sinf.from_pretrained("FOLDER")  # runs nothing that lies in the folder',
        'model.predict(["image.png"])[0].classes  # the most likely ones; model(model.preprocess(paths)) for logits',
        "```",
        "",
        "Without sinf, with torch and safetensors alone:",
        "",
        "```python",
        "from load import load",
        "",
        'model = load("FOLDER")  # as it was timed: weights in the order of channels_last, no gradients',
        "logits = model(images)  # (B, C, H, W), prepared as above -> (B, classes)",
        "```",
        "",
        "Importing a `load.py` that you downloaded runs its code, whatever it is by then. With sinf installed,",
        '`sinf.load_model("FOLDER").module` is the same network, and nothing in the folder is run.',
    ]
    return writing.card_of(f"{spec.title}, pruned", table or [], provenance, spec, usage)
