"""Whether a build can be worth its time, before most of that is spent.

What a part takes depends on its shape and not on its weights. So parts made from a few images, whose weights are not
fitted, are timed beside the base model: an input whose route is accepted at once, which is the best case of a bundle,
and one that falls back. If the best case is not faster, no bundle of these options is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.errors import DoesNotPayError
from sinf.graph.prepare import prepare
from sinf.measure.delivery import LEAST_SAVED, describe_times, time_beside
from sinf.measure.limits import Limits
from sinf.measure.timing import Latency
from sinf.routing.router import FULL_TAIL

LONG = 60.0  # seconds of a build, from which on it is asked
IMAGES = 64  # that parts are made from
_PAIRS = 50
_BEST, _FALLBACK = "best case", "fallback"


@dataclass(frozen=True)
class Prospect:
    """Times beside the base model's, at every batch size: of inputs that are all accepted at once by one subgraph, and
    of inputs that all fall back."""

    best: tuple[Latency, ...]
    fallback: tuple[Latency, ...]

    @staticmethod
    def of(
        base: fx.GraphModule,
        router: nn.Module | None,
        parts: dict[str, fx.GraphModule],
        images: LabelledImages,
        preprocessing: Preprocessing,
        limits: Limits,
        progress: Callable[[int, int], None],
    ) -> Prospect:
        """From an untrained route predictor (None in a cascade, whose small tail runs for every input) and the parts
        ``extractor``, ``subgraph`` and ``full_tail``."""
        extractor, subgraph, full = (prepare(parts[name]) for name in ("extractor", "subgraph", FULL_TAIL))

        def best(x: Tensor) -> Tensor:
            features = extractor(x)
            if router is not None:
                router(features)
            return subgraph(features)

        def fallback(x: Tensor) -> Tensor:
            features = extractor(x)
            (subgraph if router is None else router)(features)
            return full(features)

        limits, networks = replace(limits, pairs=_PAIRS), {_BEST: best, _FALLBACK: fallback}
        times = time_beside(prepare(base), networks, images, preprocessing, limits, progress)
        return Prospect(times[_BEST], times[_FALLBACK])

    @property
    def may_pay(self) -> bool:
        """Whether the best case may be faster at one batch size, and is surely slower at none."""
        return any(time.high > LEAST_SAVED for time in self.best) and not any(time.high < 0 for time in self.best)

    @property
    def most_fallback(self) -> float:
        """The share of the inputs with which, at batch 1 (the first size), it takes what the base model takes."""
        best, fallback = self.best[0].time_saved, self.fallback[0].time_saved
        return 1.0 if fallback >= 0 else max(0.0, best / (best - fallback)) if best > fallback else 0.0

    def require(self) -> None:
        """Raises:
        DoesNotPayError: no bundle of these parts can be faster.
        """
        if not self.may_pay:
            raise DoesNotPayError(
                "a bundle must be able to be faster than the base model, before it is built",
                got=f"{describe_times(self.best)}, though nothing fell back",
                remedy="keep less (--macs), cut elsewhere (--cut), take fewer clusters, or try sinf prune; "
                "--keep-anyway builds it",
                numbers=self.to_json(),
            )

    def line(self) -> str:
        return (
            f"is it worth it? at best {describe_times(self.best)}, where nothing falls back; as fast as the base model "
            f"where {100 * self.most_fallback:.0f} % do"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "may_pay": self.may_pay,
            "most_fallback": self.most_fallback,
            "best": [time.to_json() for time in self.best],
            "fallback": [time.to_json() for time in self.fallback],
        }
