"""A map (UMAP) of reference cells on which other cells are placed; arrays in, arrays out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

#: Those of scanpy.
N_NEIGHBORS, MIN_DIST = 15, 0.5
#: Of umap-learn: passes over the query, for few and for many cells, and settings of the layout.
N_EPOCHS, N_EPOCHS_MANY, MANY = 100, 30, 10_000
REPULSION, LEARNING_RATE, NEGATIVE_SAMPLES = 1.0, 0.25, 5


@dataclass(frozen=True)
class ReferenceMap:
    """Reference cells on a map. It is all that is needed to place others, without a pickle.

    Attributes
    ----------
    latent
        Embedding by the model, (n_cells, n_latent) float32.
    positions
        Positions on the map, (n_cells, 2) float32.
    """

    latent: np.ndarray
    positions: np.ndarray

    @classmethod
    def fit(cls, latent: np.ndarray, seed: int) -> ReferenceMap:
        """Lay out reference cells (n_cells, n_latent), at least three, by UMAP.

        The layout starts from two principal components (Kobak and Linderman 2021, "Initialization
        is critical for preserving global data structure in both t-SNE and UMAP", Nature
        Biotechnology 39), which keeps types apart that the graph does not connect.
        """
        from umap import UMAP

        latent = np.ascontiguousarray(latent, dtype=np.float32)
        k = min(N_NEIGHBORS, len(latent) - 1)
        distances, neighbors = NearestNeighbors(n_neighbors=k).fit(latent).kneighbors(latent)
        start = PCA(2, random_state=seed).fit_transform(latent)
        # The noise separates equal cells, and spreads those of a single component.
        noise = np.random.default_rng(seed).normal(scale=1e-3, size=start.shape)
        start = start / max(float(start.std()), 1e-12) + noise
        umap = UMAP(
            n_neighbors=k,
            min_dist=MIN_DIST,
            init=start.astype(np.float32),
            precomputed_knn=(neighbors, distances.astype(np.float32)),
            force_approximation_algorithm=True,  # or few cells' neighbours are computed again
            random_state=seed,
            n_jobs=1,
        )
        with warnings.catch_warnings():
            # that umap-learn itself could not place others without its own index
            warnings.filterwarnings("ignore", module="umap")
            positions = umap.fit_transform(latent)
        return cls(latent, np.asarray(positions, dtype=np.float32))

    def place(self, latent: np.ndarray, seed: int) -> np.ndarray:
        """Positions of other cells (n_cells, n_latent), (n_cells, 2) float32.

        As ``UMAP.transform`` does, which needs an object that only a pickle keeps: a cell starts at
        the mean of its neighbours in the reference, by weight, and is moved by the same layout,
        while the reference stays where it is. The neighbours are exact.
        """
        latent = np.ascontiguousarray(latent, dtype=np.float32)
        if latent.shape == self.latent.shape and np.array_equal(latent, self.latent):
            return self.positions.copy()  # the reference itself
        from umap.layouts import optimize_layout_euclidean
        from umap.umap_ import (
            compute_membership_strengths,
            find_ab_params,
            init_graph_transform,
            make_epochs_per_sample,
            smooth_knn_dist,
        )

        k = min(N_NEIGHBORS, len(self.latent) - 1)
        search = NearestNeighbors(n_neighbors=k).fit(self.latent)
        distances, neighbors = search.kneighbors(latent)
        distances = distances.astype(np.float32, order="C")
        sigmas, rhos = smooth_knn_dist(distances, float(k), local_connectivity=0.0)
        rows, columns, weights, _ = compute_membership_strengths(
            neighbors.astype(np.int32), distances, sigmas, rhos, bipartite=True
        )
        shape = (len(latent), len(self.latent))
        graph = sp.csr_matrix((weights, (rows, columns)), shape=shape)
        graph.eliminate_zeros()
        start = init_graph_transform(graph, self.positions)
        n_epochs = N_EPOCHS if len(latent) <= MANY else N_EPOCHS_MANY
        used = weights >= weights.max() / n_epochs
        a, b = find_ab_params(1.0, MIN_DIST)
        return np.asarray(
            optimize_layout_euclidean(
                start,
                self.positions.copy(),
                rows[used],
                columns[used],
                n_epochs,
                shape[1],
                make_epochs_per_sample(weights[used], n_epochs),
                a,
                b,
                np.random.default_rng(seed).integers(-(2**31) + 1, 2**31 - 1, 3),
                REPULSION,
                LEARNING_RATE,
                NEGATIVE_SAMPLES,
                False,  # in parallel, results would differ
            ),
            dtype=np.float32,
        )
