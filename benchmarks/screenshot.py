"""Make docs/page.png, what the page of an export shows, or docs/report.png, the top of a report:

    python benchmarks/screenshot.py FOLDER         what sinf export --format web wrote
    python benchmarks/screenshot.py REPORT.html    what sinf report wrote

It needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
sys.path.insert(0, str(HERE.parent / "tests"))

from PIL import Image  # noqa: E402

from browser import Browser, missing  # noqa: E402
from sinf.export.local_server import server  # noqa: E402


def main(source: Path) -> None:
    if missing() is not None:
        raise SystemExit(missing())
    out = picture_of_page(source) if source.is_dir() else picture_of_report(source)
    whole = Image.open(out).convert("RGB")
    few = whole.quantize(192)
    if not source.is_dir():  # its small images would be blotches without dithering
        few = whole.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


def picture_of_page(folder: Path, out: Path = DOCS / "page.png") -> Path:
    with server(folder) as running, Browser(1120, 1010) as window:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        window.open(f"http://127.0.0.1:{running.server_port}/")
        window.wait("document.getElementById('saved').innerText")
        window.click("#all")
        window.wait("document.getElementById('sum').innerText.includes('images:')")
        window.run("document.activeElement.blur(); scrollTo(0, 0);")
        window.screenshot(out)
        running.shutdown()
    return out


def picture_of_report(page: Path, out: Path = DOCS / "report.png") -> Path:
    with Browser(1120, 1800) as window:
        window.open(page.resolve().as_uri())
        window.screenshot(out)
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
