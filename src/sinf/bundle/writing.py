"""How the folder of a model is written, by whichever method it was made: tensors, a model card and ``config.json`` with
hashes, digest and signature; whole or not at all, and only in the place of nothing or of another one."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf.bundle.folder import require_place
from sinf.errors import BundleError, StorageError
from sinf.models import ModelSpec
from sinf.storage.config import CARD, CONFIG, FORMAT
from sinf.storage.files import replacing_folder, sha256, write_tensors
from sinf.storage.seal import sealed


@dataclass(frozen=True)
class Payload:
    """What one method stores.

    Attributes:
        method: its name.
        spec: the base model's.
        class_names: of the classes.
        provenance: how it was made.
        content: what ``config.json`` says besides.
        tensors: by the name of their file.
        card: the text of the model card.
        finish: called with the folder and its config when all is written; what it raises keeps the old folder.
        copies: further files, by their name in the folder, whose hashes are not kept.
    """

    method: str
    spec: ModelSpec
    class_names: tuple[str, ...]
    provenance: dict[str, str]
    content: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    card: str
    finish: Callable[[Path, dict[str, Any]], object]
    copies: dict[str, Path] = field(default_factory=dict)

    def config(self, hashes: dict[str, str]) -> dict[str, Any]:
        """``config.json`` without its seal; the model comes last, because its description may be long."""
        return {
            "sinf_format": FORMAT,
            "method": self.method,
            "classes": list(self.class_names),
            **self.content,
            "provenance": self.provenance,
            "sha256": hashes,
            "model": self.spec.to_json(),
        }


def write_folder(folder: Path, payload: Payload, key: bytes | None = None) -> None:
    """Write a folder, signed where there is a key (16 bytes at least); a bundle that is there is replaced.

    Raises:
        BundleError: the folder holds something else, or cannot be written; what was there stays.
    """
    require_place(folder)
    try:
        with replacing_folder(folder) as partial:
            for name, tensors in payload.tensors.items():
                write_tensors(tensors, partial / name)
            for name, source in payload.copies.items():
                shutil.copyfile(source, partial / name)
            (partial / CARD).write_text(payload.card)
            config = payload.config({name: sha256(partial / name) for name in (*payload.tensors, CARD)})
            (partial / CONFIG).write_text(json.dumps(sealed(config, key), indent=1) + "\n")
            payload.finish(partial, config)
    except StorageError as error:
        raise BundleError(
            f"the bundle cannot be written to {folder}",
            got=error.got,
            remedy="free space or name a writable folder; what was there is unchanged",
        ) from error


def card_of(title: str, body: list[str], facts: Mapping[str, Any], spec: ModelSpec, usage: list[str]) -> str:
    """The text of a model card, with the front matter that the hub reads."""
    lines = ["---", "library_name: sinf", "pipeline_tag: image-classification", "---", "", f"# {title}", ""]
    lines += [*body, *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join([*lines, f"- images: {spec.preprocessing.describe()}", "", *usage, ""])


def bundle_card(method: str, body: list[str], provenance: dict[str, str], spec: ModelSpec) -> str:
    """The text of a bundle's card."""
    facts = dict(sorted(provenance.items())) | {"machine": f"{platform.machine()}, torch {torch.__version__}"}
    usage = ["```python", "import sinf", "", 'model = sinf.from_pretrained("FOLDER")']
    usage += ["logits = model(model.preprocess(paths))  # (B, classes)", "```"]
    return card_of(f"{spec.title}, {method}", body, facts, spec, usage)
