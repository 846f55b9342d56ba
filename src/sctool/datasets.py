"""Example data that need no download, and references from CELLxGENE Census."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

__all__ = ["blood", "census"]

logger = logging.getLogger("sctool")


def blood(reference_share: float = 0.5, random_state: int = 0) -> tuple[AnnData, AnnData]:
    """Load blood cells of one donor as a query and a labelled reference.

    700 peripheral blood cells of 10 types that are shipped with scanpy
    (:func:`scanpy.datasets.pbmc68k_reduced`; Zheng et al. 2017), split at random within each type.
    ``X`` holds scaled values and ``raw`` log1p values of 765 genes, as in many published files.

    Parameters
    ----------
    reference_share
        Fraction of each type's cells in the reference, in (0, 1); both query and reference keep at
        least one cell of each type.
    random_state
        Random seed of the split.

    Returns
    -------
    adata
        Query, with the true types in ``obs["truth"]`` (never read by annotation).
    ref
        Reference, with the cell types in ``obs["cell_type"]`` and their colours.

    Raises
    ------
    ValueError
        ``reference_share`` is not between 0 and 1.

    Examples
    --------
    >>> adata, ref = blood()
    >>> adata.n_obs, ref.n_obs
    (353, 347)
    """
    if not 0 < reference_share < 1:
        raise ValueError(f"reference_share={reference_share!r}: it must be between 0 and 1.")
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file was written by an old anndata
        cells = sc.datasets.pbmc68k_reduced()
    labels = cells.obs["bulk_labels"].astype("category")
    rng = np.random.default_rng(random_state)
    in_ref = np.zeros(cells.n_obs, dtype=bool)
    for name in labels.cat.categories:
        members = rng.permutation(np.flatnonzero(labels == name))
        n = min(max(int(reference_share * len(members)), 1), len(members) - 1)
        in_ref[members[:n]] = True
    sides = []
    for mask, column in ((~in_ref, "truth"), (in_ref, "cell_type")):
        side = cells[mask].copy()
        side.obs = pd.DataFrame({column: labels[mask]}, index=side.obs_names)
        side.uns = {f"{column}_colors": list(cells.uns["bulk_labels_colors"])}
        for slot in (side.obsm, side.obsp, side.varm):
            for key in list(slot):
                del slot[key]
        sides.append(side)
    return sides[0], sides[1]


#: Names of the organisms of CELLxGENE Census.
ORGANISMS = {"human": "Homo sapiens", "mouse": "Mus musculus"}
#: Columns of ``obs`` that a reference from Census has.
COLUMNS = (
    *("cell_type", "cell_type_ontology_term_id", "tissue", "tissue_general", "disease", "assay"),
    *("suspension_type", "donor_id", "sex", "development_stage", "dataset_id"),
)
#: Types with fewer cells are noted: they are hard to learn.
FEW_CELLS = 10


def census(
    organism: str = "human",
    tissue: str | None = None,
    *,
    max_cells: int = 500,
    obs_value_filter: str = "disease == 'normal'",
    census_version: str = "stable",
    random_state: int = 0,
) -> AnnData:
    """Make a reference of the cells of a tissue in CELLxGENE Census.

    Up to ``max_cells`` cells of each type are drawn at random from all studies; only these are
    read. Cells that are in several data sets are used once (``is_primary_data``), cells of unknown
    type not at all. Needs the network and the extra ``census``
    (``pip install 'sctool-annotate[census]'``).

    Parameters
    ----------
    organism
        "human", "mouse" or another organism's name in Census.
    tissue
        Value of ``tissue_general``, such as "blood" or "lung"; None for all tissues.
    max_cells
        Most cells of a type.
    obs_value_filter
        Further condition on the cells, in Census' words, such as
        ``"disease in ['normal', 'COVID-19'] and suspension_type == 'cell'"``; "" for none.
    census_version
        Release of Census: "stable", or a date, which stays the same.
    random_state
        Random seed of the draw.

    Returns
    -------
    Cells with counts in ``X``, CSR (n_cells, n_genes); Ensembl ids in ``var_names`` and symbols in
    ``var["feature_name"]``; types in ``obs["cell_type"]``, their Cell Ontology ids in
    ``obs["cell_type_ontology_term_id"]``, and ``tissue``, ``tissue_general``, ``disease``,
    ``assay``, ``suspension_type``, ``donor_id``, ``sex``, ``development_stage`` and
    ``dataset_id``. ``uns["census"]`` says where they are from: ``version``, ``organism``,
    ``filter``, ``datasets``, ``few`` (types with fewer than 10 cells) and ``licence``.

    Raises
    ------
    ImportError
        The package cellxgene-census is not installed.
    ConnectionError
        Census cannot be reached.
    ValueError
        ``max_cells`` is below 1, or no cell fulfils the conditions.

    Notes
    -----
    The source is CZI Cell Science Program et al. 2025, "CZ CELLxGENE Discover: a single-cell data
    platform for scalable exploration, analysis and modeling of aggregated data", Nucleic Acids
    Research 53. Data are CC BY 4.0: cite Census and the studies whose ids are in ``datasets``.

    Examples
    --------
    With a network::

        ref = sctool.datasets.census("human", "blood", census_version="2025-01-30")
        sctool.tl.annotate(adata, ref)
    """
    if max_cells < 1:
        raise ValueError(f"max_cells={max_cells!r}: pass at least 1.")
    try:
        import cellxgene_census
        import tiledbsoma
    except ImportError as error:
        raise ImportError(
            "datasets.census needs the package cellxgene-census: run "
            "pip install 'sctool-annotate[census]'."
        ) from error
    try:
        soma = cellxgene_census.open_soma(census_version=census_version)
    except (OSError, tiledbsoma.SOMAError) as error:
        raise ConnectionError(
            f"CELLxGENE Census cannot be reached ({type(error).__name__}): datasets.census reads "
            "from the network. Run it where there is one, and keep the result with write_h5ad."
        ) from error
    with soma:
        ref = _draw_cells(soma, organism, tissue, max_cells, obs_value_filter, random_state)
    ref.uns["census"]["version"] = census_version
    return ref


def _draw_cells(
    soma: Any,
    organism: str,
    tissue: str | None,
    max_cells: int,
    obs_value_filter: str,
    random_state: int,
) -> AnnData:
    """The reference of :func:`census`, from an open collection of the same shape."""
    import cellxgene_census

    from sctool._data._sample import at_most

    organism = ORGANISMS.get(organism, organism)
    conditions = ["is_primary_data == True", "cell_type_ontology_term_id != 'unknown'"]
    if tissue is not None:
        conditions.append(f"tissue_general == {tissue!r}")
    if obs_value_filter:
        conditions.append(f"({obs_value_filter})")
    condition = " and ".join(conditions)
    cells = cellxgene_census.get_obs(
        soma, organism, value_filter=condition, column_names=["soma_joinid", "cell_type"]
    )
    if cells.empty:
        raise ValueError(
            f"No cell of Census fulfils {condition!r}: check the names of organism, tissue (such "
            "as 'blood') and of what obs_value_filter compares."
        )
    types = cells["cell_type"].astype(str)
    drawn = at_most(types.to_numpy(), max_cells, np.random.default_rng(random_state))
    ref = cellxgene_census.get_anndata(
        soma,
        organism,
        obs_coords=np.sort(cells["soma_joinid"].to_numpy()[drawn]),
        obs_column_names=["soma_joinid", *COLUMNS],
        var_column_names=["feature_id", "feature_name"],
    )
    ref.obs.index = ref.obs.pop("soma_joinid").astype(str).to_numpy()
    ref.var.index = ref.var["feature_id"].astype(str).to_numpy()
    for column in COLUMNS:
        ref.obs[column] = ref.obs[column].astype(str).astype("category")
    n = types.value_counts()
    few = sorted(n.index[n < FEW_CELLS])
    if few:
        logger.warning("Types with fewer than %d cells: %r.", FEW_CELLS, few)
    ref.uns["census"] = {
        "organism": organism,
        "filter": condition,
        "datasets": sorted(ref.obs["dataset_id"].cat.categories),
        "few": few,
        "licence": "CC BY 4.0",
    }
    return ref
