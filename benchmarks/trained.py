"""How a training of `sinf train` went, epoch by epoch, and what it came to.

    python benchmarks/trained.py vgg19 RUN CIFAR100 --on "test[:20%]" --start vgg16

RUN is the folder of the training. A row of ``what`` epoch is one of RUN/epochs.csv, with the accuracy on the images
that it was told to look at (``on``: nothing was chosen by them). The row ``weights`` is RUN/model.safetensors, or with
``--half`` what is nearly the same in half the bytes: its accuracy on the whole test split, and its hash.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import torch
import typer
from table import Table

from sinf import load_images, load_model
from sinf.storage.files import sha256
from sinf.training.loop import top1_of

COLUMNS = (
    "model", "dataset", "what", "epoch", "epochs", "loss", "top1", "on", "seconds", "start", "name", "sha256",
    "device", "date", "versions",
)  # fmt: skip


def main(
    name: str,
    run: Path,
    data: Path,
    on: Annotated[str, typer.Option(help="What --validation was in the training.")],
    start: Annotated[str, typer.Option(help="Whose weights it started from.")] = "",
    half: Annotated[bool, typer.Option(help="Of model-half.safetensors.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        f"trained_{name}_cifar100.csv", COLUMNS, ("what", "epoch"), model=name, dataset="cifar100", start=start
    )
    with (run / "epochs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            table.add(what="epoch", on=on, **row)
    weights = run / ("model-half.safetensors" if half else "model.safetensors")
    if weights.exists():  # otherwise it is not at its end
        base = load_model(name, weights=weights)
        top1 = top1_of(base.module, load_images(data, "test"), base.spec.preprocessing)
        print(table.add(what="weights", top1=top1, on="test", name=weights.name, sha256=sha256(weights)))
    table.forget_older()


if __name__ == "__main__":
    typer.run(main)
