"""The classifiers that scNym's paper compares with, each after its own paper, and scANVI's surgery.

All of them see log1p counts per 10,000 of the genes that reference and query share, as our floors
do; scANVI sees the counts. What a paper does not say is taken from its authors' program, and what
we do otherwise is said in the class. A cell that a rival leaves without a name is "unassigned".
"""

import tempfile
from typing import Any, ClassVar, NamedTuple, Self

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scipy.cluster.hierarchy import ClusterNode, linkage, to_tree
from scipy.spatial.distance import cdist, squareform
from scipy.stats import false_discovery_control, mannwhitneyu, rankdata
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from sctool import _data
from sctool._data._features import normalize, variable_genes
from sctool._train import seeded
from sctool_benchmark._tasks import BATCH, LABELS

UNASSIGNED = "unassigned"


class Named(NamedTuple):
    """What a rival says of cells.

    Attributes
    ----------
    names
        Name of each cell, (n_cells,) of object: a type, "unassigned", or of CHETAH an intermediate
        type.
    score
        Confidence, (n_cells,), of which the novelty score is the negative.
    proba
        Probability of each type, (n_cells, n_types), if the rival has it.
    """

    names: np.ndarray
    score: np.ndarray
    proba: np.ndarray | None = None


class Rival:
    """A classifier of log1p values.

    Parameters
    ----------
    classes
        Names of the types, (n_types,).
    seed
        Seed of what is drawn.
    threshold
        Of the score, or of CHETAH the confidence, below which a cell has no name; None is the
        rival's own.
    """

    #: Whether it may leave cells without a name, and the threshold of its paper or program.
    REJECTS: ClassVar[bool] = True
    THRESHOLD: ClassVar[float] = 0.0

    def __init__(self, classes: np.ndarray, seed: int = 0, threshold: float | None = None):
        self.classes = np.asarray(classes, dtype=object)
        self.seed = seed
        self.threshold = self.THRESHOLD if threshold is None else threshold

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        """Learn from log1p values (n_cells, n_genes) and type codes (n_cells,)."""
        raise NotImplementedError

    def predict(self, x: sp.csr_matrix) -> Named:
        """Name cells by log1p values (n_cells, n_genes)."""
        raise NotImplementedError

    def _named(
        self,
        codes: np.ndarray,
        assigned: np.ndarray,
        score: np.ndarray,
        proba: np.ndarray | None = None,
    ) -> Named:
        return Named(np.where(assigned, self.classes[codes], UNASSIGNED), score, proba)


def _dense(x: sp.csr_matrix) -> np.ndarray:
    return x.toarray().astype(np.float64)


def _means(x: sp.csr_matrix, y: np.ndarray, n: int) -> np.ndarray:
    """Mean of each type, (n_types, n_genes)."""
    return np.stack([np.asarray(x[y == k].mean(axis=0)).ravel() for k in range(n)])


# -- scmap (Kiselev et al. 2018) -------------------------------------------------------------------


def dropout_genes(x: sp.csr_matrix, n: int = 500) -> np.ndarray:
    """Genes that are missed more often than their mean explains: scmap's features.

    Parameters
    ----------
    x
        Log1p values, (n_cells, n_genes).
    n
        Number of genes.

    Returns
    -------
    Positions, increasing, of the genes with the largest residuals of a linear model of the
    logarithm of the dropout rate by the mean log expression. Genes that all cells or none express
    are left out.
    """
    x = x.tocsr()
    dropout = 1 - np.bincount(x.indices[x.data != 0], minlength=x.shape[1]) / x.shape[0]
    genes = np.flatnonzero((dropout > 0) & (dropout < 1))
    level, rate = np.asarray(x.mean(axis=0)).ravel()[genes], np.log2(dropout[genes])
    residual = rate - np.polyval(np.polyfit(level, rate, 1), level)
    return np.sort(genes[np.argsort(-residual, kind="stable")[:n]])


