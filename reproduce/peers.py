"""Our criteria and low rank beside the code that others published, on the same weights and images.

python reproduce/peers.py vgg16 WEIGHTS CIFAR100 CHECKOUTS    measures; nothing of the authors' code is part of this one
python reproduce/peers.py vgg16 WEIGHTS CIFAR100 CHECKOUTS low-rank    of the two parts, criteria and low-rank, one

CHECKOUTS holds lmbxmu/HRank, Eclipsess/CHIP_NeurIPS2021, he-y/filter-pruning-geometric-median, NVlabs/Taylor_pruning
and tvsprune/TVS_Prune, and davidgonmar/BALF for low rank, each in a folder named as the repository. Their functions are
taken from their scripts one at a time, because the scripts read arguments, data and a GPU when they are imported.
Criteria are compared on chains of convolutions, as VGGs. Low rank is of any network: fitted to as many train images as
the authors take, and reported on test[50%:].
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import RESULTS, Row, Section, networks, read, table

IMAGES = {"hrank": 20, "chip": 20, "tvs": 2000}  # maps are decomposed; means of classes
OTHERS = 400
#: Criterion of ours, whose code, and what it computes there.
PEERS = {
    "hrank": ("lmbxmu/HRank", "rank_generation.py, get_feature_hook"),
    "chip": ("Eclipsess/CHIP_NeurIPS2021", "calculate_ci.py, ci_score"),
    "taylor-squared": ("NVlabs/Taylor_pruning", "pruning_engine.py, add_criteria, method 22, an image at a time"),
    "fpgm": ("he-y/filter-pruning-geometric-median", "pruning_cifar10.py, get_filter_similar, half of a layer"),
    "tvs": ("tvsprune/TVS_Prune", "distpruning_cifar100_vgg16.py, get_features_diff and get_min_list"),
}
#: Criterion of ours, torch-pruning's importance, its options.
IN_TORCH_PRUNING = (
    ("l1", "MagnitudeImportance", {"p": 1}),
    ("l2", "MagnitudeImportance", {"p": 2}),
    ("fpgm", "FPGMImportance", {}),
    ("lamp", "LAMPImportance", {}),
    ("bn-scale", "BNScaleImportance", {}),
)
LOW_RANK = "low-rank"
BUDGETS = (1 / 1.5, 1 / 2, 1 / 4)  # of MACs: those of benchmarks/static.py
FITTED = 1024  # images, as their script for CIFAR takes
COLUMNS = ("model", "dataset", "criterion", "code", "part", "images", "layers", "rank_correlation",
           "rank_correlation_least", "same_half", "same_half_least", "budget", "macs_saved", "base_top1", "top1",
           "loss", "date", "versions")  # fmt: skip


def functions(path: Path, *names: str, without: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """Functions and classes of a script, by name, in a space of their own; texts that it is read ``without`` are what
    only a GPU has."""
    import numpy as np
    import torch

    text = path.read_text().replace("async=True", "non_blocking=True")  # a keyword since Python 3.7
    for each in without:
        text = text.replace(each, "")
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds) and node.name in names]
    space = {"np": np, "torch": torch, **given}
    exec(compile(ast.Module(list({node.name: node for node in found}.values()), []), str(path), "exec"), space)
    return space


def measure(name: str, weights: str, data: str, checkouts: str, *only: str) -> None:
    """Write the rows of both parts, or of one."""
    sys.path.insert(0, str(RESULTS.parent))
    from table import Table

    rows = Table(f"peers_{name}.csv", COLUMNS, ("criterion", "code", "budget"), model=name, dataset="cifar100")
    for part, measured in (("criteria", criteria), (LOW_RANK, low_rank)):
        if part in (only or (part,)):
            measured(rows, name, weights, data, Path(checkouts))


def low_rank(rows: Any, name: str, weights: str, data: str, checkouts: Path) -> None:
    import balf
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sinf import load_images, load_model
    from sinf.measure.delivery import answers_of

    base = load_model(name, weights=weights)
    fed, test = base.spec.preprocessing, load_images(data, "test[50%:]")
    train = load_images(data, "train").sample(FITTED)

    def macs(model: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *fed.size))
        return counter.get_total_flops() // 2

    def right(model: Any) -> float:
        return float((answers_of(model, test, fed) == test.labels).double().mean())

    whole, before = macs(base.module), right(base.module)
    theirs = balf.on_processor(functions, checkouts / balf.CODE.split("/")[1])
    models = balf.factored(theirs, base.module, (x for x, _ in train.batches(fed)), BUDGETS)
    for budget, model in zip(BUDGETS, models, strict=True):
        after = right(model)
        row = rows.add(
            criterion=LOW_RANK, code=balf.CODE, part=balf.PART, images=len(train), budget=budget,
            macs_saved=1 - macs(model) / whole, base_top1=before, top1=after, loss=100 * (before - after),
        )  # fmt: skip
        print({key: row[key] for key in ("code", "budget", "macs_saved", "loss")}, flush=True)


def criteria(rows: Any, name: str, weights: str, data: str, checkouts: Path) -> None:
    import torch
    from scipy.stats import spearmanr

    from sinf import load_images, load_model
    from sinf.compress.channels import importances
    from sinf.criteria import make_criterion
    from sinf.graph.network import PartedNetwork
    from sinf.graph.trace import trace
    from sinf.statistics import collect

    torch.set_num_threads(1)
    base = load_model(name, weights=weights)
    network = PartedNetwork(trace(base.module, base.spec.preprocessing))
    train = load_images(data, "train")
    groups = [group for group in network.groups_free() if len(group.producers) == 1]
    jobs: list[tuple] = [(criterion, *PEERS[criterion]) for criterion in PEERS]
    for criterion, code, *part in [*jobs, *((c, "VainF/Torch-Pruning", *rest) for c, *rest in IN_TORCH_PRUNING)]:
        rule, images = make_criterion(criterion), train.sample(IMAGES.get(criterion, OTHERS))
        x, y = next(images.batches(base.spec.preprocessing, len(images)))
        found = collect(
            network.graph, network.coupling, list(zip(x.split(20), y.split(20), strict=True)),
            classes=base.spec.classes, needs=rule.needs,
        )  # fmt: skip
        mine = importances(rule, network.graph, network.coupling, groups, found)
        if len(part) == 1:
            theirs = authors(criterion, checkouts, network, groups, x, y)
        else:
            theirs = by_torch_pruning(*part, base, groups)
        pairs = [(mine[group.name], other) for group, other in zip(groups, theirs, strict=True)]
        halves = [same_half(a, b) for a, b in pairs]
        ranks = [float(spearmanr(a, b).statistic) for a, b in pairs if len(b.unique()) > 2]  # a choice has no ranks
        row = rows.add(
            criterion=criterion, code=code, part=part[0], images=len(images) if rule.needs else 0,
            layers=len(pairs), rank_correlation=sum(ranks) / len(ranks) if ranks else "",
            rank_correlation_least=min(ranks, default=""), same_half=sum(halves) / len(halves),
            same_half_least=min(halves),
        )  # fmt: skip
        print({key: row[key] for key in ("criterion", "code", "rank_correlation", "same_half")}, flush=True)


def same_half(mine: Any, theirs: Any) -> float:
    """Of the half that one keeps, the share that the other keeps too."""
    kept = len(mine) // 2
    return len({*mine.topk(kept).indices.tolist()} & {*theirs.topk(kept).indices.tolist()}) / kept


def authors(criterion: str, folder: Path, network: Any, groups: list[Any], x: Any, y: Any) -> list[Any]:
    """Their scores (U,) of every group's channels, by their own functions."""
    import torch

    graph = network.graph
    convs = [group.producers[0] for group in groups]
    maps = after_activation(graph, convs)
    file = folder / PEERS[criterion][0].split("/")[1] / PEERS[criterion][1].split(",")[0]
    if criterion == "fpgm":
        return [fpgm(file, graph.get_submodule(conv).weight.detach()) for conv in convs]
    if criterion == "taylor-squared":
        return taylor(file, graph, maps, x, y)
    seen: dict[str, Any] = {}

    def watch(conv: str, relu: str) -> Any:
        def hook(module: Any, args: Any, made: Any) -> None:
            seen[conv] = (args[0] if criterion == "tvs" else made).detach().clone()

        return graph.get_submodule(relu).register_forward_hook(hook)

    handles = [watch(conv, relu) for conv, relu in maps.items()]
    with torch.no_grad():
        graph(x)
    for handle in handles:
        handle.remove()
    if criterion == "tvs":
        return tvs(file, [seen[conv] for conv in convs], y)
    score = {"hrank": hrank, "chip": chip}[criterion]
    return [score(file, seen[conv]) for conv in convs]


