"""Take the pictures of a report page that the README shows: docs/report-light.webp, -dark.webp and -phone.webp.

scripts/make_screenshots.py RUN/report.html [FOLDER]    FOLDER: where they go; default: docs

It needs a Chromium that is installed, or Playwright's own (`playwright install chromium`).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from dra_bench.report.browser import chromium, installed_chromium

# Name: width and height in CSS pixels, colour scheme, the element at the top (None: the page's start).
PICTURES = {
    "report-light": (1120, 1180, "light", None),
    "report-dark": (1120, 1180, "dark", "#latency"),
    "report-phone": (390, 844, "light", None),
}


def main() -> int:
    """Take all pictures; returns the exit code."""
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    page_file, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2] if len(sys.argv) == 3 else "docs")
    path = installed_chromium()
    if not page_file.is_file() or path is None:
        found = f"{page_file} doesn't exist; write it with dra-bench report" if path else "no Chromium is installed"
        print(f"error: {found}", file=sys.stderr)
        return 2
    with chromium(path) as browser:
        for name, (width, height, scheme, top) in PICTURES.items():
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
            page.goto(page_file.as_uri())
            if top:
                page.evaluate(
                    "(name) => scrollBy(0, document.querySelector(name).getBoundingClientRect().top - 16)", top
                )
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.save(folder / f"{name}.webp", quality=82, method=6)
            print(f"{folder / name}.webp written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
