"""Known markers among the genes that explain a type: ``python -m sctool_benchmark.markers -o DIR``.

scNym's figure 2A: a model is trained on a reference, its names of the query are explained, and the
known markers (``markers.toml``) among the 20 highest genes of each type are counted, beside a test
for differential expression between the same names.
"""

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import pandas as pd

from sctool import tl
from sctool_benchmark._markdown import frame_as_markdown
from sctool_benchmark._run import provenance
from sctool_benchmark._tasks import HERE, LABELS, load_suite, locate, read, split

#: Methods of `sctool.tl.explain`, the paper's first.
EXPLAINED_BY = ("guided", "expected_gradients")
T_TEST = "t-test"
N_GENES = 20
QUIET = {"enable_progress_bar": False}


def known_markers() -> dict[str, list[str]]:
    """Known markers by type."""
    entries = tomllib.loads((HERE / "markers.toml").read_text(encoding="utf-8"))
    return {name: list(genes) for name, genes in entries.items()}


def top_genes(query: ad.AnnData, reference: ad.AnnData, seed: int) -> dict[str, pd.DataFrame]:
    """Annotate a query by scNym and list the genes that explain its names.

    Parameters
    ----------
    query, reference
        The cells; the query is annotated in place.
    seed
        Seed of the run.

    Returns
    -------
    For each way to explain the highest genes of each type, a column a type, and under
    ``"measured"`` a column of all genes that the model sees.
    """
    import scanpy as sc

    model = tl.annotate(
        query,
        reference,
        labels_key=LABELS,
        method="scnym",
        random_state=seed,
        return_model=True,
        train_kwargs=QUIET,
    )
    found = {}
    for method in EXPLAINED_BY:
        tl.explain(query, model, method=method, n_genes=N_GENES, random_state=seed)
        said = query.uns["sctool_explain"]
        found[method] = pd.DataFrame(said["genes"].T, columns=list(said["names"]))
    genes = list(model.features_.selected)
    cells = query[:, genes].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    names = cells.obs["sctool"].astype(str)
    cells = cells[names.isin(found[EXPLAINED_BY[0]].columns)].copy()
    cells.obs["name"] = pd.Categorical(names[cells.obs_names])
    enough = cells.obs["name"].value_counts() > 1
    sc.tl.rank_genes_groups(cells, "name", groups=sorted(enough.index[enough]), n_genes=N_GENES)
    found[T_TEST] = pd.DataFrame(cells.uns["rank_genes_groups"]["names"])
    found["measured"] = pd.DataFrame({"genes": genes})
    return found


def recovered(
    found: Mapping[str, pd.DataFrame], markers: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Count the known markers among the highest genes of each type.

    Parameters
    ----------
    found
        See `top_genes`.
    markers
        Known markers by type. Those that the model does not see are not counted.

    Returns
    -------
    A row a type that both sides name: ``type``, ``known`` (markers that the model sees, in one
    string), and for each way to explain the share of them that it finds.
    """
    measured = set(found["measured"]["genes"])
    tables = {how: table for how, table in found.items() if how != "measured"}
    rows = []
    for name, genes in markers.items():
        seen = [gene for gene in genes if gene in measured]
        if not seen or any(name not in table for table in tables.values()):
            continue
        shares = {
            how: sum(gene in set(table[name][:N_GENES]) for gene in seen) / len(seen)
            for how, table in tables.items()
        }
        rows.append({"type": name, "known": ", ".join(seen), **shares})
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.markers")
    top.add_argument("--task", action="append", metavar="NAME", help="one of the suite's; repeated")
    top.add_argument("-o", "--out", type=Path, metavar="DIR", required=True)
    args = top.parse_args(argv)
    parts = []
    for task in load_suite("scnym_markers").tasks:
        if args.task and task.name not in args.task:
            continue
        try:
            cells = split(read(task, locate(task)), task, 0)
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        found = top_genes(cells.query, cells.reference, 0)
        parts.append(recovered(found, known_markers()).assign(task=task.name))
        print(parts[-1], file=sys.stderr, flush=True)
    if not parts:
        return 2
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "task", table.pop("task"))
    ways = [*EXPLAINED_BY, T_TEST]
    means = table.groupby("task", sort=False)[ways].mean().reset_index().assign(type="mean")
    table = pd.concat([table, means, means[ways].mean().to_frame().T.assign(task="mean")])
    args.out.mkdir(parents=True, exist_ok=True)
    text = frame_as_markdown(table) + provenance("markers", argv)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