def after_activation(graph: Any, convs: list[str]) -> dict[str, str]:
    """The ReLU that follows each convolution."""
    import torch

    order = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    relus = [target for target in order if isinstance(graph.get_submodule(target), torch.nn.ReLU)]
    return {conv: next(r for r in relus if order.index(r) > order.index(conv)) for conv in convs}


def hrank(file: Path, maps: Any) -> Any:
    import torch

    theirs = SimpleNamespace(**(vars(torch) | {"matrix_rank": torch.linalg.matrix_rank}))  # its old name
    space = functions(file, "get_feature_hook", torch=theirs, feature_result=torch.tensor(0.0), total=torch.tensor(0.0))
    space["get_feature_hook"](None, None, maps)
    return space["feature_result"]


def chip(file: Path, maps: Any) -> Any:
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/maps.npy", maps.numpy())
        return torch.from_numpy(
            functions(file, "reduced_1_row_norm", "ci_score")["ci_score"](f"{folder}/maps.npy").mean(0)
        )


def fpgm(file: Path, weight: Any) -> Any:
    """1 where a filter stays when half of them go, 0 elsewhere: their code chooses, and gives no score."""
    import torch
    from scipy.spatial import distance

    here = SimpleNamespace(**(vars(torch) | {"LongTensor": lambda rows: OnCPU(torch.as_tensor(rows))}))
    space = functions(file, "get_filter_similar", torch=here, distance=distance, print=lambda *_: None)
    mask = space["get_filter_similar"](None, weight, 1, 0.5, weight.numel())
    return torch.from_numpy(mask.reshape(len(weight), -1)[:, 0])


