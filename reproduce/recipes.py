"""The paper's networks whose weights had to be trained here, and what is not there: python reproduce/recipes.py"""

from __future__ import annotations

from common import Row, Section, networks, read, table

#: What a recipe started from, in words.
STARTS = {
    "vgg16": "What VGG16 has starts from its weights, trained on the same images, and the last convolution of each of "
    "the three deeper blocks, with its norm, at random (`--start`): identities there would keep VGG16's answers from "
    "the first step on, and leave three layers that do nothing and cost nothing to remove",
}
INTRO = """Weights of VGG16 and ResNet-56 were there. The paper's other networks are trained by these commands, which go
on where they were stopped when they are given again:

```console
{commands}
```
"""
VGG19 = (
    "sinf train vgg19 --data CIFAR100 --start vgg16_cifar100.safetensors --epochs 5 --learning-rate 0.03 --average 0.3 "
    '--bf16 --threads 1 --validation "test[:20%]" --half --out runs/train/vgg19'
)
RESNET50 = "sinf train resnet50 --data CIFAR100 --epochs 15 --average 0.3 --bf16 --out runs/train/resnet50"
MISSING = """**What is not there, and why.** There are two cores, without an accelerator, for all trainings and all
measurements. {vgg19}ResNet50 is not trained: 15 epochs are about twelve hours of one core in bf16, 5 of VGG19 one hour.
With `--device cuda` both are minutes. What is trained and not measured lacks an idle machine, on which these commands
take about a day:

```console
{measure}
```
"""
BEGUN = "VGG19's training has begun and is not at its end. "
MEASURE = """python benchmarks/candidates.py vgg19 WEIGHTS CIFAR100 --work runs/vgg19
python benchmarks/headline.py vgg19 WEIGHTS CIFAR100 --work runs/vgg19
python benchmarks/tradeoff.py vgg19 WEIGHTS CIFAR100 --work runs/vgg19
python benchmarks/static.py vgg19 WEIGHTS CIFAR100 --work runs/static
python benchmarks/criteria.py vgg19 WEIGHTS CIFAR100 --minutes 240
python benchmarks/cuts.py vgg19 WEIGHTS CIFAR100
python reproduce/overlap.py vgg19 WEIGHTS CIFAR100
python reproduce/page.py"""


def log_of(name: str, rows: list[Row]) -> str:
    """One network: how it began, epoch by epoch, and its end if there is one."""
    epochs = [row for row in rows if row["what"] == "epoch"]
    ends = [row for row in rows if row["what"] == "weights"]
    lines = [
        [row["epoch"], f"{float(row['loss']):.3f}", f"{100 * float(row['top1']):.2f} %", f"{float(row['seconds']):.0f}"]
        for row in epochs
    ]
    first = epochs[0]
    began = STARTS.get(first["start"], "All layers start at random")
    text = f"**{name}**: {began}. "
    if ends:
        text += (
            f"After {first['epochs']} epochs {100 * float(ends[0]['top1']):.2f} % of the 10,000 test images are right "
            f"(`{ends[0]['name']}`, sha256 `{ends[0]['sha256'][:16]}...`). "
        )
    else:
        text += f"It has done epoch {epochs[-1]['epoch']} of {first['epochs']}. "
    text += f"Accuracy epoch by epoch is that of `{first['on']}`, by which nothing was chosen:"
    return text + "\n\n" + table(["epoch", "loss, training", "accuracy", "seconds"], lines)


def section() -> Section:
    parts = [INTRO.format(commands=f"{VGG19}\n{RESNET50}").rstrip()]
    parts += [log_of(name, read(f"trained_{name}_cifar100.csv")) for name in trained()]
    ended = any(row["what"] == "weights" for row in read("trained_vgg19_cifar100.csv"))
    parts.append(MISSING.format(vgg19="" if ended else BEGUN, measure=MEASURE).rstrip())
    return Section("The paper's networks, trained", "\n\n".join(parts))


def trained() -> list[str]:
    return [name.removesuffix("_cifar100") for name in networks("trained_")]


if __name__ == "__main__":
    print(section().text)
