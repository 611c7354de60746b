"""What a report says of an artefact on labelled images: every image's answers, of base model and artefact, of whatever
kind the artefact is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sinf.bundle.plain import PlainModel
from sinf.data.clusters import Clusters
from sinf.data.images import LabelledImages
from sinf.dynamic.model import DynamicModel
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.accuracy import Costs, mean_cost
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.plain import Size
from sinf.measure.timing import Progress
from sinf.models import BaseModel
from sinf.pipelines.kept import PartKept, kept_of_bundle, kept_of_dynamic, kept_of_plain
from sinf.routing.clustering import TEMPERATURE, distances, of_confusions

#: What sinf writes, as :func:`sinf.from_pretrained` opens it.
Artefact = SemanticModel | PlainModel | DynamicModel
_MOST_CLASSES = 2000  # whose confusions are added up, a matrix of 32 MB


@dataclass(frozen=True)
class Routing:
    """Where images went: of each (N,) the cluster of its route, the confidence by which it was decided, whether it fell
    back to the full tail, and whether its subgraph ran.

    ``threshold`` is the confidence below which an input falls back, ``early`` the one below which its subgraph does not
    run.
    """

    clusters: Clusters
    route: Tensor
    confidence: Tensor
    fell_back: Tensor
    subgraph_ran: Tensor
    threshold: float
    early: float

    @property
    def cascade(self) -> bool:
        """Whether there is one cluster, of all classes."""
        return len(self.clusters) == 1


@dataclass(frozen=True)
class Findings:
    """An artefact on labelled images.

    Attributes:
        kind: ``static``, ``semantic``, ``cascade`` or ``dynamic``.
        name: of the model that it was made from.
        class_names: in the order of the logits.
        images: that it was run on, with the model's classes as labels.
        base, answers: ``(N,)`` the classes that base model and artefact answer; no base of a plain model without one.
        base_macs, macs: of one image, of the artefact in the mean over the images; None where there is no base.
        base_parameters, parameters: the same of the parameters, which are those that an image needs.
        parts: what is left of every layer.
        promise: what the artefact itself says of its loss, word by word.
        runs_in: engine and precision that it was made for, None where it does not say; the answers here are those of
            torch in f32.
        calibrated: of a bundle, the loss (a fraction) on the images that set its threshold, and how many these are.
        routing: of a bundle, where images went.
        image_macs: of a dynamic bundle, ``(N,)`` the MACs of every image.
        apart: of a bundle with several clusters, ``(classes, classes)`` how far classes are apart, by what the base
            model confuses.
    """

    kind: str
    name: str
    class_names: tuple[str, ...]
    images: LabelledImages
    base: Tensor | None
    answers: Tensor
    base_macs: int | None
    macs: float
    base_parameters: int | None
    parameters: float
    parts: tuple[PartKept, ...]
    promise: str
    runs_in: str | None = None
    calibrated: tuple[float, int] | None = None
    routing: Routing | None = None
    image_macs: Tensor | None = None
    apart: np.ndarray | None = field(default=None, repr=False)

    @property
    def loss(self) -> ExpectedLoss | None:
        """Loss of top-1 against the base model, in points with its 95 % interval."""
        return None if self.base is None else ExpectedLoss.of(self.base, self.answers, self.images.labels)

    @property
    def right(self) -> Tensor:
        """``(N,)`` whether the artefact is right."""
        return self.answers == self.images.labels

    @property
    def base_right(self) -> Tensor | None:
        """``(N,)`` whether the base model is right."""
        return None if self.base is None else self.base == self.images.labels

    @property
    def top1(self) -> float:
        return float(self.right.double().mean())

    @property
    def base_top1(self) -> float | None:
        return None if self.base_right is None else float(self.base_right.double().mean())


NO_PROMISE = "No promise: the artefact carries none."


def find(
    model: Artefact, images: LabelledImages, base: BaseModel | None = None, progress: Progress | None = None
) -> Findings:
    """Run an artefact, and its base model beside it, over labelled images in torch.

    ``images`` have the model's classes as labels. A plain model does not hold its ``base``; the bundles do, and
    take no other.

    Raises:
        ConfigError: the base model has another number of classes, or is given beside a bundle.
        DataError: there are no labels.
    """
    images.require_labels("a report")
    images.warn_of_empty_classes("the report")
    progress = progress or (lambda done, total: None)
    if isinstance(model, PlainModel):
        return _find_plain(model, images, base, progress)
    if base is not None:
        raise ConfigError("a bundle holds its base model", got=base.spec.name, remedy="leave --base out")
    if isinstance(model, DynamicModel):
        return _find_dynamic(model, images, progress)
    return _find_semantic(model, images, progress)


class _Rows:
    """Values of images, gathered batch by batch."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._done, self._total, self._progress = 0, total, progress

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._parts.setdefault(name, []).append(value)
        self._done += len(next(iter(values.values())))
        self._progress(self._done, self._total)

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(self._parts[name])