class ScmapCluster(Rival):
    """Nearest median profile by cosine, Pearson and Spearman, two of which must agree.

    The higher similarity of those that agree is the score; below 0.7 a cell is unassigned.
    """

    THRESHOLD = 0.7

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        self.genes = dropout_genes(x)
        cells = _dense(x[:, self.genes])
        medians = np.stack([np.median(cells[y == k], axis=0) for k in range(len(self.classes))])
        # A type that has none of these genes in half of its cells has no profile.
        self.known = np.flatnonzero(medians.sum(axis=1) > 0)
        if not len(self.known):
            raise ValueError("no type expresses one of scmap's genes in half of its cells")
        self.profiles = medians[self.known]
        return self

    def predict(self, x: sp.csr_matrix) -> Named:
        cells, profiles = _dense(x[:, self.genes]), self.profiles
        ranks = rankdata(cells, axis=1), rankdata(profiles, axis=1)
        similarity = 1 - np.stack(
            [
                cdist(cells, profiles, "cosine"),
                cdist(cells, profiles, "correlation"),
                cdist(*ranks, "correlation"),
            ]
        )
        comparable = np.isfinite(similarity).all(axis=(0, 2))
        similarity = np.nan_to_num(similarity)
        nearest = similarity.argmax(axis=2)
        agree = (nearest == nearest[:, None]).sum(axis=0) > 1
        score = np.where(agree, similarity.max(axis=2), 0).max(axis=0)
        codes = self.known[nearest[agree.argmax(axis=0), np.arange(len(cells))]]
        return self._named(codes, comparable & agree.any(axis=0) & (score >= self.threshold), score)


class ScmapCell(Rival):
    """Three nearest cells by cosine, which must be of one type, the nearest above 0.5.

    The search is exact: the paper's product quantisation approximates it for speed.
    """

    THRESHOLD = 0.5
    N_NEIGHBORS = 3

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        self.genes, self.y = dropout_genes(x), y
        self.search = self.search_of(x[:, self.genes])
        return self

    def search_of(self, x: sp.csr_matrix) -> NearestNeighbors:
        """Return the search among cells, (n_cells, n_selected genes)."""
        search = NearestNeighbors(n_neighbors=self.N_NEIGHBORS, metric="cosine", algorithm="brute")
        return search.fit(x)

    def predict(self, x: sp.csr_matrix) -> Named:
        distance, cells = self.search.kneighbors(x[:, self.genes])
        types, score = self.y[cells], np.clip(1 - distance[:, 0], 0, 1)
        alike = (types == types[:, :1]).all(axis=1)
        return self._named(types[:, 0], alike & (score > self.threshold), score)


# -- Support vector machine (Abdelaal et al. 2019) -------------------------------------------------


class LinearSVM(Rival):
    """A linear support vector machine on all genes, with scikit-learn's settings.

    It names all cells, each by its largest margin. Probabilities are the margins, calibrated on
    held-out cells, which a type needs two labelled cells for; the score is the highest of them.
    """

    REJECTS = False

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        n_cells = np.bincount(y, minlength=len(self.classes))
        if n_cells.min() < 2:
            raise ValueError(
                "the margins are calibrated on held-out cells, and these types have fewer than two "
                f"labelled cells: {list(self.classes[n_cells < 2])}"
            )
        machine, n_folds = LinearSVC(random_state=self.seed), int(min(5, n_cells.min()))
        self.model = CalibratedClassifierCV(machine, cv=n_folds, ensemble=False).fit(x, y)
        return self

    def predict(self, x: sp.csr_matrix) -> Named:
        proba = self.model.predict_proba(x)
        codes = self.model.calibrated_classifiers_[0].estimator.predict(x)
        return self._named(codes, np.ones(len(codes), dtype=bool), proba.max(axis=1), proba)


# -- scPred (Alquicira-Hernandez et al. 2019) ------------------------------------------------------


class ScPred(Rival):
    """A support vector machine a type, on the principal components in which the type differs.

    Components of the 2,000 most variable genes, standardised; a type's components are those with a
    Wilcoxon rank sum test below 0.05 (Benjamini and Hochberg). Probabilities by Platt's method; if
    the highest is not above 0.55 (the program's present threshold; the paper's is 0.9) the cell is
    unassigned. The program's alignment of the query by Harmony is left out.
    """

    THRESHOLD = 0.55
    N_GENES, N_COMPONENTS = 2000, 50

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        one_side = np.zeros(len(y), dtype=int)
        self.genes = variable_genes(x, one_side, min(self.N_GENES, x.shape[1]))
        self.scaler = StandardScaler().fit(_dense(x[:, self.genes]))
        n = min(self.N_COMPONENTS, len(self.genes) - 1, len(y) - 1)
        self.pca = PCA(n, svd_solver="arpack", random_state=self.seed)
        z = self.pca.fit_transform(self.scaler.transform(_dense(x[:, self.genes])))
        self.components, self.models = [], []
        for k in range(len(self.classes)):
            own = y == k
            p = mannwhitneyu(z[own], z[~own]).pvalue
            differ = np.flatnonzero(false_discovery_control(p) < 0.05)
            chosen = differ if len(differ) else np.argsort(p)[:1]
            n_folds = int(min(5, own.sum(), (~own).sum()))
            model = CalibratedClassifierCV(SVC(), cv=n_folds, ensemble=False)
            self.components.append(chosen)
            self.models.append(model.fit(z[:, chosen], own))
        return self

    def predict(self, x: sp.csr_matrix) -> Named:
        z = self.pca.transform(self.scaler.transform(_dense(x[:, self.genes])))
        pairs = zip(self.models, self.components, strict=True)
        proba = np.stack([model.predict_proba(z[:, c])[:, 1] for model, c in pairs], axis=1)
        score = proba.max(axis=1)
        return self._named(proba.argmax(axis=1), score > self.threshold, score, proba)