class OnCPU:
    """An index that stays where it is when it is asked to a GPU."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def cuda(self) -> Any:
        return self.index


def taylor(file: Path, graph: Any, maps: dict[str, str], x: Any, y: Any) -> list[Any]:
    """Gates of ones on what ReLUs make, and one call of theirs an image."""
    import torch

    add = functions(file, "add_criteria")["add_criteria"]
    gates = [torch.ones(graph.get_submodule(conv).out_channels, requires_grad=True) for conv in maps]
    handles = [
        graph.get_submodule(relu).register_forward_hook(lambda m, i, out, gate=gate: out * gate[:, None, None])
        for relu, gate in zip(maps.values(), gates, strict=True)
    ]
    engine = SimpleNamespace(
        fixed_criteria=False, prune_layers=[True] * len(gates), parameters=gates, pruning_mask_from="", method=22,
        iterations_done=0, prune_network_accomulate={"by_layer": [None] * len(gates)},
    )  # fmt: skip
    for image, label in zip(x, y, strict=True):
        for gate in gates:
            gate.grad = None
        torch.nn.functional.cross_entropy(graph(image[None]), label[None]).backward()
        add(engine)
    for handle in handles:
        handle.remove()
    return engine.prune_network_accomulate["by_layer"]


def tvs(file: Path, maps: list[Any], y: Any) -> list[Any]:
    """By class, their mean feature maps, which they take after the norm."""
    import torch

    space = functions(file, "get_features_diff", "get_min_list")
    classes = y.unique().tolist()
    means = [m[y == c].mean(0).flatten(1).numpy() for m in maps for c in classes]
    diff = space["get_features_diff"](len(maps), len(classes), means, None)
    return [torch.tensor(scores) for scores in space["get_min_list"](len(maps), len(classes), diff)]


def by_torch_pruning(kind: str, options: dict[str, Any], base: Any, groups: list[Any]) -> list[Any]:
    import torch
    import torch_pruning as tp

    example = torch.zeros(1, *base.spec.preprocessing.size)
    known = tp.DependencyGraph().build_dependency(base.module, example)
    score: Callable = getattr(tp.importance, kind)(**options)
    scores = []
    for group in groups:
        conv = base.module.get_submodule(group.producers[0])
        theirs = known.get_pruning_group(conv, tp.prune_conv_out_channels, idxs=list(range(conv.out_channels)))
        scores.append(score(theirs).detach())
    return scores


def section() -> Section:
    parts = [
        "The published code of a criterion, run on the same weights and images layer by layer: the rank correlation of "
        "its scores with ours, and how much of the half that it would keep ours keeps too. Torch-Pruning's importances "
        "count the weights of the layers that read a channel as well, ours those that make it alone; TVSPrune's code "
        "measures distances of mean feature maps, ours the separation of its paper."
    ]
    for name in networks("peers_"):
        found = read(f"peers_{name}.csv")
        lines = [
            [row["criterion"], row["code"], row["part"], row["images"], *(
                f"{float(row[key]):.3f}" if row[key] else "" for key in ("rank_correlation", "rank_correlation_least")
            ), *(f"{100 * float(row[key]):.0f} %" for key in ("same_half", "same_half_least"))]
            for row in found if row["criterion"] != LOW_RANK
        ]  # fmt: skip
        head = ["criterion", "code", "part", "images", "rank correlation", "least", "same half", "least"]
        parts += [f"{name}:", table(head, lines)] if lines else []
        parts += beside_low_rank(name, [row for row in found if row["criterion"] == LOW_RANK])
    return Section("Criteria and low rank beside their authors' code", "\n\n".join(parts))


def beside_low_rank(name: str, theirs: list[Row]) -> list[str]:
    """What others' low rank loses, and ours within the same budget of MACs."""
    if not theirs:
        return []
    ours = {
        f"{float(row['budget']):.3f}": row for row in read(f"static_{name}_cpu.csv")
        if (row["criterion"], row["epochs"]) == (LOW_RANK, "0")
    }  # fmt: skip
    lines = []
    for row in theirs:
        mine = ours.get(f"{float(row['budget']):.3f}")
        lines.append(
            [row["code"], f"{1 / float(row['budget']):.2g}", f"{100 * float(row['macs_saved']):.1f} %",
             f"{float(row['loss']):.2f}", "" if mine is None else f"{float(mine['loss']):.2f}"]
        )  # fmt: skip
    head = ["code", "times fewer MACs", "saved", "loss", "loss by ours"]
    return [
        f"Low rank on {name}, without training, reported on `test[50%:]`, loss in points; theirs from "
        f"{int(theirs[0]['images']):,} train images, as their script takes them, ours from 10,000. BALF (arXiv "
        "2509.25136) writes every layer as two by what it reads, and spends one budget by the share of each layer's "
        "energy; ours counts what the answer feels of each direction, has separable layers too, and fits the layers "
        "one after the other.",
        table(head, lines),
    ]


if __name__ == "__main__":
    measure(*sys.argv[1:])
