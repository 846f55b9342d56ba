"""The command line: ``python -m sctool_benchmark.several -o DIR``.

Annotates queries with several references at once, with each of them alone, and with their cells
joined into one reference. No label of a query is read before the comparison. What is done is kept
in ``runs.csv``, so that a call that was interrupted goes on.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from sctool import metrics, tl
from sctool_benchmark._markdown import frame_as_markdown
from sctool_benchmark._run import provenance
from sctool_benchmark._tasks import Task, known_data, locate, read

LABELS, SIDE = "cell_type", "several_reference"
#: Names that the files of the same cells have for the same types.
KANG = {
    "B cells": "B",
    "CD14+ Monocytes": "Mono_CD14",
    "CD4 T cells": "T_CD4",
    "CD8 T cells": "T_CD8",
    "Dendritic cells": "DC",
    "FCGR3A+ Monocytes": "Mono_CD16",
    "Megakaryocytes": "MK",
    "NK cells": "NK",
}
#: Coarser labels, some with other names.
COARSE = {
    "B": "B cell",
    "Mono_CD14": "Monocyte",
    "Mono_CD16": "Monocyte",
    "T_CD4": "T cell",
    "T_CD8": "T cell",
}
#: The sorted populations of Zheng et al.; the subsets of T cells are scored as T cells.
SORTED = {
    "CD14+ Monocyte": "Mono_CD14",
    "CD19+ B": "B",
    "CD56+ NK": "NK",
    "CD4+ T Helper2": "T",
    "CD4+/CD25 T Reg": "T",
    "CD4+/CD45RA+/CD25- Naive T": "T",
    "CD4+/CD45RO+ Memory": "T",
    "CD8+ Cytotoxic T": "T",
    "CD8+/CD45RA+ Naive Cytotoxic": "T",
    "T_CD4": "T",
    "T_CD8": "T",
}
#: Groups of donors of the Kang data, each a reference, and the donors to be annotated.
DONORS, LEFT_OUT = (("1015", "1256"), ("1488", "1244"), ("1016", "107")), ("101", "1039")
N_REFERENCE, N_SMALL, N_QUERY = 1200, 300, 2500


@dataclass(frozen=True)
class Case:
    """A query with its truth, and the references by name.

    ``same`` are names of types that are scored as one. ``tuned`` says whether settings may be
    chosen on these data, and ``joined`` whether the cells can be joined: by name alone.
    """

    name: str
    query: ad.AnnData
    references: Mapping[str, ad.AnnData]
    same: Mapping[str, str] = field(default_factory=dict)
    tuned: bool = True
    joined: bool = True


def _data(name: str) -> ad.AnnData:
    task = Task(name=name, kind="pair", data=name, file=known_data()[name]["file"])
    return read(task, locate(task))


def _some(adata: ad.AnnData, n: int) -> ad.AnnData:
    rng = np.random.default_rng(0)
    return adata[np.sort(rng.permutation(adata.n_obs)[:n])].copy()


def _renamed(adata: ad.AnnData, names: Mapping[str, str]) -> ad.AnnData:
    adata = adata.copy()
    adata.obs[LABELS] = adata.obs[LABELS].astype(str).map(lambda name: names.get(name, name))
    return adata


def _without(adata: ad.AnnData, *types: str) -> ad.AnnData:
    return adata[~adata.obs[LABELS].isin(types)].copy()


def _shuffled(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    rng = np.random.default_rng(0)
    adata.obs[LABELS] = rng.permutation(adata.obs[LABELS].astype(str).to_numpy())
    return adata


def _side(adata: ad.AnnData, side: str) -> ad.AnnData:
    return adata[adata.obs["split"] == side].copy()


def cases() -> dict[str, Callable[[], Case]]:
    """All cases, by name; the data are read when one is called."""
    found: dict[str, Callable[[], Case]] = {}

    def blood(name: str, make: Callable[..., Case]) -> None:
        def call() -> Case:
            kang = _renamed(_data("kang"), KANG)
            donor = kang.obs["batch"].astype(str)
            groups = [_some(kang[donor.isin(donors)], N_REFERENCE) for donors in DONORS]
            queries = [kang[donor == one].copy() for one in LEFT_OUT]
            pair = _data("pbmc3k_kang")
            zheng = _side(_data("two_labs"), "reference")
            pbmc3k, query = _side(pair, "reference"), _some(_side(pair, "query"), N_QUERY)
            return make(name, groups, queries, pbmc3k, zheng, query)

        found[name] = call

    def donors(i: int) -> Callable[..., Case]:
        return lambda name, groups, queries, *_: Case(
            name, queries[i], {f"donors_{k}": g for k, g in enumerate(groups, 1)}
        )

    for i, one in enumerate(LEFT_OUT):
        blood(f"kang_donor_{one}", donors(i))
    blood(
        "pbmc3k_and_zheng",
        lambda name, g, q, pbmc3k, zheng, query: Case(
            name, query, {"pbmc3k": pbmc3k, "zheng": zheng}
        ),
    )
    blood(
        "each_lacks_types",
        lambda name, g, q, pbmc3k, zheng, query: Case(
            name,
            query,
            {"pbmc3k": _without(pbmc3k, "B", "NK"), "zheng": _without(zheng, "T_CD8")},
        ),
    )
    blood(
        "both_lack_nk",
        lambda name, g, q, pbmc3k, zheng, query: Case(
            name,
            query,
            {"pbmc3k": _without(pbmc3k, "NK"), "zheng": _without(zheng, "NK", "B")},
        ),
    )
    blood(
        "shuffled_labels",
        lambda name, g, q, *_: Case(name, q[0], {"donors_1": g[0], "shuffled": _shuffled(g[1])}),
    )
    blood(
        "coarser_labels",
        lambda name, g, q, *_: Case(
            name,
            q[0],
            {"small": _some(g[0], N_SMALL), "coarse": _renamed(g[1], COARSE)},
            joined=False,
        ),
    )
    blood(
        "finer_labels",
        lambda name, g, q, pbmc3k, zheng, query: Case(
            name, query, {"pbmc3k": pbmc3k, "sorted": _data("zheng")}, SORTED, joined=False
        ),
    )
    blood(
        "another_study",
        lambda name, g, q, pbmc3k, zheng, query: Case(
            name, q[0], {"donors_1": g[0], "zheng": zheng}
        ),
    )
    blood(
        "small_other_and_shuffled",
        lambda name, g, q, pbmc3k, *_: Case(
            name,
            q[0],
            {"small": _some(g[0], N_SMALL), "pbmc3k": pbmc3k, "shuffled": _shuffled(g[1])},
        ),
    )

    def halves(name: str, data: str, n: int, coarse: Mapping[str, str]) -> None:
        """A few cells of the query's own study, and a reference of another one."""

        def call() -> Case:
            adata = _data(data)
            own, other = _side(adata, "query"), _side(adata, "reference")
            first = np.isin(
                np.arange(own.n_obs), np.random.default_rng(0).permutation(own.n_obs)[:n]
            )
            refs = {"own": own[first].copy(), "other": other}
            return Case(name, own[~first].copy(), refs, coarse, tuned=False)

        found[name] = call

    halves("mouse_and_human", "pbmc3k_mouse", 200, {})
    halves("plates_and_droplets", "baron_segerstolpe", 150, {})
    return found


