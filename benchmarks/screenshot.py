"""Make docs/page.png, what the page of an export shows: python benchmarks/screenshot.py FOLDER

FOLDER is what sinf export --format web wrote; needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from PIL import Image  # noqa: E402

from browser import Browser, missing  # noqa: E402
from sinf.export.local_server import server  # noqa: E402


def main(folder: Path, out: Path = HERE.parent / "docs" / "page.png") -> None:
    if missing() is not None:
        raise SystemExit(missing())
    with server(folder) as running, Browser(1120, 1010) as window:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        window.open(f"http://127.0.0.1:{running.server_port}/")
        window.wait("document.getElementById('saved').innerText")
        window.click("#all")
        window.wait("document.getElementById('sum').innerText.includes('images:')")
        window.run("document.activeElement.blur(); scrollTo(0, 0);")
        window.screenshot(out)
        running.shutdown()
    Image.open(out).convert("RGB").quantize(192).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