# -- singleCellNet (Tan and Cahan 2019) ------------------------------------------------------------


class SingleCellNet(Rival):
    """A random forest on comparisons of two genes in a cell: is the first expressed more?

    For each type the ten genes that correlate best with it and the ten that do so worst are paired;
    the 25 pairs whose comparison correlates best with the type are kept, a gene in three at most.
    The forest (1,000 trees) also learns 70 cells with shuffled values; cells that look like these
    are unassigned. 100 cells of each type are used at most, as in the program's tutorial.
    """

    N_CELLS, N_GENES, N_PAIRS, N_PER_GENE, N_SHUFFLED, N_TREES = 100, 10, 25, 3, 70, 1000

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        rng = np.random.default_rng(self.seed)
        n = len(self.classes)
        drawn = [rng.permutation(np.flatnonzero(y == k))[: self.N_CELLS] for k in range(n)]
        y = np.repeat(np.arange(n), [len(cells) for cells in drawn])
        x = x[np.concatenate(drawn)]
        self.pairs = np.unique(np.concatenate([self._pairs(x, y == k) for k in range(n)]), axis=0)
        pairs = self._compared(x)
        genes = np.unique(self.pairs)
        # each gene among cells, then each cell among genes
        shuffled = rng.permuted(rng.permuted(_dense(x[:, genes]), axis=0), axis=1)
        columns = np.searchsorted(genes, self.pairs)
        chosen = shuffled[rng.permutation(len(shuffled))[: self.N_SHUFFLED]]
        random = chosen[:, columns[:, 0]] > chosen[:, columns[:, 1]]
        self.forest = RandomForestClassifier(
            self.N_TREES, class_weight="balanced_subsample", random_state=self.seed
        ).fit(np.concatenate([pairs, random]), np.concatenate([y, np.full(len(random), n)]))
        return self

    def _pairs(self, x: sp.csr_matrix, own: np.ndarray) -> np.ndarray:
        """Return the best pairs of genes for one type, (n_pairs, 2)."""
        mean, mean_own = (np.asarray(a.mean(axis=0)).ravel() for a in (x, x[own]))
        square = np.asarray(x.multiply(x).mean(axis=0)).ravel()
        spread = np.sqrt(np.maximum(square - mean**2, 1e-12))
        order = np.argsort((mean_own - mean) / spread, kind="stable")
        genes = np.unique(np.concatenate([order[: self.N_GENES], order[-self.N_GENES :]]))
        i, j = np.triu_indices(len(genes), 1)
        cells = _dense(x[:, genes])
        is_more = (cells[:, i] > cells[:, j]).astype(float)
        spread = np.maximum(is_more.std(axis=0), 1e-6)
        match = np.abs(is_more[own].mean(axis=0) - is_more.mean(axis=0)) / spread
        used, kept = np.zeros(len(genes), dtype=int), list[np.ndarray]()
        for pair in np.argsort(-match, kind="stable"):
            ends = [i[pair], j[pair]]
            if len(kept) < self.N_PAIRS and (used[ends] < self.N_PER_GENE).all():
                used[ends] += 1
                kept.append(genes[ends])
        return np.array(kept)

    def _compared(self, x: sp.csr_matrix) -> np.ndarray:
        """Return of each pair whether the first gene is expressed more, (n_cells, n_pairs)."""
        first, second = (_dense(x[:, genes]) for genes in self.pairs.T)
        return first > second

    def predict(self, x: sp.csr_matrix) -> Named:
        votes = self.forest.predict_proba(self._compared(x))
        codes, proba = votes.argmax(axis=1), votes[:, :-1]
        n = len(self.classes)
        return self._named(np.minimum(codes, n - 1), codes < n, proba.max(axis=1), proba)


