"""(iii) DCS against TVSPrune's score as criteria for all classes: python reproduce/static.py"""

from __future__ import annotations

from common import Section, kept, networks, published, read, shown, table

SETTING = ("allocation", "budget", "weights", "seed")


def section() -> Section:
    lines = []
    for name in networks("criteria_"):
        rows = [r for r in read(f"criteria_{name}.csv") if r["method"] == "static"]
        by_setting: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
        for row in rows:
            by_setting.setdefault(tuple(row[key] for key in SETTING), {})[row["criterion"]] = row
        for setting, found in sorted(by_setting.items(), key=lambda item: (item[0][0], -float(item[0][1]), item[0][2])):
            if not {"dcs", "tvs"} <= found.keys():
                continue
            dcs, tvs = found["dcs"], found["tvs"]
            fewer = 1 - float(dcs["params_active"]) / float(tvs["params_active"])
            lines.append(
                [name, setting[0], kept([dcs, tvs]), setting[2], f"{float(dcs['loss']):.2f}",
                 f"{float(tvs['loss']):.2f}", f"{float(tvs['loss']) - float(dcs['loss']):+.2f}",
                 f"{100 * fewer:+.2f} %"]
            )  # fmt: skip
    (paper,) = published("static")
    head = ["network", "spent", "MACs kept", "weights", "loss by DCS", "loss by TVS", "DCS gains", "fewer parameters"]
    text = (
        f"The paper: DCS gains {shown(float(paper['value']))} points over TVSPrune ({paper['note']}; "
        f"{paper['source']}). "
        "Ours: the total-variation score of TVSPrune and DCS, both ranked within the same selection at equal MACs; "
        "TVSPrune's "
        "own thresholds and layer choice are not part of it.\n\n"
        + (table(head, lines) if lines else "Not measured yet.")
    )  # fmt: skip
    return Section("DCS as a static criterion against TVSPrune", text)


if __name__ == "__main__":
    print(section().text)
