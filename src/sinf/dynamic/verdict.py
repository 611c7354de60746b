"""Whether a network that was trained with gates takes less time than its base model, said before it is written."""

from __future__ import annotations

from collections.abc import Callable

from sinf.data.images import LabelledImages
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.onnx import open_engine
from sinf.errors import DoesNotPayError
from sinf.measure.delivery import describe_times, is_faster, time_beside
from sinf.measure.limits import Limits

_ONE_BY_ONE = Limits(batches=(1,))


def require_faster(
    bundle: DynamicBundle,
    images: LabelledImages,
    *,
    keep_anyway: bool = False,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Time it beside its base model in torch, on one thread, as a request has, and tell ``report`` what came out.

    Raises:
        DoesNotPayError: it is not surely faster, and not to be kept anyway.
    """
    base, network = open_engine(DynamicModel(bundle), "torch", 1)
    times = time_beside(base, {"dynamic": network}, images, bundle.spec.preprocessing, _ONE_BY_ONE, progress)["dynamic"]
    said = describe_times(times)
    report(f"beside the base model in torch, one thread: {said}")
    if not is_faster(times) and not keep_anyway:
        raise DoesNotPayError(
            "a dynamic bundle must be faster than the base model",
            got=said,
            remedy="the same command with --keep-anyway writes it, as it was trained, for its fewer MACs; or try sinf "
            "prune, which takes calls away too",
            numbers={"times": [time.to_json() for time in times]},
        )
