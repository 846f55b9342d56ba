"""Tables in Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a table; a row has a value for each column.

    Raises
    ------
    ValueError
        A row has more or fewer values.
    """
    for row in (columns, ["---"] * len(columns), *rows):
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} values, but there are {len(columns)} columns")
        yield f"| {' | '.join(map(str, row))} |"


def frame_as_markdown(frame: pd.DataFrame) -> str:
    """The table of a data frame: numbers with a fraction have three digits, missing ones none."""

    def said(value: Any) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = (list(map(said, row.values())) for row in frame.to_dict("records"))
    return "\n".join(table_lines(list(map(str, frame.columns)), rows)) + "\n"
