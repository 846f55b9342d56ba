"""Reading ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield ``items``, the next of which is made by a thread while the caller uses the last.

    An error in making an item is raised where it would be yielded.
    """
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="sctool-read") as thread:
        pending = thread.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = thread.submit(next, items, end)
            yield item
