"""CICL: clustering without a reference, by cluster-aware contrastive learning.

Jiang, Wang, Guan and Zhou, "scRNA-seq Data Clustering by Cluster-aware Iterative Contrastive
Learning". ``docs/methods/cicl.md`` has the maths and explains the default preset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from sctool import _data, _neighbors
from sctool._batches import Cells, Splitter
from sctool._checks import Count, NonNegative, Part, Positive, Share, Whole
from sctool._docs import docs
from sctool._neighbors import fit_pca, group_means, k_means
from sctool._train import Plan, TrainOptions, fit, n_epochs, numpy_generator
from sctool.losses import cluster_contrast, instance_contrast, student_t
from sctool.model._base import CellModel, NetworkSettings, change_settings, check_registrable
from sctool.nn import TransformerLayer

Batch = dict[str, dict[str, Tensor]]

#: Minimum mean number of cells per centroid; number of draws of centroids, of which one is kept.
MIN_MEMBERS, DRAWS = 4, 12


@dataclass(frozen=True)
class CICLSettings(NetworkSettings):
    """Hyperparameters of CICL; the values here are the default preset's.

    Parameters
    ----------
    n_clusters
        Number of clusters; None estimates it.
    n_components
        Number of principal components used as input; None uses the standardised genes.
    attention
        Tokens of the transformer: "parts" of one cell's inputs; the "cells" of a batch (eqs. 3
        and 4); or "none", each cell a sequence of one token, so that attention is a linear map.
    n_parts, width
        With ``attention="parts"``: tokens per cell, and their width, also that of the embedding.
        Otherwise the token of a cell is its inputs.
    n_layers, n_heads, d_head, n_hidden, dropout
        Layers, heads, width of each head, hidden units and dropout of the transformer.
    projection
        Units of the two layers of the projection head.
    masked
        Share of the genes that a view masks.
    noisy, noise
        Share of the inputs to which a view adds noise, and the noise's standard deviation.
    rescaled
        Rescale the noise of each minibatch to [0, 1].
    n_neighbors
        The second view is of a random one of this many nearest neighbours; 0: of the cell itself.
    temperature
        Temperature of both contrastive losses.
    cluster_weight
        Weight of the cluster-aware loss, lambda in eq. 17.
    joined
        Cluster the encoder's output together with its inputs, each scaled to a total variance of 1.
    n_prototypes
        Number of k-means centroids per cluster, which are then merged by expression and by the
        encoder's output. 1 is plain k-means.
    """

    target_sum: Positive | None = None
    n_clusters: Count | None = None
    n_components: Whole | None = 50
    attention: Literal["parts", "cells", "none"] = "parts"
    n_parts: Count = 4
    width: Count = 32
    n_layers: Whole = 4
    n_heads: Count = 4
    d_head: Count = 8
    n_hidden: Count = 64
    dropout: Part = 0.1
    projection: tuple[Count, Count] = (32, 32)
    masked: Part = 0.3
    noisy: Share = 0.0
    noise: NonNegative = 0.0
    rescaled: bool = False
    n_neighbors: Whole = 15
    temperature: Positive = 0.5
    cluster_weight: NonNegative = 0.1
    joined: bool = True
    n_prototypes: Count = 4
    min_steps: Count = 200


#: Section 2 and table 2 of the paper; the documentation lists what they do not specify.
PAPER = CICLSettings(
    n_top_genes=500,
    n_components=None,
    attention="cells",
    n_heads=2,
    d_head=512,
    n_hidden=1024,
    dropout=0.0,
    projection=(1024, 512),
    masked=0.0,
    noisy=1.0,
    noise=1.0,
    rescaled=True,
    n_neighbors=0,
    joined=False,
    n_prototypes=1,
    lr=1e-5,
    batch_size=6000,
    max_epochs=1000,
)
#: The authors' program, where it differs from the paper.
CODE = change_settings(
    PAPER,
    {"attention": "none", "dropout": 0.2, "noisy": 0.8, "noise": 0.5, "rescaled": False},
    "CICL",
)


class CICLModule(nn.Module):
    """Transformer encoder, projection head, and centroids of the clustering head.

    Parameters
    ----------
    n_input
        Number of genes.
    n_centroids
        Number of centroids of the clustering head.
    settings
        Hyperparameters.
    """

    mean: Tensor  # of each gene, (n_input,)
    scale: Tensor  # divisor of each gene, (n_input,)
    components: Tensor  # (n_components, n_input), or (0, n_input) without principal components
    blocks: Tensor  # factors of the two parts of the embedding, (2,)
    centroids: Tensor  # (n_centroids, n_latent)
    cluster_of: Tensor  # cluster of each centroid, (n_centroids,)

    def __init__(self, n_input: int, n_centroids: int, settings: CICLSettings):
        super().__init__()
        self.settings = s = settings
        self.register_buffer("mean", torch.zeros(n_input))
        self.register_buffer("scale", torch.ones(n_input))
        self.register_buffer("components", torch.zeros(s.n_components or 0, n_input))
        n = s.n_components or n_input
        self.width = width = s.width if s.attention == "parts" else n
        self.n_latent = width + n if s.joined else width
        self.register_buffer("blocks", torch.ones(2))
        self.register_buffer("centroids", torch.zeros(n_centroids, self.n_latent))
        self.register_buffer("cluster_of", torch.zeros(n_centroids, dtype=torch.long))
        self.tokens = nn.Linear(n, s.n_parts * width) if s.attention == "parts" else nn.Identity()
        self.layers = nn.Sequential(
            *(
                TransformerLayer(width, s.n_heads, s.d_head, s.n_hidden, s.dropout)
                for _ in range(s.n_layers)
            )
        )
        # No biases: eqs. 10 and 11
        self.projector = nn.Sequential(
            nn.Linear(width, s.projection[0], bias=False),
            nn.ReLU(),
            nn.Linear(*s.projection, bias=False),
        )

    def inputs(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Network inputs from log1p values, with the ``hidden`` genes masked."""
        x = (x - self.mean) / self.scale
        if hidden is not None:
            x = x.masked_fill(hidden, 0.0)
        return x @ self.components.T if len(self.components) else x

    def view(self, x: Tensor) -> Tensor:
        """Inputs of a random view of the cells."""
        s = self.settings
        inputs = self.inputs(x, torch.rand_like(x) < s.masked if s.masked else None)
        if not s.noise:
            return inputs
        noise = s.noise * torch.randn_like(inputs)
        if s.rescaled:
            noise = (noise - noise.min()) / (noise.max() - noise.min())
        return inputs + noise * (torch.rand_like(inputs) < s.noisy)

    def encode(self, inputs: Tensor) -> Tensor:
        """Output of the transformer, (n_cells, width) (section 2.2.2)."""
        attention = self.settings.attention
        if attention == "cells":
            return self.layers(inputs[None])[0]
        if attention == "none":
            return self.layers(inputs[:, None])[:, 0]
        return self.layers(self.tokens(inputs).unflatten(1, (-1, self.width))).mean(dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Embedding of log1p values, (n_cells, n_latent)."""
        inputs = self.inputs(x)
        h = self.encode(inputs)
        if not self.settings.joined:
            return h
        return torch.cat([h * self.blocks[0], inputs * self.blocks[1]], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each cluster (n_cells, n_clusters), and embedding of log1p values.

        Eq. 8 with the nearest centroid of each cluster.
        """
        h = self.embed(x)
        q = student_t(h, self.centroids)
        index = self.cluster_of.expand(len(q), -1)
        nearest = q.new_zeros(len(q), int(self.cluster_of.max()) + 1)
        nearest = nearest.scatter_reduce(1, index, q, "amax")
        return nearest / nearest.sum(dim=1, keepdim=True), h

    @torch.no_grad()
    def pseudo_labels(
        self, x: Tensor, n_clusters: int, gather: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Tensor:
        """Cluster of each cell of a minibatch, (n_cells,) (eqs. 8 and 9)."""
        training = self.training
        self.eval()
        h = gather(self.encode(self.inputs(x)))
        self.train(training)
        # from torch's generator, which is the seeded one; of several processes, the first's
        seed = int(gather(torch.randint(2**31, (1,)).to(x.device))[0])
        centroids = k_means(h.cpu().numpy(), n_clusters, seed, n_init=1).cluster_centers_
        return student_t(h, torch.from_numpy(centroids).to(h)).argmax(dim=1)

    def loss(
        self,
        x: Tensor,
        other: Tensor,
        n_clusters: int,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one minibatch (eq. 17), and its terms.

        Parameters
        ----------
        x
            Log1p values, (n_cells, n_genes).
        other
            Log1p values of the positive partner of each cell of ``x``, (n_cells, n_genes).
        gather
            Concatenates the cells of all processes that share the minibatch.
        """
        s = self.settings
        views = self.view(x), self.view(other)
        # Encoded separately: in one batch the two views of a cell would attend to each other.
        z, z_other = (gather(self.projector(self.encode(inputs))) for inputs in views)
        terms = {"instance": instance_contrast(z, z_other, s.temperature)}
        total = terms["instance"]
        if s.cluster_weight:
            labels = self.pseudo_labels(x, n_clusters, gather)
            terms["cluster"] = cluster_contrast(z, z_other, labels, s.temperature)
            total = total + s.cluster_weight * terms["cluster"]
        return total, terms


def partition(
    h: np.ndarray,
    encoded: np.ndarray,
    x: sp.csr_matrix,
    n_clusters: int,
    n_prototypes: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids, and the cluster of each, the largest cluster first.

    K-means splits a large cluster rather than keep a small one separate. Therefore more centroids
    than clusters are fitted, and similar ones are merged. Of several draws, the one whose clusters
    agree best with those of the other draws (mean ARI) is kept.

    Parameters
    ----------
    h
        Embedding in which the centroids are fitted, (n_cells, n_latent).
    encoded, x
        Output of the encoder, (n_cells, width), and log1p values, CSR (n_cells, n_genes), by which
        centroids are merged.

    Returns
    -------
    (n_centroids, n_latent) float32, and (n_centroids,) codes.
    """
    n_centroids = max(min(n_clusters * n_prototypes, len(h) // MIN_MEMBERS), n_clusters)
    if n_centroids == n_clusters:
        centroids, labels = _occupied(k_means(h, n_centroids, seed))
        codes = np.arange(len(centroids))
    else:
        rng = np.random.default_rng(seed)
        draws = []
        for _ in range(DRAWS):
            centroids, labels = _occupied(k_means(h, n_centroids, int(rng.integers(2**31)), 1))
            codes = merge_groups(group_means(x, labels), group_means(encoded, labels), n_clusters)
            draws.append((centroids, codes, labels))
        clusters = [codes[labels] for _, codes, labels in draws]
        likeness = [sum(adjusted_rand_score(a, b) for b in clusters) for a in clusters]
        centroids, codes, labels = draws[int(np.argmax(likeness))]
    by_size = np.argsort(-np.bincount(codes[labels]), kind="stable")
    return centroids.astype(np.float32), np.argsort(by_size)[codes]


def _occupied(found: KMeans) -> tuple[np.ndarray, np.ndarray]:
    """Non-empty centroids, and the centroid of each cell."""
    kept, labels = np.unique(found.labels_, return_inverse=True)
    return found.cluster_centers_[kept], labels


def merge_groups(expression: np.ndarray, encoded: np.ndarray, n: int) -> np.ndarray:
    """Merge groups until ``n`` are left (average linkage, regardless of group size).

    The distance of two groups is the geometric mean of one minus the correlation of their mean
    expression, and of the distance of their means in the encoder's output.

    Parameters
    ----------
    expression, encoded
        Means of each group, (n_groups, n_genes) and (n_groups, width).

    Returns
    -------
    Codes from 0, (n_groups,).
    """
    if len(expression) <= n:
        return np.arange(len(expression))
    # rounding errors can make distances negative
    apart = np.maximum(pdist(expression, "correlation"), 0)
    # The correlation of a group with constant expression is undefined.
    apart[np.isnan(apart)] = 1
    tree = linkage(np.sqrt(apart * pdist(encoded)), "average")
    return cut_tree(tree, n_clusters=n).ravel()


class CICLPlan(Plan):
    """Training plan, algorithm 1 of the paper."""

    shareable = True

    module: CICLModule

    def __init__(
        self,
        module: CICLModule,
        settings: CICLSettings,
        cells: Cells,
        near: np.ndarray | None,
        n_clusters: int,
    ):
        super().__init__(module, lr=settings.lr)
        self.settings, self.cells, self.near = settings, cells, near
        self.n_clusters = n_clusters

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a minibatch and the positive partners of its cells."""
        x, index = batch["cells"]["x"], batch["cells"]["index"]
        other = x
        if self.near is not None:
            column = torch.randint(self.near.shape[1], (len(index),)).numpy()
            other = self.cells[self.near[index.cpu().numpy(), column]]["x"].to(x)
        total, terms = self.module.loss(x, other, self.n_clusters, self.gather)
        self.log_losses({"loss": total, **terms}, len(x))
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.module.parameters(), lr=self.settings.lr)


@docs.dedent
class CICL(CellModel):
    """CICL: clustering of cells by cluster-aware contrastive learning.

    The encoder learns to match two random views of a cell, and to separate the current clusters;
    its output is then clustered. The weights of the last epoch are kept. With the preset "paper"
    cells attend to each other: a cell's embedding depends on the other cells in its batch.

    Parameters
    ----------
    %(adata)s
    preset
        "default" (tokens of principal components, views of neighbours, a few hundred steps, and
        merged centroids), "paper" (section 2 of the paper: attention over the cells of a batch,
        1,000 epochs) or "code" (one token per cell, as in the authors' program).
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`CICLSettings`, such as ``n_clusters``.

    Examples
    --------
    >>> CICL.setup_anndata(adata)  # doctest: +SKIP
    >>> model = CICL(adata, n_clusters=8)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> adata.obs["cluster"] = model.predict()  # doctest: +SKIP
    """

    PRESETS: ClassVar[dict[str, CICLSettings]] = {
        "default": CICLSettings(),
        "paper": PAPER,
        "code": CODE,
    }
    settings_: CICLSettings
    module: CICLModule

    #: Number of clusters "n" and, if it was estimated, the interval from "low" to "high".
    n_clusters_: dict[str, int]

    def __init__(
        self,
        adata: AnnData,
        preset: str = "default",
        ignore_case: bool = False,
        **settings: Any,
    ):
        super().__init__(adata, preset, ignore_case, settings)

    def _registered_data(self, ignore_case: bool) -> _data.TrainingData:
        return _data.read_cells(self.adata, self._layer(), "training data", ignore_case)

    def _arrays(self, data: _data.TrainingData) -> dict[str, np.ndarray]:
        n, s = data.x.shape[0], self.settings_
        if n < max(_neighbors.MIN_CELLS, s.n_clusters or 1):
            raise ValueError(
                f"{n} cells are too few for {s.n_clusters or 'an unknown number of'} clusters: at "
                f"least {_neighbors.MIN_CELLS} are needed, and one per cluster."
            )
        return {"index": np.arange(n)}

    def _take_outputs(self, data: _data.TrainingData) -> None:
        _neighbors.check_clusterable(self._training_cells().x)
        self._n_centroids = 1

    def _build(self) -> None:
        self.module = CICLModule(len(self.features_.selected), self._n_centroids, self.settings_)
        self._model_summary_string = (
            f"CICL with {len(self.features_.selected)} genes, preset {self.preset_!r}"
        )

    # -- training ------------------------------------------------------------------------------

    def _train(self, options: TrainOptions) -> None:
        s, cells, rng = self.settings_, self._training_cells(), numpy_generator()
        z = self._set_inputs(cells.x)
        n_clusters = s.n_clusters
        if n_clusters is None:
            self.n_clusters_ = _neighbors.count_clusters(z, rng)
            n_clusters = self.n_clusters_["n"]
            self.audit_.append(
                "clusters: estimated number: {n}; interval from subsamples: {low} to {high}".format(
                    **self.n_clusters_
                )
            )
        else:
            self.n_clusters_ = {"n": n_clusters}
        near = None
        if s.n_neighbors:
            # The nearest neighbour is skipped: it may be a duplicate of the cell.
            k = min(s.n_neighbors + 1, len(z) - 1)
            near = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)[:, 1:]
        n_processes = options.n_processes
        if n_processes > 1 and s.attention == "cells":
            raise ValueError(
                "attention='cells' compares the cells of a minibatch inside the network, which "
                f"{n_processes} processes cannot share: pass devices=1, or attention='parts'."
            )
        splitter = Splitter(
            cells,
            {"cells": np.arange(len(cells))},
            np.array([], dtype=int),
            s.batch_size * n_processes,
        )
        plan = CICLPlan(self.module, s, cells, near, n_clusters)
        fit(self, plan, splitter, n_epochs(s, splitter, options), options)
        seed = int(rng.integers(2**31))
        h = self._embed(cells)
        centroids, codes = partition(
            h, h[:, : self.module.width], cells.x, n_clusters, s.n_prototypes, seed
        )
        n_found = int(codes.max()) + 1
        if n_found < n_clusters:
            self.audit_.append(f"clusters: only {n_found} of {n_clusters} contain cells")
            self.n_clusters_ = self.n_clusters_ | {"n": n_found}
            if "low" in self.n_clusters_:
                self.n_clusters_["low"] = min(self.n_clusters_["low"], n_found)
        self._n_centroids = len(centroids)
        device = self.module.centroids.device
        self.module.centroids = torch.from_numpy(centroids).to(device)
        self.module.cluster_of = torch.from_numpy(codes).to(device)

    def _set_inputs(self, x: sp.csr_matrix) -> np.ndarray:
        """Fit the preprocessing of the inputs; return principal components of the cells."""
        module, n = self.module, self.settings_.n_components
        pca = fit_pca(x, n or _neighbors.N_COMPONENTS, seed=0)
        x = x.astype(np.float64)
        if n:
            # The first component gets a variance of 1; the others have less.
            unit = max(float(np.sqrt(pca.explained_variance_[0])), 1e-6)
            components = torch.from_numpy(pca.components_ / unit)
            module.components[: len(components)].copy_(components)
        else:
            variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - pca.mean_**2
            # constant genes stay 0
            module.scale.copy_(torch.from_numpy(np.sqrt(np.where(variance > 1e-8, variance, 1))))
        module.mean.copy_(torch.from_numpy(pca.mean_))
        return pca.transform(x).astype(np.float32)

    def _embed(self, cells: Cells) -> np.ndarray:
        """Embedding of the training cells, with its two parts scaled to the same total variance."""
        blocks = self.module.blocks
        h = np.concatenate([h for _, h in self._forward_cells(cells)])
        if not self.settings_.joined:
            return h
        width = self.module.width
        for i, part in enumerate((h[:, :width], h[:, width:])):
            unit = max(float(np.sqrt(part.var(axis=0).sum())), 1e-6)
            part /= unit
            blocks[i] /= unit
        return h

    # -- clusters ------------------------------------------------------------------------------

    @property
    def names_(self) -> list[str]:
        """Names of the clusters; "0" is the largest."""
        return [str(code) for code in range(int(self.module.cluster_of.max()) + 1)]

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(x)

    def _prediction_batch_size(self) -> int:
        # If cells attend to each other, batches must be as large as in training.
        s = self.settings_
        return s.batch_size if s.attention == "cells" else super()._prediction_batch_size()

    # -- registration and saving ---------------------------------------------------------------

    @classmethod
    def setup_anndata(cls, adata: AnnData, layer: str | None = None, **kwargs: Any) -> None:
        """Register the cells to cluster.

        Parameters
        ----------
        adata
            Counts, linear or log1p values in ``X`` or ``layer``. Not a view. Labels are not read.
            As with every scvi-tools model, columns (``_scvi_*``) and keys are added.
        layer
            Layer with the values.

        Raises
        ------
        KeyError
            The layer does not exist.
        ValueError
            ``adata`` is a view.
        """
        check_registrable(adata, layer)
        manager = AnnDataManager(
            fields=[LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)],
            setup_method_args=cls._get_setup_method_args(cls=cls, adata=adata, layer=layer),
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _outputs(self) -> dict[str, Any]:
        return {"n_clusters": self.n_clusters_, "n_centroids": self._n_centroids}

    def _set_outputs(self, state: dict[str, Any]) -> None:
        self.n_clusters_, self._n_centroids = state["n_clusters"], state["n_centroids"]
