"""Rows of a Dask array, used where they lie: by the workers of the user's Dask client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sctool._data import _expression
from sctool._data._stores import RowsOfDask


def client_of(matrix: Any) -> Any | None:
    """The client of ``dask.distributed`` that computes a matrix; None if this process does.

    Dask's own settings decide: a client that the user has started, unless another scheduler was
    chosen since.
    """
    if not isinstance(matrix, RowsOfDask) and not hasattr(matrix, "dask"):
        return None
    from dask.base import get_scheduler

    client = getattr(get_scheduler(), "__self__", None)
    return client if hasattr(client, "scatter") else None


def map_rows(
    client: Any, matrix: Any, function: Callable[[Any, int, Any], Any], given: Any
) -> Iterator[Any]:
    """Yield ``function(given, start, rows)`` of each chunk of rows, in order.

    Chunks are those that this process would read, so that results do not depend on blocks.
    ``given`` is sent to each worker once. Rows stay with the workers that compute them, except for
    those of a chunk that goes beyond a block; only results come back.

    Parameters
    ----------
    client
        Client of ``dask.distributed``.
    matrix
        Dask array, (n_cells, n_vars), or its :class:`~sctool._data._stores.RowsOfDask`.
    """
    from dask import delayed

    size = _expression.CHUNK
    array = matrix.array if isinstance(matrix, RowsOfDask) else matrix
    runs = array.rechunk({0: size, 1: -1}, method="tasks").to_delayed().ravel()
    [sent] = client.scatter([given], broadcast=True, hash=False)
    task = delayed(function, pure=False)
    futures = client.compute([task(sent, i * size, run) for i, run in enumerate(runs)])
    futures.reverse()
    try:
        while futures:
            yield futures.pop().result()  # and the workers forget it
    finally:
        client.cancel(futures)