def score(case: Case, result: ad.AnnData, key: str = "sctool") -> dict[str, float]:
    """Compare an annotation with the truth."""

    def merged(names: pd.Series) -> np.ndarray:
        text = names.astype(object).fillna("").astype(str)
        return text.map(lambda name: case.same.get(name, name)).to_numpy(dtype=str)

    truth, found = merged(case.query.obs[LABELS]), merged(result.obs[key])
    labels = {str(name) for ref in case.references.values() for name in ref.obs[LABELS]}
    known = {case.same.get(name, name) for name in labels}
    seen = np.isin(truth, list(known))
    none = np.zeros(len(truth), dtype=bool)
    novel = result.obs[f"{key}_novel"].to_numpy() if f"{key}_novel" in result.obs else none
    told = result.uns[key]["reasons"]
    disagree = told.index[told["reason"].astype(str).str.startswith("references disagree")]
    there = seen & result.obs_names.isin(disagree)
    return {
        "seen_accuracy": metrics.seen_accuracy(truth, found, known),
        "macro_f1": metrics.macro_f1(truth, found, known),
        "ece": metrics.ece(truth, found, result.obs[f"{key}_score"], seen=known),
        "false_novel": metrics.false_novel(truth, novel, known),
        "novel_recall": metrics.novel_recall(truth, novel, known),
        "novel_auroc": metrics.novel_auroc(truth, result.obs[f"{key}_novel_score"], known),
        "disagree": there.sum() / seen.sum(),
        "error_there": np.mean(found[there] != truth[there]) if there.any() else np.nan,
    }