class _Confusions:
    """What the softmax of images of one class gives to another, as :func:`sinf.routing.clustering.similarity` reads
    them, added up so that no logits are kept."""

    def __init__(self, classes: int) -> None:
        self._towards = torch.zeros(classes, classes, dtype=torch.float64)
        self._weights = torch.zeros(classes, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        logits = logits.double()
        weights = logits.softmax(1)
        self._towards += weights.T @ (logits / TEMPERATURE).softmax(1)
        self._weights += weights.sum(0)

    def apart(self) -> np.ndarray:
        return distances(of_confusions(self._towards / self._weights.clamp_min(1e-12)[:, None]))


@torch.no_grad()
def _find_semantic(model: SemanticModel, images: LabelledImages, progress: Progress) -> Findings:
    bundle, rows = model.bundle, _Rows(len(images), progress)
    router = model.feature_router.one_by_one()
    several = len(bundle.clusters) > 1 and len(bundle.class_names) <= _MOST_CLASSES
    confusions = _Confusions(len(bundle.class_names)) if several else None
    for x, _ in images.batches(model.preprocessing):
        logits = model.engine.base(x)
        routed = router.route(x)
        if confusions is not None:
            confusions.add(logits)
        rows.add(
            base=logits.argmax(1), answers=routed.logits.argmax(1), route=routed.route, confidence=routed.confidence,
            fell_back=routed.fell_back, subgraph_ran=routed.subgraph_ran,
        )  # fmt: skip
    costs = Costs.of(model)
    went = rows["route"], rows["subgraph_ran"], rows["fell_back"]
    threshold = bundle.threshold
    return Findings(
        kind="cascade" if bundle.cascade else "semantic",
        name=bundle.spec.title,
        class_names=bundle.class_names,
        images=images,
        base=rows["base"],
        answers=rows["answers"],
        base_macs=costs.base_macs,
        macs=mean_cost(costs.macs, *went),
        base_parameters=costs.base_parameters,
        parameters=mean_cost(costs.parameters, *went),
        parts=kept_of_bundle(bundle, model.network),
        promise="No promise: the bundle is not calibrated."
        if threshold is None
        else threshold.promise(model.threshold, threshold.engine, threshold.precision),
        runs_in=None if threshold is None else f"{threshold.engine} {threshold.precision}",
        calibrated=None if threshold is None else (threshold.loss, threshold.images),
        routing=Routing(
            bundle.clusters, went[0], rows["confidence"], went[2], went[1], router.threshold, router.early_threshold
        ),
        apart=None if confusions is None else confusions.apart(),
    )


@torch.no_grad()
def _find_plain(model: PlainModel, images: LabelledImages, base: BaseModel | None, progress: Progress) -> Findings:
    if base is not None and base.spec.classes != model.spec.classes:
        got = f"{base.spec.classes} instead of {model.spec.classes}"
        raise ConfigError("the base model must have the classes of the plain model", got=got, remedy="name another")
    before = None if base is None else prepare(trace(base.module, base.spec.preprocessing))
    rows, done = _Rows(len(images), progress), 0
    for x, y in images.batches(model.preprocessing):
        values = {"answers": model(x).argmax(1)}
        if before is not None and base is not None:
            feed = base.spec.preprocessing
            same = feed == model.preprocessing
            own = x if same else feed.normalise(images.pixels(feed, done, done + len(y)))
            values["base"] = before(own).argmax(1)
        done += len(y)
        rows.add(**values)
    size, base_size = Size.of(model.base_model()), None if base is None else Size.of(base)
    return Findings(
        kind="static",
        name=model.spec.title,
        class_names=model.class_names,
        images=images,
        base=None if base is None else rows["base"],
        answers=rows["answers"],
        base_macs=None if base_size is None else base_size.macs,
        macs=size.macs,
        base_parameters=None if base_size is None else base_size.parameters,
        parameters=size.parameters,
        parts=kept_of_plain(model.base_model(), base),
        promise=str(model.provenance.get("promise", NO_PROMISE)),
        runs_in=model.provenance.get("runs in"),
    )


@torch.no_grad()
def _find_dynamic(model: DynamicModel, images: LabelledImages, progress: Progress) -> Findings:
    rows = _Rows(len(images), progress)
    for x, _ in images.batches(model.preprocessing):
        chosen = model.choose(x)
        rows.add(
            base=model.base(x).argmax(1), answers=chosen.logits.argmax(1), macs=chosen.macs, remaining=chosen.remaining
        )
    base = Size.of(model.base_model())
    parameters = sum(p.numel() for p in model.network.parameters())
    return Findings(
        kind="dynamic",
        name=model.bundle.spec.title,
        class_names=model.class_names,
        images=images,
        base=rows["base"],
        answers=rows["answers"],
        base_macs=model.network.base_macs,
        macs=float(rows["macs"].double().mean()),
        base_parameters=base.parameters,
        parameters=parameters,
        parts=kept_of_dynamic(model.network, rows["remaining"].double().mean(0)),
        promise=NO_PROMISE,
        image_macs=rows["macs"],
    )