# -- CHETAH (de Kanter et al. 2019) ----------------------------------------------------------------


class Chetah(Rival):
    """A descent through the tree of types, which ends where the evidence does.

    The tree is the average linkage of the types' means by Spearman correlation. At a node a cell is
    compared with each type by the 200 genes in which the type differs most from the other branch.
    The type's *profile score* is the share of its own cells with a lower correlation than the
    cell's, minus the share of the other branch's cells with a higher one. The cell goes to the
    branch of the best type if that exceeds the mean of the other branch by the *confidence* of 0.1,
    else it ends at the node: unassigned at the root, below it as an intermediate type, such as
    "CD4 T or CD8 T". The score is half the confidence of the last step.
    """

    THRESHOLD = 0.1
    N_GENES = 200

    def fit(self, x: sp.csr_matrix, y: np.ndarray) -> Self:
        self.x, self.y = x, y
        self.means = _means(x, y, len(self.classes))
        distance = 1 - np.corrcoef(rankdata(self.means, axis=1))
        self.tree = to_tree(linkage(squareform(distance, checks=False), "average"))
        return self

    def predict(self, x: sp.csr_matrix) -> Named:
        names = np.full(x.shape[0], UNASSIGNED, dtype=object)
        score = np.zeros(x.shape[0])
        self._descend(self.tree, x, np.arange(x.shape[0]), names, score)
        return Named(names, score)

    def _descend(
        self,
        node: ClusterNode,
        x: sp.csr_matrix,
        cells: np.ndarray,
        names: np.ndarray,
        score: np.ndarray,
    ) -> None:
        """Name cells that have come to a node, or pass them on."""
        types = sorted(node.pre_order())
        if node is not self.tree:
            names[cells] = " or ".join(self.classes[types])
        if node.is_leaf() or not len(cells):
            return
        branches = node.get_left(), node.get_right()
        sides = [sorted(branch.pre_order()) for branch in branches]
        fit = [
            np.stack([self._profile_score(x[cells], k, other) for k in own], axis=1)
            for own, other in (sides, sides[::-1])
        ]
        best = np.stack([scores.max(axis=1) for scores in fit])
        right = best[1] > best[0]
        others = np.where(right, fit[0].mean(axis=1), fit[1].mean(axis=1))
        confidence = best.max(axis=0) - others
        score[cells] = np.clip(confidence / 2, 0, 1)
        on = confidence >= self.threshold
        for branch, chosen in zip(branches, (on & ~right, on & right), strict=True):
            self._descend(branch, x, cells[chosen], names, score)

    def _profile_score(self, x: sp.csr_matrix, k: int, others: list[int]) -> np.ndarray:
        """Return how well cells fit type ``k``, against the types of the other branch."""
        differ = np.abs(self.means[k] - self.means[others].mean(axis=0))
        genes = np.sort(np.argsort(-differ, kind="stable")[: self.N_GENES])
        profile = rankdata(self.means[k, genes])[None]

        def correlation(cells: sp.csr_matrix) -> np.ndarray:
            ranks = rankdata(_dense(cells[:, genes]), axis=1)
            return np.nan_to_num(1 - cdist(ranks, profile, "correlation").ravel())

        found = correlation(x)
        own = np.sort(correlation(self.x[self.y == k]))
        other = np.sort(correlation(self.x[np.isin(self.y, others)]))
        below = np.searchsorted(own, found, side="right") / len(own)
        above = 1 - np.searchsorted(other, found, side="right") / len(other)
        return below - above


# -- Runs ------------------------------------------------------------------------------------------

#: Name, as `methods.toml` has it, to the classifier.
RIVALS: dict[str, type[Rival]] = {
    "scmap-cluster": ScmapCluster,
    "scmap-cell": ScmapCell,
    "svm": LinearSVM,
    "scpred": ScPred,
    "singlecellnet": SingleCellNet,
    "chetah": Chetah,
}
#: Trained on the reference, then by surgery on the query; see `scanvi_surgery`.
SURGERY = "scanvi-surgery"
RIVAL_NAMES = (*RIVALS, SURGERY)


