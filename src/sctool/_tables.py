"""The tables of the package, and what in them is unique."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "tables"


def read_table(name: str) -> tuple[str, list[list[str]]]:
    """The comment and the rows of a table of the package."""
    with gzip.open(FOLDER / name, "rt", encoding="utf-8") as file:
        comment, *lines = file.read().splitlines()
    return comment.removeprefix("# "), [line.split("\t") for line in lines]


def unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What belongs to each key that has a single value; equal pairs count once, "" is no key."""
    pairs = set(pairs)
    n = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if key and n[key] == 1}
