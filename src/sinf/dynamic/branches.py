"""The last convolution of a residual branch can skip outputs, because zeros are added in their place.

In the coupling such a convolution shares its channels with all that is summed with it, and none may go for all inputs.
For one input it may: so its output gets units of its own here, up to the sum.

    x --+-- conv (a site) -- ... -- conv (a branch) -- norm -- (mask * .) -- + --
        +--------------------------------------------------------------------+

ManiDP's published code gates both convolutions of a ResNet's block this way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import fx, nn

from sinf.dynamic.sites import Site
from sinf.graph.branches import to_sum
from sinf.graph.coupling import Coupling, Slot


def separate(graph: fx.GraphModule, coupling: Coupling, sites: list[Site]) -> tuple[Coupling, list[Site]]:
    """The coupling with units of their own for the outputs of residual branches, and the sites that these are: full
    convolutions, called once, that read what one of ``sites`` decides and whose output goes into a sum alone."""
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    decided = set(torch.cat([site.units for site in sites]).tolist()) if sites else set()
    inner = {site.name for site in sites}
    reads, writes, values = dict(coupling.reads), dict(coupling.writes), dict(coupling.values)
    units, outer = coupling.units, []
    for node in graph.graph.nodes:
        conv = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or str(node.target) in inner:
            continue
        chain = to_sum(graph, node)
        if chain is None or any(calls[str(n.target)] > 1 for n in chain) or conv.out_channels < 2:
            continue
        if not set(coupling.reads[str(node.target)].units.tolist()) <= decided:
            continue
        own = torch.arange(units, units + conv.out_channels)
        units += conv.out_channels
        for number, part in enumerate(chain):
            target = str(part.target)
            for slots, key in ((writes, target), (values, part.name), *(((reads, target),) if number else ())):
                if key in slots:
                    slots[key] = Slot(slots[key].dim, own)
        names = tuple(str(part.target) for part in chain)
        outer.append(Site(names[0], conv.in_channels, own, (), names))
    return replace(coupling, units=units, reads=reads, writes=writes, values=values), outer
