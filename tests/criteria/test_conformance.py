"""What every criterion must do, whatever its formula: laws that are checked on networks, from images to scores."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, fx, nn

from sinf.criteria import (
    NAMES,
    Criterion,
    FilterCriterion,
    GroupStatistics,
    group_statistics,
    kind_of,
    make_criterion,
)
from sinf.criteria.base import Reader, Writer
from sinf.errors import ConfigError
from sinf.graph.coupling import CoupledGroup, Coupling, couple
from sinf.graph.trace import trace
from sinf.statistics import Statistics, collect
from tiny import CLASSES, COLOUR, COUPLED, Mixed, conv, traced


@dataclass(frozen=True)
class Law:
    """What a criterion promises besides what all do.

    Attributes:
        layer: the power of c in all scores when a layer's filters, and so what it makes, are c times as large and the
            next layer makes up for it.
        unit: the score of one unit treated like that stays the "same" as all others, or becomes "more"; None where
            neither is promised.
        tolerance: relative, of the law for a unit.
        dead: a channel that is always zero is last; "unread": if its weights in the readers are zero as well.
        split: batches do not matter, to this relative precision; None where no such thing is promised.
        follows: scores follow the channels.
    """

    layer: int = 0
    unit: str | None = "same"
    tolerance: float = 1e-3
    dead: bool | str = True
    split: float | None = 2e-3
    follows: bool = True


LAWS = {
    # Its damping, of the whole layer, is as if a silent channel made a little noise; its directions are drawn by batch.
    "residual": Law(tolerance=0.05, dead="unread", split=None),
    "joint": Law(split=None),  # the same directions
    "dcs": Law(split=0.03),  # a channel that hardly ever fires is blown up, with the rounding of its sums
    "energy": Law(),
    "taylor": Law(),
    "taylor-squared": Law(),
    "fisher": Law(),
    "tvs": Law(),
    "chip": Law(unit="more"),
    "hrank": Law(),
    "activation": Law(unit="more"),
    "apoz": Law(),
    "l1": Law(unit="more"),
    "l2": Law(unit="more"),
    "bn-scale": Law(layer=1, unit="more"),  # the paper compares it between layers as it is
    "fpgm": Law(unit=None, dead=False),  # the filter in the midst of the others goes, be it large
    "lamp": Law(unit="more"),
    "random": Law(unit=None, dead=False, follows=False),
}
FOLLOWING = [name for name, law in LAWS.items() if law.follows]
LOOKING = [name for name in FOLLOWING if not issubclass(kind_of(name), FilterCriterion) and name != "bn-scale"]

IMAGES, SEED = 30, 3


def images() -> tuple[Tensor, Tensor]:
    """Noise of rank one or two in places, so that ranks differ; classes differ in their mean."""
    draw = torch.Generator().manual_seed(SEED)
    y = torch.arange(IMAGES) % CLASSES
    x = torch.randn(IMAGES, *COLOUR.size, generator=draw) + 0.3 * y[:, None, None, None]
    x[::2, :, :, 3:] = x[::2, :, :, 2:3]
    return x, y


@functools.cache
def network(name: str) -> tuple[fx.GraphModule, Coupling]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = traced(COUPLED[name]())
    return graph, couple(graph)


def measure(
    criterion: Criterion, graph: fx.GraphModule, coupling: Coupling, *batches: tuple[Tensor, Tensor], **options: object
) -> Statistics:
    options = {"classes": CLASSES, "needs": criterion.needs, "pool": criterion.pool} | options
    return collect(graph, coupling, batches or [images()], **options)


@functools.cache
def groups_of(name: str, net: str) -> dict[str, GroupStatistics]:
    """Statistics of every group that the criterion can score; no criterion changes what it reads."""
    graph, coupling = network(net)
    return gather(name, graph, coupling, measure(make_criterion(name), graph, coupling))


def gather(name: str, graph: fx.GraphModule, coupling: Coupling, found: Statistics) -> dict[str, GroupStatistics]:
    groups = {g.name: group_statistics(graph, coupling, g, found) for g in coupling.free_groups()}
    return {key: group for key, group in groups.items() if name != "bn-scale" or group.norms}


@functools.cache
def plain_scores(name: str, net: str) -> dict[str, Tensor]:
    """What a criterion says of a network as it is."""
    return scores_of(name, *network(net))


def scores_of(name: str, graph: fx.GraphModule, coupling: Coupling, *batches: object, **options: object) -> dict:
    criterion = make_criterion(name)
    found = measure(criterion, graph, coupling, *batches, **options)
    return {key: criterion.score(group) for key, group in gather(name, graph, coupling, found).items()}


every_net = pytest.mark.parametrize("net", COUPLED)


def test_every_criterion_has_its_laws() -> None:
    assert set(LAWS) == set(NAMES)


@every_net
@pytest.mark.parametrize("name", LAWS)
def test_scores_of_every_kind_of_group(name: str, net: str) -> None:
    groups = groups_of(name, net)
    assert any(len(make_criterion(name).score(group).unique()) > 1 for group in groups.values()), "all are the same"
    for statistics in groups.values():
        assert statistics.readers
        assert statistics.writers
        before = copy.deepcopy(statistics)
        scores = make_criterion(name).score(statistics)
        assert scores.shape == (statistics.group.size,)
        assert scores.dtype == torch.float32
        assert bool(scores.isfinite().all())
        assert bool((scores >= 0).all())
        assert torch.equal(make_criterion(name).score(statistics), scores)
        for reader, old in zip(statistics.readers, before.readers, strict=True):
            assert torch.equal(reader.site.weight, old.site.weight)
            assert torch.equal(reader.unit, old.unit)
            for each in reader.site:
                for key, value in each.tensors().items():
                    assert torch.equal(value, old.site[type(each)].tensors()[key]), key


@pytest.mark.parametrize("name", LAWS)
def test_the_same_images_give_the_same_scores(name: str) -> None:
    graph, coupling = network("residual")
    first, again = scores_of(name, graph, coupling), scores_of(name, graph, coupling)
    assert first
    for key, scores in first.items():
        assert torch.equal(scores, again[key])


@pytest.mark.parametrize("name", LAWS)
def test_only_what_is_needed_is_collected(name: str) -> None:
    graph, coupling = network("chain")
    criterion = make_criterion(name)
    found = measure(criterion, graph, coupling)
    for site in found.values():
        assert {type(each) for each in site} | set(found.units) == set(criterion.needs)


def test_criteria_of_filters_look_at_no_image() -> None:
    graph, coupling = network("chain")

    def refuse():
        raise AssertionError("an image was asked for")
        yield

    for name in LAWS:
        criterion = make_criterion(name)
        if name not in LOOKING:
            collect(graph, coupling, refuse(), classes=CLASSES, needs=criterion.needs)
        else:
            with pytest.raises(AssertionError, match="asked for"):
                collect(graph, coupling, refuse(), classes=CLASSES, needs=criterion.needs)


# ---- channels


def permuted(graph: fx.GraphModule, coupling: Coupling, unit_of: Tensor) -> fx.GraphModule:
    """The same network with its channels in another order: in place of unit u stands what was unit ``unit_of[u]``."""
    moved = copy.deepcopy(graph)

    def order(units: Tensor) -> Tensor:
        """Where each channel is taken from; the first channel of a unit from the first, the second from the second."""
        channels: dict[int, list[int]] = {}
        for place, unit in enumerate(units.tolist()):
            channels.setdefault(unit, []).append(place)
        used = dict.fromkeys(channels, 0)
        found = []
        for unit in units.tolist():
            found.append(channels[int(unit_of[unit])][used[unit]])
            used[unit] += 1
        return torch.tensor(found)

    for target, slot in coupling.writes.items():
        module = moved.get_submodule(target)
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.ndim:
                tensor.data = tensor.data[order(slot.units)]
    for target in coupling.mixers.values():
        slot, weight = coupling.reads[target], moved.get_submodule(target).weight
        split = weight.data.unflatten(1, (-1, slot.repeat))
        weight.data = split[:, order(slot.units)].flatten(1, 2)
    return moved


@pytest.mark.parametrize("net", [net for net in COUPLED if net != "grouped"])  # whose units have several channels
@pytest.mark.parametrize("name", FOLLOWING)
def test_permuted_channels_have_permuted_scores(name: str, net: str) -> None:
    graph, coupling = network(net)
    draw = torch.Generator().manual_seed(1)
    unit_of, orders = torch.arange(coupling.units), {}
    for group in coupling.free_groups():
        within = torch.zeros(group.size, dtype=torch.int64)
        for target in group.producers if net == "concat" else group.producers[:1]:  # only inside a branch
            mine = torch.nonzero(torch.isin(group.units, coupling.writes[target].units)).flatten()
            within[mine] = mine[torch.randperm(len(mine), generator=draw)]
        orders[group.name] = within
        unit_of[group.units] = group.units[within]
    moved = permuted(graph, coupling, unit_of)
    with torch.no_grad():
        torch.testing.assert_close(moved(images()[0]), graph(images()[0]), rtol=1e-4, atol=1e-4)
    other = scores_of(name, moved, coupling)
    for key, scores in plain_scores(name, net).items():
        torch.testing.assert_close(other[key], scores[orders[key]], rtol=2e-3, atol=1e-6)


def relabelled(plain: GroupStatistics, group: CoupledGroup, unit_of: Tensor) -> GroupStatistics:
    """``unit_of`` (size,) is the new unit of each old one, -1 for those that are of another group now."""

    def unit(old: Reader | Writer) -> Tensor:
        return torch.where(old.unit >= 0, unit_of[old.unit], -1)

    back = torch.argsort(unit_of)[int((unit_of < 0).sum()) :]
    return GroupStatistics(
        group,
        [replace(r, unit=unit(r)) for r in plain.readers],
        [replace(w, unit=unit(w)) for w in plain.writers],
        [replace(n, unit=unit(n)) for n in plain.norms],
        {name: total[back] for name, total in plain.units.items()},
        plain.images,
    )


@every_net
@pytest.mark.parametrize("name", FOLLOWING)
def test_a_score_belongs_to_the_unit_and_not_to_its_number(name: str, net: str) -> None:
    for plain in groups_of(name, net).values():
        unit_of = torch.arange(plain.group.size).flip(0)
        criterion = make_criterion(name)
        scores = criterion.score(relabelled(plain, plain.group, unit_of))
        torch.testing.assert_close(scores[unit_of], criterion.score(plain), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FOLLOWING if name != "residual"])  # whose costs rise on the way
def test_channels_of_other_groups_get_no_score(name: str) -> None:
    plain = groups_of(name, "residual")["stem.0"]
    part = replace(plain.group, units=plain.group.units[[1, 3]])
    scores = make_criterion(name).score(relabelled(plain, part, torch.tensor([-1, 0, -1, 1])))
    torch.testing.assert_close(scores, make_criterion(name).score(plain)[[1, 3]])


def killed(graph: fx.GraphModule, coupling: Coupling, units: Tensor, unread: bool = False) -> fx.GraphModule:
    """All that writes these units writes zero; ``unread``: and all that reads them makes nothing of it."""
    dead = copy.deepcopy(graph)
    for target, slot in coupling.writes.items():
        module, gone = dead.get_submodule(target), torch.isin(slot.units, units)
        for tensor in module.parameters(recurse=False):
            tensor.data[gone] = 0
    for target in coupling.mixers.values() if unread else ():
        slot = coupling.reads[target]
        gone = torch.isin(slot.units, units).repeat_interleave(slot.repeat)
        dead.get_submodule(target).weight.data[:, gone] = 0
    return dead


@every_net
@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.dead])
def test_a_dead_channel_is_last(name: str, net: str) -> None:
    graph, coupling = network(net)
    for group in coupling.free_groups():
        dead = killed(graph, coupling, group.units[1:2], LAWS[name].dead == "unread")
        scores = scores_of(name, dead, coupling)
        if group.name in scores:  # bn-scale: of groups with a norm
            assert float(scores[group.name][1]) == float(scores[group.name].min())


@every_net
@pytest.mark.parametrize("name", LAWS)
def test_a_layer_that_is_dead_altogether_has_finite_scores(name: str, net: str) -> None:
    graph, coupling = network(net)
    everything = torch.cat([group.units for group in coupling.free_groups()])
    for scores in scores_of(name, killed(graph, coupling, everything), coupling).values():
        assert bool(scores.isfinite().all())
        assert bool((scores >= 0).all())


# ---- scales


class Homogeneous(nn.Module):
    """No layer after the first norm has a bias: what is c times as large stays so up to the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 6), conv(6, 5)
        self.head = nn.Linear(5, CLASSES)
        self.first[1].eps = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def rescaled(factors: Tensor) -> fx.GraphModule:
    """Filters and norm of the first layer, and so what it makes, times factors (6,); the second layer divides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = traced(Homogeneous())
    filters, norm = net.get_submodule("first.0"), net.get_submodule("first.1")
    filters.weight.data *= factors[:, None, None, None]
    norm.running_mean *= factors
    norm.running_var *= factors.square()
    norm.weight.data *= factors
    norm.bias.data *= factors
    net.get_submodule("second.0").weight.data /= factors[None, :, None, None]
    return net


def first_scores(name: str, factors: Tensor) -> Tensor:
    graph = rescaled(factors)
    return scores_of(name, graph, couple(graph))["first.0"]


def test_rescaled_networks_are_the_same_network() -> None:
    x = images()[0]
    with torch.no_grad():
        plain = rescaled(torch.ones(6))(x)
        torch.testing.assert_close(rescaled(torch.tensor([1.0, 5, 1, 1, 0.1, 1]))(x), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_scale_of_a_layer(name: str) -> None:
    plain, scaled = first_scores(name, torch.ones(6)), first_scores(name, torch.full((6,), 4.0))
    torch.testing.assert_close(scaled, plain * 4.0 ** LAWS[name].layer, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.unit])
def test_scale_of_a_unit(name: str) -> None:
    factors = torch.ones(6)
    factors[2] = 4.0
    plain, scaled = first_scores(name, torch.ones(6)), first_scores(name, factors)
    if LAWS[name].unit == "same":
        torch.testing.assert_close(scaled, plain, rtol=LAWS[name].tolerance, atol=1e-6)
    else:
        others = [0, 1, 3, 4, 5]
        assert bool((scaled[2] / scaled[others] > 1.05 * plain[2] / plain[others]).all())


# ---- images


@every_net
@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.split])
def test_batches_do_not_matter(name: str, net: str) -> None:
    graph, coupling = network(net)
    x, y = images()
    sizes = [1, 7, 13, IMAGES - 21]
    whole = plain_scores(name, net)
    split = scores_of(name, graph, coupling, *zip(x.split(sizes), y.split(sizes), strict=True))
    for key, scores in whole.items():
        torch.testing.assert_close(split[key], scores, rtol=LAWS[name].split, atol=1e-6)


@every_net
@pytest.mark.parametrize("name", LAWS)
def test_one_cluster_has_scores_of_its_own(name: str, net: str) -> None:
    graph, coupling = network(net)
    members = [1, 4]
    x, y = images()
    mine = torch.isin(y, torch.tensor(members))
    whole = plain_scores(name, net)
    cluster = scores_of(name, graph, coupling, (x[mine], y[mine]), answer=members)
    for key, scores in cluster.items():
        assert scores.shape == whole[key].shape
        assert bool(scores.isfinite().all())
        assert bool((scores >= 0).all())
    differs = [not torch.equal(scores, whole[key]) for key, scores in cluster.items()]
    assert any(differs) is (name in LOOKING)


@pytest.mark.parametrize("name", LOOKING)
def test_a_cluster_of_one_class_has_finite_scores(name: str) -> None:
    graph, coupling = network("residual")
    x, y = images()
    scores = scores_of(name, graph, coupling, (x[y == 2], y[y == 2]), answer=[2])
    for each in scores.values():
        assert bool(each.isfinite().all())
        assert bool((each >= 0).all())


@pytest.mark.parametrize("name", LAWS)
def test_a_group_without_a_norm(name: str) -> None:
    """Only what is about norms needs one, and says so."""
    graph, coupling = network("chain")
    criterion = make_criterion(name)
    statistics = group_statistics(graph, coupling, coupling.groups["second.0"], measure(criterion, graph, coupling))
    if name == "bn-scale":
        with pytest.raises(ConfigError, match=r"bn-scale needs a batch norm.*second\.0"):
            criterion.score(statistics)
    else:
        assert len(criterion.score(statistics)) == 5


# ---- what must not change

#: Scores of the first release, of a network and images that are sines.
NUMBERS = {
    ("dcs", "stem.0"): [0.50508, 0.48496, 0.38126, 0.6287],
    ("dcs", "pieces.0.body.0.0"): [0.12948, 0.21799, 0.08023, 0.25864, 0.31365],
    ("residual", "stem.0"): [8.7059, 0.84983, 0.13031, 0.17909],
    ("residual", "pieces.0.body.0.0"): [8.9108e-05, 0.0013965, 0.071386, 0.21761, 0.002314],
    ("energy", "stem.0"): [0.56201, 0.36245, 0.22871, 0.84682],
    ("energy", "pieces.0.body.0.0"): [0.037072, 0.36721, 0.094244, 0.43193, 0.069543],
    ("l1", "stem.0"): [1.9953, 2.0786, 1.635, 2.291],
    ("l1", "pieces.0.body.0.0"): [0.96252, 0.98758, 1.0064, 1.0188, 1.0247],
    ("random", "stem.0"): [0.0042635, 0.10557, 0.28584, 0.026955],
    ("random", "pieces.0.body.0.0"): [0.53492, 0.1988, 0.65921, 0.65689, 0.23276],
}


def waves(shape: torch.Size | tuple[int, ...], step: float) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return torch.sin(step * torch.arange(1, 1 + count, dtype=torch.float64)).float().reshape(shape)


@pytest.mark.parametrize("name", ["dcs", "residual", "energy", "l1", "random"])
def test_numbers_of_the_first_release_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinf.criteria.residual._ENOUGH_ROWS", 0)  # twelve images are few: their moments shrink today
    net = Mixed(["residual"]).eval()
    for number, tensor in enumerate(net.state_dict().values()):
        if tensor.is_floating_point():
            value = waves(tensor.shape, 1.3 + 0.7 * number)
            tensor.copy_(value.abs() + 0.5 if tensor.ndim == 1 else value)
    graph = trace(net, COLOUR)
    x, y = waves((12, *COLOUR.size), 0.37), torch.arange(12) % CLASSES
    for key, scores in scores_of(name, graph, couple(graph), (x[:7], y[:7]), (x[7:], y[7:])).items():
        torch.testing.assert_close(scores, torch.tensor(NUMBERS[name, key]), rtol=1e-3, atol=1e-7)