def run(case: Case, how: str, method: str) -> dict[str, Any]:
    """One annotation: with a single reference, with "joined" cells, or with "several"."""
    query = ad.AnnData(case.query.X.copy(), var=case.query.var, obs=case.query.obs[[]].copy())
    options: dict[str, Any] = {}
    ref: Any = list(case.references.values())
    if how == "joined":
        ref = ad.concat(dict(case.references), label=SIDE, index_unique="-")
        query.obs[SIDE] = "query"
        options["batch_key"] = SIDE
    elif how != "several":
        ref = case.references[how]
    start = time.perf_counter()
    tl.annotate(query, ref, method=method, train_kwargs={"enable_progress_bar": False}, **options)
    seconds = time.perf_counter() - start
    return {**score(case, query), "seconds": seconds}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    known = cases()
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.several")
    top.add_argument("--case", action="append", choices=list(known), help="default: all")
    top.add_argument("--method", action="append", help="repeated for several (default: auto)")
    top.add_argument("-o", "--out", type=Path, metavar="DIR", required=True)
    args = top.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = args.out / "runs.csv"
    done = pd.read_csv(runs) if runs.exists() else pd.DataFrame(columns=["case", "method", "how"])
    for name in args.case or known:
        try:
            case = known[name]()
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        for method in args.method or ["auto"]:
            for how in ["several", *case.references, *(["joined"] if case.joined else [])]:
                if (
                    (done["case"] == name) & (done["method"] == method) & (done["how"] == how)
                ).any():
                    continue
                row = {"case": name, "tuned": case.tuned, "method": method, "how": how}
                row |= run(case, how, method)
                done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
                done.to_csv(runs, index=False)
    if not len(done):
        return 2
    made = provenance("several", argv)
    (args.out / "table.md").write_text(as_markdown(done) + made, encoding="utf-8")
    print((args.out / "table.md").read_text(encoding="utf-8"))
    return 0


def as_markdown(runs: pd.DataFrame) -> str:
    """All runs, and the loss or gain over the best single reference, in Markdown."""
    measured = ["seen_accuracy", "macro_f1", "ece", "false_novel", "novel_recall", "novel_auroc"]
    columns = ["case", "tuned", "method", "how", *measured, "disagree", "error_there", "seconds"]
    text = frame_as_markdown(runs.reindex(columns=columns))
    gains = []
    for (name, method), own in runs.groupby(["case", "method"], sort=False):
        by = own.set_index("how")["seen_accuracy"]
        single = by.drop(["several", "joined"], errors="ignore")
        if "several" in by and len(single):
            gain = {"case": name, "tuned": own["tuned"].iloc[0], "method": method}
            gain |= {"best single": single.max(), "several": by["several"]}
            gains.append(gain | {"gain": by["several"] - single.max(), "joined": by.get("joined")})
    if not gains:
        return text
    table = pd.DataFrame(gains)
    means = table.groupby(["tuned", "method"], sort=False)[["best single", "several", "gain"]]
    mean = means.mean().reset_index().assign(case="**mean**")
    both = pd.concat([table, mean]).reindex(columns=table.columns)
    title = "Accuracy of known cells beside the best single reference:"
    return f"{text}\n{title}\n\n{frame_as_markdown(both)}"


if __name__ == "__main__":
    sys.exit(main())