def annotate(
    name: str,
    query: ad.AnnData,
    reference: ad.AnnData,
    layer: str | None,
    model_kwargs: dict[str, Any],
    train_kwargs: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Annotate a query by a rival.

    Parameters
    ----------
    name
        One of `RIVAL_NAMES`.
    query, reference
        The cells; types of the reference are in ``obs["cell_type"]``.
    layer
        Layer with the expression; None finds it.
    model_kwargs
        ``threshold``, see `Rival`.
    train_kwargs
        Of ``"scanvi-surgery"``: see `scanvi_surgery`.
    seed
        Seed of what is drawn.

    Returns
    -------
    ``prediction``, ``score``, ``novel_score``, ``classes``, and where the rival has them ``proba``
    and ``novel``: which cells are unassigned. An intermediate type is not flagged.
    """
    data = _data.join(query, reference, labels_key=LABELS, layer=layer)
    n_ref, classes = reference.n_obs, np.asarray(data.labels.categories, dtype=object)
    y = data.labels.codes[:n_ref].astype(int)
    if name == SURGERY:
        named, rejects = scanvi_surgery(data, n_ref, query, reference, train_kwargs, seed), False
    else:
        rival, x = RIVALS[name](classes, seed, **model_kwargs), normalize(data.x)
        named, rejects = rival.fit(x[:n_ref], y).predict(x[n_ref:]), rival.REJECTS
    answer = {
        "prediction": named.names.astype(str),
        "score": np.clip(named.score, 0, 1),
        "novel_score": -named.score,
        "proba": named.proba,
        "classes": None if named.proba is None else classes,
    }
    return answer | ({"novel": named.names == UNASSIGNED} if rejects else {})


def scanvi_surgery(
    data: _data.TrainingData,
    n_ref: int,
    query: ad.AnnData,
    reference: ad.AnnData,
    train_kwargs: dict[str, Any],
    seed: int,
) -> Named:
    """Adapt a saved scANVI to the query: scArches (Lotfollahi et al. 2022), as in its tutorial.

    scVI and scANVI are trained on the reference alone and saved. The query is a batch of its own
    (or several, if the task names batches), whose weights alone are trained on the query.

    Parameters
    ----------
    data
        Counts of the reference and, after them, the query.
    n_ref
        Number of cells of the reference.
    query, reference
        The cells, for their batches.
    train_kwargs
        ``max_epochs`` of scVI (scvi-tools' own number by default), ``scanvi_epochs`` (20) and
        ``surgery_epochs`` (100).
    seed
        Seed of the training.

    Returns
    -------
    Names and probabilities. No cell is unassigned.
    """
    from scvi.model import SCANVI, SCVI

    if not data.is_counts:
        raise ValueError("scanvi-surgery needs counts of reference and query")
    side = np.zeros(n_ref, dtype=int)
    levels = normalize(data.x[:n_ref].copy())
    genes = variable_genes(levels, side, min(2000, data.x.shape[1]))
    counts = ad.AnnData(data.x[:, genes])
    counts.obs["label"] = np.append(data.labels.astype(str)[:n_ref], ["unknown"] * query.n_obs)
    batches = [
        side_name + part.obs[BATCH].astype(str) if BATCH in part.obs else [side_name] * part.n_obs
        for side_name, part in (("reference", reference), ("query", query))
    ]
    counts.obs["side"] = np.concatenate(batches).astype(str)
    ref, new = counts[:n_ref].copy(), counts[n_ref:].copy()
    quiet = {"enable_progress_bar": False}
    layers = {"n_layers": 2, "dropout_rate": 0.2, "encode_covariates": True}
    norms = {"use_layer_norm": "both", "use_batch_norm": "none"}
    with seeded(seed), tempfile.TemporaryDirectory() as folder:
        SCVI.setup_anndata(ref, batch_key="side")
        vae = SCVI(ref, **layers, **norms)
        vae.train(max_epochs=train_kwargs.get("max_epochs"), **quiet)
        model = SCANVI.from_scvi_model(vae, "unknown", labels_key="label")
        epochs = train_kwargs.get("scanvi_epochs", 20)
        model.train(max_epochs=epochs, n_samples_per_label=100, **quiet)
        model.save(folder, overwrite=True)
        adapted = SCANVI.load_query_data(new, folder)
        epochs = train_kwargs.get("surgery_epochs", 100)
        adapted.train(max_epochs=epochs, plan_kwargs={"weight_decay": 0.0}, **quiet)
        proba = adapted.predict(soft=True)
    table = proba.reindex(columns=list(data.labels.categories), fill_value=0).to_numpy()
    names = np.asarray(data.labels.categories, dtype=object)[table.argmax(axis=1)]
    return Named(names, table.max(axis=1), table)
