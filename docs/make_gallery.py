"""Make the figures of gallery.md by running its code: ``python docs/make_gallery.py``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt
from PIL import Image

DOCS = Path(__file__).parent
#: A block of code, or an image that shows what the blocks before it have drawn.
PART = re.compile(r"^```python\n(.*?)^```$|^!\[[^\]]*\]\((\S+)\)$", re.MULTILINE | re.DOTALL)


def make(page: Path) -> None:
    """Run a page's blocks in order, and save the last figure where its images are."""
    namespace: dict[str, Any] = {}
    for code, image in PART.findall(page.read_text(encoding="utf-8")):
        if code:
            exec(compile(code, page.name, "exec"), namespace)
        else:
            save(page.parent / image)


def save(path: Path) -> None:
    """Save the current figure as a PNG of few colours, which is several times smaller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=150, bbox_inches="tight")
    plt.close("all")
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    make(DOCS / "gallery.md")
