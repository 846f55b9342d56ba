"""The papers' pictures of embeddings: how cells lie, and how clusters come to be in training.

``python -m sctool_benchmark.embeddings clusters --data pollen -o DIR`` draws figures 2 to 4 of the
CICL paper: t-SNE of the embeddings of several methods, of CICL after some of its epochs, and the
agreement of its clusters with the types after each epoch. ``types --data baron_segerstolpe`` draws
figure 2 of the scDET paper: UMAP of embeddings, by truth and by prediction.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.manifold import TSNE

from sctool import metrics, tl
from sctool._neighbors import k_means
from sctool.model import CLUSTER_METHODS, METHODS
from sctool_benchmark._ablations import ABLATIONS, CLUSTER_ABLATIONS
from sctool_benchmark._figures import plot_cells, plot_epochs
from sctool_benchmark._run import provenance
from sctool_benchmark._tasks import (
    LABELS,
    Method,
    Task,
    choose,
    known_data,
    known_methods,
    locate,
    read,
    split,
)

#: Epochs after which the embedding is drawn, beside the last (figure 3 of the CICL paper).
EPOCHS = (1, 4, 7)
KEY = "found"


class Watch(Callback):
    """After each epoch: k-means on the embedding, and its agreement with types CICL never sees.

    Parameters
    ----------
    truth
        Type of each cell, (n_cells,).
    kept
        Epochs, from 1, whose embedding is kept.
    """

    def __init__(self, truth: np.ndarray, kept: Sequence[int] = EPOCHS):
        self.truth, self.kept = truth, kept
        self.rows: list[dict[str, float]] = []
        self.embeddings: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Embed and cluster all cells."""
        plan: Any = pl_module
        epoch, module = trainer.current_epoch + 1, plan.module
        module.eval()
        h = module.embed(plan.cells[slice(None)]["x"].to(plan.device)).cpu().numpy()
        module.train()
        found = k_means(h, plan.n_clusters, seed=0, n_init=3).labels_.astype(str)
        scores = {"ari": metrics.ari(self.truth, found), "nmi": metrics.nmi(self.truth, found)}
        self.rows.append({"epoch": epoch} | scores)
        if epoch in self.kept:
            self.embeddings[epoch] = h


