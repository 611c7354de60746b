"""What a network must keep to be delivered. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from sinf.errors import ConfigError
from sinf.option import IMAGES, POINTS, RUN, Option, Threads

if TYPE_CHECKING:
    from sinf.machine.memory import Memory


@dataclass(frozen=True)
class Limits:
    """What a network must keep to be delivered.

    Attributes:
        max_loss: a fraction (0.01 is one point). The estimate counts, not the upper end of its interval, which a few
            hundred images leave wide.
        batches: batch sizes at which it is timed beside the base model. It must be faster at one of them, and slower
            at none; what is within the noise is neither.
        threads: of the processor, while it is timed.
        pairs: measurements of time at batch 1; a fifth at larger ones.
    """

    max_loss: Annotated[
        float,
        Option("Points that held-out images may lose; without a budget as much goes as this allows.", unit=POINTS),
    ] = 0.02
    held_out: Annotated[
        float, Option("Share of the scoring images that is held out where --validate names none.", IMAGES)
    ] = 0.2
    batches: tuple[int, ...] = (1, 32)
    threads: Threads = 1
    pairs: int = 100
    keep_anyway: Annotated[bool, Option("Write a network that loses more, or is not faster, all the same.", RUN)] = (
        False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss <= 1:
            raise ConfigError("max_loss must be in 0..1, a fraction", got=self.max_loss, remedy="0.01 is one point")
        if not 0 < self.held_out < 1:
            raise ConfigError("the share of held-out images must be in (0, 1)", got=self.held_out, remedy="take 0.2")
        if not self.batches or min(self.batches) < 1 or self.threads < 1 or self.pairs < 2:
            got = f"batches {self.batches}, threads {self.threads}, pairs {self.pairs}"
            raise ConfigError("batches and threads must be at least 1, pairs at least 2", got=got)

    def within(self, memory: Memory, each: int, fixed: int) -> Limits:
        """The same with batches that fit into memory, where an image takes ``each`` bytes beside ``fixed`` ones.

        Raises:
            ConfigError: not even one image fits.
        """
        sizes = {memory.batch("times", each, batch, fixed=fixed) for batch in self.batches}
        return replace(self, batches=tuple(sorted(sizes)))
