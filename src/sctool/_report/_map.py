"""The map of the cells: which are drawn, where, and how they travel inside the page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool._data._sample import with_rare
from sctool._report import _words

#: At most so many cells are drawn, and of each type so many even if it is rare.
N_DRAWN, N_RARE = 30_000, 100
#: Below this number of cells no UMAP is computed.
MIN_UMAP = 20
#: Colours of the statuses (Okabe and Ito, told apart by colour-blind people), and of any other.
STATUS_COLORS = {
    "assigned": "#0072b2",
    "ambiguous": "#e69f00",
    "unexpected": "#009e73",
    "novel": "#d55e00",
    "doublet": "#cc79a7",
    "low_quality": "#767676",
}
OTHER = "#767676"


def cell_map(
    adata: AnnData, key: str, cells: pd.DataFrame, colors: dict[str, str], basis: str | None
) -> dict[str, Any]:
    """Positions, types, statuses and scores of the cells that are drawn, in a random order.

    Parameters
    ----------
    cells
        As in :class:`sctool._report._content.Content`.
    colors
        Colour of each type.
    basis
        Slot of ``obsm`` with the positions, with or without "X_". Default: ``X_umap`` or, without
        it, a UMAP of the embedding ``X_{key}`` of the cells that are drawn.

    Returns
    -------
    ``caption``, what is drawn; ``n``, the number of cells drawn, 0 if there is no map; ``x`` and
    ``y``, base64 of uint16, from 0 to 65535 over the range of each axis; and ``layers``, each with
    a ``label`` and ``values``: of names base64 of uint16 codes, with the ``names`` and their
    ``colors``; of scores base64 of uint8, 0 to 255 for 0 to 1, with a ``scale`` of colours.

    Raises
    ------
    KeyError
        ``basis`` is not in ``obsm``.
    """
    slot = _find_basis(adata, basis)
    if slot is not None:
        xy = np.asarray(adata.obsm[slot], dtype=float)[:, :2]
        shown = np.flatnonzero(np.isfinite(xy).all(axis=1))
        drawn = shown[sample(cells["type"].to_numpy()[shown])]
        xy, source = xy[drawn], f"The positions are those of obsm[{slot!r}]."
    else:
        if f"X_{key}" not in adata.obsm or len(cells) < MIN_UMAP:
            return {"caption": "There is no map: too few cells, or no embedding.", "n": 0}
        drawn = sample(cells["type"].to_numpy())
        xy = _umap(np.asarray(adata.obsm[f"X_{key}"][drawn]))
        source = (
            f"A UMAP of the model's embedding, obsm['X_{key}']. It was trained to separate the "
            "types of the reference: no evidence for the names."
        )
    if len(drawn) == 0:
        return {"caption": f"There is no map: obsm[{slot!r}] has no positions.", "n": 0}
    few = ""
    if len(drawn) < len(cells):
        few = (
            f" {len(drawn):,} of the {len(cells):,} cells are drawn, chosen at random, with at "
            f"least {N_RARE} of each type or all that it has."
        )
    return {
        "caption": source + few,
        "n": len(drawn),
        "x": _base64(_to_unit(xy[:, 0]) * 65535, "<u2"),
        "y": _base64(_to_unit(xy[:, 1]) * 65535, "<u2"),
        "layers": _layers(cells.iloc[drawn], colors),
    }


def sample(types: np.ndarray, n: int = N_DRAWN, n_rare: int = N_RARE) -> np.ndarray:
    """Positions of at most ``n`` cells in random order, ``n_rare`` of each type among them.

    The order matters as well: no type is drawn over the others.
    """
    return with_rare(types, n, n_rare, np.random.default_rng(0))


def _find_basis(adata: AnnData, basis: str | None) -> str | None:
    if basis is None:
        return "X_umap" if "X_umap" in adata.obsm else None
    for slot in (basis, f"X_{basis}"):
        if slot in adata.obsm:
            return slot
    raise KeyError(f"basis={basis!r} is not in adata.obsm; found {list(adata.obsm)!r}.")


def _umap(latent: np.ndarray) -> np.ndarray:
    """UMAP of an embedding, (n_cells, 2), by scanpy's defaults."""
    import scanpy as sc

    cells = AnnData(obsm={"X_latent": latent})
    sc.pp.neighbors(cells, use_rep="X_latent")
    sc.tl.umap(cells)
    return np.asarray(cells.obsm["X_umap"], dtype=float)


def _layers(cells: pd.DataFrame, colors: dict[str, str]) -> list[dict[str, Any]]:
    """What the cells can be coloured by."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    names = list(cells["type"].cat.categories)
    layers: list[dict[str, Any]] = [
        {
            "label": "type",
            "values": _base64(cells["type"].cat.codes, "<u2"),
            "names": names,
            "colors": [colors[name] for name in names],
        }
    ]
    if "status" in cells:
        known = list(cells["status"].cat.categories)
        codes = cells["status"].cat.codes.to_numpy()
        layers.append(
            {
                "label": "status",
                "values": _base64(np.where(codes < 0, len(known), codes), "<u2"),
                "names": [*(_words.STATUS_WORDS.get(name, (name,))[0] for name in known), "none"],
                "colors": [*(STATUS_COLORS.get(name, OTHER) for name in known), OTHER],
            }
        )
    scale = [to_hex(colormaps["viridis"](i / 15)) for i in range(16)]
    for column, label in {"score": "score", "novel_score": "novelty score"}.items():
        if column in cells:
            values = _base64(cells[column].clip(0, 1).fillna(0) * 255, "u1")
            layers.append({"label": label, "values": values, "scale": scale})
    return layers


def _to_unit(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _base64(values: Any, dtype: str) -> str:
    rounded = np.rint(np.asarray(values, dtype=float)).astype(dtype)
    return base64.b64encode(rounded.tobytes()).decode("ascii")
