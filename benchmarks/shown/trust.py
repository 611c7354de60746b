"""What is promised, and what keeps it: broken promises, worse images, tests that notice mutants."""

from __future__ import annotations

from shown.cells import MISSING, bounds, markdown, percent, points_of, read


def promise() -> str:
    """How often the expected loss was above the limit, in all trials."""
    said = {"simulation": "simulation: {}", "splits": "{}: random halves", "draws": "{}: draws with replacement"}
    lines = []
    for row in read("promise.csv"):
        stated = percent(str(1 - float(row["confidence"]))) if row["confidence"] else "no promise"
        broken = percent(str(int(row["broken"]) / int(row["trials"])))
        full_tail = percent(row["fallback"]) if row["fallback"] else ""
        lines.append([said[row["kind"]].format(row["name"]), f"{float(row['limit']):g} points", stated, broken,
                      row["trials"], full_tail])  # fmt: skip
    head = ("what", "limit", "may break in", "broke in", "trials", "full tail")
    return markdown(head, lines) if lines else MISSING


def promise_of_optimize() -> str:
    """The same of what optimize() delivers."""
    lines = []
    for row in read("promise_of_optimize.csv"):
        stated = percent(str(1 - float(row["confidence"]))) if row["confidence"] else "no promise"
        shares = [percent(str(int(row[key]) / int(row["trials"]))) for key in ("broken", "delivered")]
        faster = percent(row["share"]) if int(row["delivered"]) else ""
        lines.append([row["name"], row["candidates"], f"{float(row['limit']):g}", stated,
                      shares[0], row["trials"], shares[1], faster])  # fmt: skip
    head = ("candidates are", "of them", "limit in points", "may break in", "broke in", "trials", "delivered in",
            "its share of the time")  # fmt: skip
    return markdown(head, lines) if lines else MISSING


def corruption() -> str:
    """What worse images do to what was delivered: a line an image quality, three columns a network."""
    rows = read("corruption_vgg16.csv")
    networks, order = (list(dict.fromkeys(row[key] for row in rows)) for key in ("delivered", "corruption"))
    lines: dict[tuple[str, str], list[str]] = {}
    rows.sort(key=lambda row: (order.index(row["corruption"]), row["strength"], networks.index(row["delivered"])))
    for row in rows:
        key = (row["corruption"], row["strength"])
        what = key[0] if key[1] == "0" else f"{key[0]}, {key[1]}"
        line = lines.setdefault(key, [what, percent(row["base_top1"])])
        lost = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})"
        line += [lost, percent(row["disagreement"]), *([percent(row["deferred"])] if row["deferred"] else [])]
    kinds = {row["delivered"]: row for row in rows}
    head = ["images", "base model right"]
    for name in networks:
        row = kinds[name]
        head += [f"{row['kind']}, {row['precision']}: points lost", "answers differ"]
        head += ["deferred"] if row["deferred"] else []
    return markdown(head, lines.values()) if lines else MISSING


def mutation() -> str:
    """What share of mutants the tests of a module notice, before and after this work."""
    rows = {(row["module"], row["when"]): row for row in read("mutation.csv")}
    lines = []
    for module in dict.fromkeys(module for module, _ in rows):
        cells = [f"`{module}`"]
        for when in ("before", "after"):
            row = rows.get((module, when))
            cells += ["", ""] if row is None else [row["mutants"], percent(row["share"])]
        lines.append(cells)
    head = ("module", "mutants before", "killed", "mutants after", "killed")
    return markdown(head, lines) if lines else MISSING