def tsne(embedding: np.ndarray, seed: int) -> np.ndarray:
    """Place cells in the plane, (n_cells, 2)."""
    perplexity = min(30, (len(embedding) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(embedding)


def umap(embedding: np.ndarray, seed: int) -> np.ndarray:
    """Place cells in the plane, (n_cells, 2), as scanpy does."""
    import scanpy as sc

    cells = ad.AnnData(obsm={"z": embedding}, shape=(len(embedding), 0))
    sc.pp.neighbors(cells, use_rep="z", random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def draw_clusters(
    cells: ad.AnnData,
    truth: pd.Series,
    methods: Sequence[Method],
    seed: int,
    max_epochs: int | None,
    out: Path,
) -> pd.DataFrame:
    """Draw ``tsne.png``, ``tsne_epochs.png`` and ``epochs.png``; return the latter's numbers.

    Parameters
    ----------
    cells, truth
        The cells without labels, and the type of each.
    methods
        Methods that cluster; the first one is watched, and must be CICL.
    seed
        Seed of training and of the pictures.
    max_epochs
        Epochs of all methods; None: as many as their presets say.
    out
        Folder of the pictures.
    """
    names = truth.astype(str).to_numpy()
    watch = Watch(names)
    panels: list[tuple[str, np.ndarray, np.ndarray]] = []
    for method in methods:
        name, query = method.name, cells.copy()
        watched = {} if panels else {"callbacks": [watch]}
        told: dict[str, Any] = {}
        if method.method in CLUSTER_METHODS:
            train = {"enable_progress_bar": False, "max_epochs": max_epochs} | watched
            told = {"model_kwargs": method.model_kwargs, "train_kwargs": train}
        tl.cluster(
            query,
            method=str(method.method),
            n_clusters=len(np.unique(names)),
            key_added=KEY,
            random_state=seed,
            **told,
        )
        place = tsne(query.obsm[f"X_{KEY}"], seed)
        found = query.obs[KEY].astype(str).to_numpy()
        title = f"{name}: ARI {metrics.ari(names, found):.2f}"
        panels += [(title, place, names)]
        if len(panels) == 1:
            last = (place, found)
    plot_cells([panels], out / "tsne.png")
    rows = pd.DataFrame(watch.rows)
    steps = [(f"epoch {e}", tsne(h, seed)) for e, h in watch.embeddings.items()]
    steps.append((f"epoch {len(rows)}", last[0]))
    found_after = [
        k_means(h, len(np.unique(names)), 0, 3).labels_.astype(str)
        for h in watch.embeddings.values()
    ]
    upper = [(t, p, f) for (t, p), f in zip(steps, [*found_after, last[1]], strict=True)]
    plot_cells([upper, [(title, place, names) for title, place in steps]], out / "tsne_epochs.png")
    plot_epochs(rows, out / "epochs.png")
    return rows


def draw_types(
    task: Task, methods: Sequence[Method], seed: int, max_epochs: int | None, out: Path
) -> None:
    """Draw ``umap.png``: for each method the query's cells by truth, above, and by prediction.

    Parameters
    ----------
    task
        A task with a reference that lacks types.
    methods, seed, max_epochs, out
        As of `draw_clusters`; all methods are told the number of novel types.
    """
    parts = split(read(task, locate(task)), task, seed)
    truth = parts.truth.astype(object).fillna("unknown").astype(str).to_numpy()
    by_truth, by_name = [], []
    for method in methods:
        name, query = method.name, parts.query.copy()
        model = METHODS[str(method.method)]
        preset = method.model_kwargs.get("preset", "default")
        try:
            model._settings_for_novel(n_novel := len(parts.novel), preset)
            novel: int | str = n_novel
        except ValueError:
            novel = "auto"
        tl.annotate(
            query,
            parts.reference,
            labels_key=LABELS,
            method=str(method.method),
            layer=task.layer,
            novel=novel,
            key_added=KEY,
            random_state=seed,
            model_kwargs=method.model_kwargs or None,
            train_kwargs={"enable_progress_bar": False, "max_epochs": max_epochs},
        )
        place, found = umap(query.obsm[f"X_{KEY}"], seed), query.obs[KEY].astype(str).to_numpy()
        score = metrics.overall_accuracy(truth, found, parts.seen)
        by_truth.append((f"{name}: truth", place, truth))
        by_name.append((f"{name}: predicted, overall {score:.2f}", place, found))
    plot_cells([by_truth, by_name], out / "umap.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m sctool_benchmark.embeddings")
    parser.add_argument("figure", choices=["clusters", "types"])
    parser.add_argument(
        "--data",
        help="name in data.toml (default: pollen for clusters, baron_segerstolpe for types, which "
        "needs a reference and a query)",
    )
    parser.add_argument("--methods", metavar="A,B", help="default: those of the paper that run")
    parser.add_argument("--hidden", type=int, default=2, metavar="N", help="types that are novel")
    parser.add_argument("--max-epochs", type=int, metavar="N", help="default: of the presets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(arguments)
    METHODS.update(ABLATIONS)
    CLUSTER_METHODS.update(CLUSTER_ABLATIONS)
    args.out.mkdir(parents=True, exist_ok=True)
    usual = {
        "clusters": ("pollen", "cicl,clear,scdeepcluster,leiden"),
        "types": ("baron_segerstolpe", "scdet,scgad,mars,scnym"),
    }
    data, methods = usual[args.figure]
    args.data = args.data or data
    entry = known_data()[args.data]
    chosen = choose(known_methods(), (args.methods or methods).split(","))
    rest = (args.seed, args.max_epochs, args.out)
    if args.figure == "types":
        task = Task(name=args.data, data=args.data, kind="masked", n_masked=args.hidden, **entry)
        draw_types(task, chosen, *rest)
    else:
        task = Task(name=args.data, data=args.data, kind="cluster", **entry)
        parts = split(read(task, locate(task)), task, args.seed)
        cells, truth = parts.query, parts.truth
        rows = draw_clusters(cells[truth.notna().to_numpy()].copy(), truth.dropna(), chosen, *rest)
        rows.to_csv(args.out / "epochs.csv", index=False)
    (args.out / "made_by.md").write_text(provenance("embeddings", arguments), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
