"""gate: clusters of the query, each judged as a whole to be of a known or of a novel type.

Developed for this package: an open-world baseline without a deep network. ``docs/methods/gate.md``
describes the evidence and why it is relative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from torch import nn

from sctool._checks import Count, Positive, Share, Whole
from sctool._docs import docs
from sctool._train import TrainOptions, numpy_generator
from sctool.model._base import OpenWorldModel, Settings
from sctool.model._logistic import LinearModule, fit_head
from sctool.novelty import _clusters
from sctool.novelty._cells import unsearchable
from sctool.novelty._n_types import describe_number, learn_separation, split_into_types


@dataclass(frozen=True)
class GroupNoveltySettings(Settings):
    """Hyperparameters of :class:`GroupNoveltyClassifier`.

    Parameters
    ----------
    n_novel
        Number of novel types; None estimates it, 0 disables the search.
    n_components
        Number of principal components.
    resolution
        Leiden resolution of the clusters; high, so that a cluster contains a single type.
    episodes, episode_cells
        Number of training episodes with hidden reference types, and maximum cells in each.
    threshold
        Clusters with a novelty probability above this are novel.
    C, max_iter
        Inverse strength of the L2 penalty of the regressions, and maximum iterations of L-BFGS.
    """

    n_novel: Whole | None = None
    n_components: Count = _clusters.N_COMPONENTS
    resolution: Positive = _clusters.RESOLUTION
    episodes: Count = _clusters.EPISODES
    episode_cells: Count = _clusters.EPISODE_CELLS
    threshold: Share = 0.5
    C: Positive = 1.0
    max_iter: Count = 500


@docs.dedent
class GroupNoveltyClassifier(OpenWorldModel):
    """Novelty detection by cluster, then logistic regression on known and novel types.

    The query is clustered at a high resolution. Each cluster is judged by evidence whose weights
    are learnt by hiding reference types in turn. The cells of novel clusters are then split into
    types that differ as much as those of the reference, and a logistic regression on known and
    novel types assigns a type to every cell.

    Parameters
    ----------
    %(adata)s
    preset
        "default" is the only one.
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`GroupNoveltySettings`.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": GroupNoveltySettings()}
    TRAINER_ARGUMENTS: ClassVar[list[str]] = []
    settings_: GroupNoveltySettings
    module: LinearModule

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return LinearModule(n_input, n_classes)

    def _train(self, options: TrainOptions) -> None:
        """Fit the regression to the reference and to the query with its assigned types.

        Query cells of known clusters are included: if only the novel types had query cells, any
        batch effect would make a cell look novel.
        """
        s, cells = self.settings_, self._training_cells()
        label = cells.arrays["label"]
        labelled, unlabelled = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
        x, y = cells.x[labelled], label[labelled]
        if s.n_novel != 0:
            names = self._name_cells(x, y, cells.x[unlabelled], options.progress)
            if names is not None:
                x = sp.vstack([x, cells.x[unlabelled]], format="csr")
                y = np.concatenate([y, names])
        self._name_novel(int(y.max()) + 1 - len(self.classes_))
        self._build()
        max_iter = options.max_epochs or s.max_iter
        loss, notes = fit_head(self.module.head, x, y, C=s.C, max_iter=max_iter)
        self.audit_ += notes
        self.history_ = {"supervised_train": loss}

    def _name_cells(
        self, x_ref: sp.csr_matrix, y: np.ndarray, x: sp.csr_matrix, progress: bool
    ) -> np.ndarray | None:
        """Type codes of the unlabelled cells, (n_cells,): known types, then novel ones by size.

        None if novel types cannot be searched for.
        """
        s, rng = self.settings_, numpy_generator()
        if why := unsearchable(x):
            self.audit_.append(f"novel: not searched for: {why}")
            return None
        groups: dict[str, Any] = {"n_components": s.n_components, "resolution": s.resolution}
        model = _clusters.learn_to_judge(
            x_ref,
            y,
            rng,
            C=s.C,
            episodes=s.episodes,
            episode_cells=s.episode_cells,
            progress=progress,
            **groups,
        )
        if model is None:
            self.audit_.append(
                "novel: not searched for: the reference has too few types or cells to learn from "
                "by hiding types"
            )
            return None
        regression = _clusters.fit_regression(x_ref, y, s.C)
        seed = int(rng.integers(2**31))
        judged = _clusters.judge(x_ref, y, x, seed, regression=regression, **groups)
        proba = model.predict_proba(judged.evidence)[:, 1]
        novel = proba > s.threshold
        if s.n_novel and not novel.any():
            novel = proba == proba.max()
        cells = np.flatnonzero(novel[judged.codes])
        if not len(cells):
            self.audit_.append("novel: number of types: 0; no novel clusters were found")
            self.n_novel_ = {"n": 0, "low": 0, "high": 1}
            return judged.known_as
        separation = learn_separation(x_ref, y, rng)
        seed = int(rng.integers(2**31))
        types, low, high = split_into_types(x[cells], separation, s.n_novel, seed)
        n = int(types.max()) + 1
        if s.n_novel is None:
            self.n_novel_ = {"n": n, "low": low, "high": high}
        self.audit_.append(describe_number(n, low, high, s.n_novel))
        names = judged.known_as.copy()
        names[cells] = len(self.classes_) + types
        return names
