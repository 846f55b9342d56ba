"""What a suite may say, and how a task parts cells into a reference and a query."""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.model_selection import StratifiedKFold

from sctool_benchmark._larger import larger
from sctool_benchmark._planted import plant

LABELS, BATCH = "cell_type", "batch"  # the only obs columns that a method gets to see
PROTOCOLS = ("blind", "paper")
KINDS = ("pair", "masked", "intra", "cv", "cluster")
RECLUSTER = ("leiden", "kmeans")
#: What clusters cells beside the methods of `sctool.tl.cluster`; see `_baselines.py`.
CLUSTER_BASELINES = ("kmeans", "scvi", "simlr")
HERE = Path(__file__).parent
SUITES = HERE / "suites"

Entry = TypeVar("Entry", "Task", "Method")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One way to part one data set into a labelled reference and an unlabelled query.

    Parameters
    ----------
    name
        Name in the results.
    data
        Name of the data set in the results. In a suite, a name in ``data.toml`` brings what is said
        there of these data.
    kind
        ``"pair"``
            ``obs["split"]`` of the data says ``"reference"`` or ``"query"``.
        ``"masked"``
            A pair, some types of which are taken out of the reference: the types named in
            `masked`, which the query may lack, or `n_masked` types drawn from those that both
            sides hold.
        ``"intra"``
            A share `hidden` of the types is drawn, and one type at least seen, and one hidden
            unless the share is 0;
            a share `labelled` of the cells of each seen type becomes the reference, all other
            cells the query.
        ``"cv"``
            Seed ``s`` holds out fold ``s`` of `folds` stratified folds (shuffled anew after each
            round), or batch ``s`` of the column `groups` of obs.
        ``"cluster"``
            No reference: all cells, or of a pair the query, are to be clustered.
    file
        Name of an .h5ad file in the data folder, or a path.
    dataset
        Instead of `file`: the name of a data set of `scanpy.datasets`.
    raw
        Take the expression from ``adata.raw``.
    tuned
        Whether settings may be chosen on these data: tables keep them apart from the others.
    labels_key
        Column of obs with the labels.  Cells without a label are never in the reference, and
        in the query they are not scored.
    batch_key, layer
        Passed to the method.
    masked, n_masked, hidden, labelled, folds, groups
        See `kind`.
    min_cells
        Types with fewer cells leave the data first.
    equal
        Of an intra task: cells are drawn so that in the reference every type has as many as the
        smallest, and in the query as well.
    n_labelled
        Of an intra task: cells of each seen type in the reference, instead of a share.
    all_labelled
        Of an intra task: once the query is drawn, all other cells of the seen types are in the
        reference. Beside the task without it this says what more labels would be worth.
    n_rare
        Of an intra task: seed ``s`` cuts the labelled cells of the ``s``-th seen type, of those
        with twice as many and 20 more, to this number; the others join the query.
    rare_share
        With `n_rare`: cells of that type leave the query, drawn at random, until they are this
        share of it (one cell at least).
    training_folds
        Of a pair or a masked one: seed ``s`` leaves out fold ``s`` of so many stratified folds of
        the reference (scNym's five training splits); 0 keeps the whole.
    max_per_type
        At most so many cells of each type, drawn at random, stay in the reference; 0 keeps all.
    max_query
        At most so many cells, drawn at random, stay in the query; 0 keeps all.
    doublets
        Doublets are added to the query, this share of its cells: the sum of the counts of two of
        its cells of different types.
    thinned
        This share of the query's cells keeps 10 to 20 % of its counts. Planted cells, doublets and
        thinned ones, are scored apart.
    safe
        Names and sets at several risks of error are scored as well, of a method that has them;
        "ontology": with groups of the Cell Ontology, by the terms in ``pretrained/truth.toml``.
    n_cells
        Draw this many new cells first, to see what size costs: each a mix of a cell and one of its
        ten nearest neighbours of the same type, whose counts are drawn anew.
    n_types
        With `n_cells`: divide the types until there are so many, the most common ones first. All
        parts of a type but one have a tenth of its genes exchanged among each other.
    """

    name: str
    data: str
    kind: Literal["pair", "masked", "intra", "cv", "cluster"]
    file: str | None = None
    dataset: str | None = None
    raw: bool = False
    tuned: bool = False
    labels_key: str = "cell_type"
    batch_key: str | None = None
    layer: str | None = None
    masked: list[str] = field(default_factory=list)
    n_masked: int = 0
    hidden: float = 0.5
    labelled: float = 0.5
    min_cells: int = 0
    equal: bool = False
    n_labelled: int = 0
    all_labelled: bool = False
    n_rare: int = 0
    rare_share: float = 0.0
    max_per_type: int = 0
    max_query: int = 0
    doublets: float = 0.0
    thinned: float = 0.0
    safe: bool | str = False
    n_cells: int = 0
    n_types: int = 0
    folds: int = 5
    groups: str | None = None
    training_folds: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {self.kind!r}")
        if (self.file is None) == (self.dataset is None):
            raise ValueError(
                f"task {self.name!r} must name either a file or a dataset, or as data one of "
                f"{sorted(known_data())}"
            )
        if self.kind == "masked" and bool(self.masked) == bool(self.n_masked):
            raise ValueError(f"task {self.name!r} must give either masked or n_masked")
        if self.kind != "intra" and (
            self.equal or self.n_labelled or self.all_labelled or self.n_rare
        ):
            raise ValueError(
                f"task {self.name!r} is of kind {self.kind!r}: equal, n_labelled, all_labelled and "
                "n_rare are for 'intra'"
            )
        if self.training_folds and self.kind not in ("pair", "masked"):
            raise ValueError(
                f"task {self.name!r} is of kind {self.kind!r}: training_folds is for pairs"
            )
        if self.rare_share and not (self.n_rare and self.rare_share < 1):
            raise ValueError(f"task {self.name!r}: rare_share is below 1, and goes with n_rare")
        if self.n_types and not self.n_cells:
            raise ValueError(f"task {self.name!r}: n_types goes with n_cells")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method, a variant of one, or a peer in an interpreter of its own.

    Parameters
    ----------
    name
        Name in the results.
    method
        Name in `sctool.model.METHODS`; for tasks of the kind "cluster" a method of
        `sctool.tl.cluster`, or one of the baselines "kmeans" (on principal components), "scvi"
        (k-means on the embedding of scVI) and "simlr". What clusters cells can do the other tasks
        as well: it sees the query alone, and its clusters are matched to types.
    model_kwargs, train_kwargs
        Passed to `sctool.tl.annotate` or `sctool.tl.cluster`.
    recluster_rejected
        Reject, then cluster the rejected: the cells that `method` flags as novel or, where it
        flags none, those whose score is below `reject_below` lose their names and are grouped
        anew, on 30 principal components of their own 2,000 informative genes.

        ``"leiden"``
            By Leiden on their neighbour graph, all settings scanpy's own.
        ``"kmeans"``
            By k-means with as many clusters as there are novel types: under the protocol
            ``"paper"`` in truth, else by `sctool`'s own estimate (one cluster at least).

        Fewer than 50 cells are one group.  A run that is told that there are no novel types
        keeps its names.
    reject_below
        See `recluster_rejected`; within [0, 1].
    command
        Instead of `method`: the words of a command line, run in an empty folder, in which the
        following are replaced.

        ``{input}``
            .h5ad with ``obs["split"]``, ``obs["cell_type"]`` (missing in the query) and, if the
            task names one, ``obs["batch"]``.  The layer of the task, if any, is in X.
        ``{output}``
            JSON to write: ``prediction`` (list of names) and ``score`` (list), in the order of
            the query's cells; optional ``novel_score``, ``novel`` (list of bool), ``proba`` (a
            list a cell) with ``classes``, ``seconds``, ``peak_rss_gb``, ``epochs`` and
            ``versions``.
        ``{seed}``, ``{python}``, ``{here}``
            The run's seed, our interpreter, the folder of the file that defines the method.
        ``{peer:NAME}``
            The interpreter of a peer's own environment; see `sctool_benchmark.peers`.
        ``{env:NAME}``
            An environment variable.
    base
        Name of the method that the report compares this one with, type by type.
    folder
        Folder of the file that defines the method.
    """

    name: str
    method: str | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    train_kwargs: dict[str, Any] = field(default_factory=dict)
    recluster_rejected: Literal["leiden", "kmeans"] | None = None
    reject_below: float = 0.7
    command: list[str] = field(default_factory=list)
    base: str | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        if (self.method is None) == (not self.command):
            raise ValueError(f"method {self.name!r} must give either method or command")
        if self.recluster_rejected not in (None, *RECLUSTER):
            raise ValueError(
                f"recluster_rejected must be one of {RECLUSTER}, not {self.recluster_rejected!r}"
            )
        if self.recluster_rejected and self.command:
            raise ValueError(f"method {self.name!r}: recluster_rejected is not for commands")
        if not 0 <= self.reject_below <= 1:
            raise ValueError(f"reject_below must lie within [0, 1], not {self.reject_below!r}")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The tasks of one file, the methods that it runs, and all that it could run, by name."""

    name: str
    tasks: list[Task]
    methods: list[Method]
    known: dict[str, Method]
    seeds: int = 1


@dataclass(frozen=True)
class Split:
    """A reference with labels, a query without, and the truth that no method sees.

    ``rare`` is the type whose labelled cells were cut, if one was. ``planted`` says what each cell
    of the query was made, "" or "doublet" or "thinned", (n_cells,), if any was; the truth of
    planted cells is missing.
    """

    reference: ad.AnnData
    query: ad.AnnData
    truth: pd.Series
    rare: str | None = None
    planted: np.ndarray | None = None

    @property
    def seen(self) -> list[str]:
        """Types that the reference holds."""
        return sorted(self.reference.obs[LABELS].unique())

    @property
    def novel(self) -> list[str]:
        """Types that only the query holds."""
        return sorted(set(self.truth.dropna()) - set(self.seen))


# -- Suites --------------------------------------------------------------------------------------


def shipped_suites() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


@cache
def known_data() -> dict[str, dict[str, Any]]:
    """Return what ``data.toml`` says, by the short name of the data."""
    return tomllib.loads((HERE / "data.toml").read_text(encoding="utf-8"))


def known_methods() -> dict[str, Method]:
    """Return the methods of the library and the variants in ``methods.toml``, by name."""
    from sctool.model import CLUSTER_METHODS, METHODS

    plain = [*METHODS, *CLUSTER_METHODS, "leiden", *CLUSTER_BASELINES]
    variants = tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8"))
    return _unique([*(Method(name=name, method=name) for name in plain), *_read(variants, HERE)])


def load_suite(suite: str | Path) -> Suite:
    """Read a suite.

    Parameters
    ----------
    suite
        Name of a suite that comes with the package, or path of a TOML file. It may hold

        ``seeds``
            Number of seeds.
        ``methods``
            Names of methods of the library, of variants in ``methods.toml``, or of methods of its
            own. By default its own or, where it has none, all that annotate cells.
        ``include``
            Suites whose tasks come first.
        ``[[task]]``
            See `Task`. Where a field is a list, there is a task for each of its values: of several
            such fields, for each combination, the last of them varying first. ``name`` is a
            template, such as ``"{data}_rare_{n_rare}"`` or ``"{data}_{hidden:.0%}"``, from which
            percent signs are dropped; by default ``"{data}"``.
        ``[method.NAME]``
            A method of its own; see `Method`.

    Returns
    -------
    The suite.

    Raises
    ------
    ValueError
        If there is no such suite, or an entry is wrong.
    """
    path = SUITES / f"{suite}.toml" if str(suite) in shipped_suites() else Path(suite)
    if not path.is_file():
        raise ValueError(
            f"no suite {str(suite)!r}: give the path of a TOML file, or one of {shipped_suites()}"
        )
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := set(spec) - {"seeds", "methods", "include", "task", "method"}:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        included = [task for name in spec.get("include", []) for task in load_suite(name).tasks]
        tasks = _unique([*included, *(t for entry in spec.get("task", []) for t in _expand(entry))])
        own = _unique(_read(spec.get("method", {}), path.parent.resolve()))
        known = _unique([*known_methods().values(), *own.values()])
        methods = choose(known, spec.get("methods", list(own) or _annotators()))
        choose(known, [method.base for method in own.values() if method.base])
    except (ValueError, TypeError) as error:
        raise ValueError(f"in suite {str(path)!r}: {error}") from error
    return Suite(
        name=str(suite),
        tasks=list(tasks.values()),
        methods=methods,
        known=known,
        seeds=spec.get("seeds", 1),
    )


def choose(known: Mapping[str, Method], names: Iterable[str]) -> list[Method]:
    """Return the methods of these names; ValueError if there is none of a name."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown methods {unknown}: choose from {list(known)}")
    return [known[name] for name in names]


def _annotators() -> list[str]:
    """Return the names of the methods that annotate cells."""
    from sctool.model import METHODS

    return list(METHODS)


def _read(methods: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Method]:
    """Yield the methods that a file defines."""
    for name, fields in methods.items():
        yield Method(name=name, folder=str(folder), **fields)


def _expand(entry: Mapping[str, Any]) -> Iterator[Task]:
    """Yield a task for each combination of the values of the fields that are lists."""

    def values(field: str) -> list[Any]:
        value = entry[field]
        if field == "masked" and not any(isinstance(types, list) for types in value):
            return [value]  # which is a list already: several of these are a list of lists
        return value if isinstance(value, list) else [value]

    for combination in product(*map(values, entry)):
        fields = dict(zip(entry, combination, strict=True))
        try:
            name = fields.pop("name", "{data}").format(**fields).replace("%", "")
        except LookupError as error:
            raise ValueError(f"a task's name is made of {error}, which it does not give") from error
        yield Task(name=name, **known_data().get(fields.get("data", ""), {}) | fields)


def _unique(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return the entries by name; refuse names that would not do in an id or a file name."""
    named: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in named or not re.fullmatch(r"[\w.+-]+", entry.name):
            raise ValueError(
                f"{entry.name!r} appears twice, or has more than letters, digits, _.+-"
            )
        named[entry.name] = entry
    return named


# -- Data ----------------------------------------------------------------------------------------


def locate(task: Task) -> str | None:
    """Return the path of the task's file, None for a data set of scanpy.

    The data folder is ``SCTOOL_DATA_DIR``, else ``../shared/data`` beside the repository that
    holds the working directory, or beside that directory.
    """
    if task.file is None:
        return None
    here = Path.cwd()
    root = next((path for path in (here, *here.parents) if (path / ".git").exists()), here)
    folder = os.environ.get("SCTOOL_DATA_DIR") or root.parent / "shared" / "data"
    path = Path(folder, task.file).absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"task {task.name!r} needs the file {task.file!r}, which is not in "
            f"{str(path.parent)!r}: set the environment variable SCTOOL_DATA_DIR to the folder "
            "that holds the data files"
        )
    return str(path)


def read(task: Task, path: str | None) -> ad.AnnData:
    """Read the data of a task, found by `locate`."""
    if path is not None:
        adata = ad.read_h5ad(path)
    else:
        import scanpy

        adata = getattr(scanpy.datasets, str(task.dataset))()
    if not task.raw:
        return adata
    return ad.AnnData(adata.raw.X, obs=adata.obs, var=adata.raw.var[[]])


# -- Splits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """Term of the Cell Ontology of each published label, of one side of a pair or of all cells."""

    terms: dict[str, str]
    side: str | None


def published_terms() -> dict[str, Published]:
    """Terms of published labels, by data set."""
    path = Path(__file__).parent / "pretrained" / "truth.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    return {data: Published(terms, terms.pop("split", None)) for data, terms in entries.items()}


def split(adata: ad.AnnData, task: Task, seed: int) -> Split:
    """Part the cells of a data set into a reference and a query, as a task says.

    Parameters
    ----------
    adata
        The data of the task.
    task
        The task.
    seed
        Seed of the run, which draws the hidden types and cells, or chooses the fold.

    Returns
    -------
    Reference and query, new objects that hold the expression, the names of cells and genes, and
    of obs only ``"cell_type"`` (the reference alone) and ``"batch"`` (if the task names one).

    Raises
    ------
    ValueError
        If the task cannot be made from these data.
    """
    if task.n_cells:
        adata = _larger(adata, task.labels_key, task.n_cells, seed)
    if task.n_types:
        adata = _divided(adata, task.labels_key, task.n_types, seed)
    labels = adata.obs[task.labels_key].astype(object).map(str, na_action="ignore")
    rare = None
    if task.min_cells:
        enough = (labels.map(labels.value_counts()) >= task.min_cells).to_numpy(dtype=bool)
        adata, labels = adata[enough], labels[enough]
    if task.kind == "intra":
        in_reference, in_query, rare = _labelled(labels, task, seed)
    elif task.kind == "cv":
        in_query = _held_out(adata.obs, labels, task, seed)
        in_reference = ~in_query
    elif task.kind == "cluster":
        in_query = np.ones(len(labels), dtype=bool)
        if "split" in adata.obs:
            in_query = adata.obs["split"].astype(str).to_numpy() == "query"
        in_reference = np.zeros(len(labels), dtype=bool)
    else:
        if "split" not in adata.obs:
            raise ValueError(f'task {task.name!r} needs obs["split"], which its data lack')
        side = adata.obs["split"].astype(str).to_numpy()
        in_reference, in_query = side == "reference", side == "query"
        if task.kind == "masked":
            masked = _masked(labels[in_reference], labels[in_query], task, seed)
            in_reference &= ~labels.isin(masked).to_numpy()
    in_reference &= labels.notna().to_numpy()
    if task.training_folds:
        known = np.flatnonzero(in_reference)
        left_out = _fold(labels.iloc[known], task.training_folds, seed)
        in_reference[known[left_out]] = False
    if task.max_per_type:
        in_reference = _at_most(task.max_per_type, in_reference, labels, seed)
    if task.max_query:
        in_query = _at_most(task.max_query, in_query, pd.Series("", labels.index), seed)
    if rare is not None and task.rare_share:
        of_rare = in_query & (labels == rare).to_numpy()
        n_others = int(in_query.sum() - of_rare.sum())
        n = max(1, round(n_others * task.rare_share / (1 - task.rare_share)))
        in_query &= ~of_rare | _at_most(n, of_rare, labels, seed)
    if not (in_query.any() and (in_reference.any() or task.kind == "cluster")):
        raise ValueError(f"task {task.name!r} leaves the reference or the query without cells")

    reference, query = (_bare(adata[cells], task) for cells in (in_reference, in_query))
    reference.obs[LABELS] = pd.Categorical(labels[in_reference])
    truth, planted = labels[in_query], None
    if task.doublets or task.thinned:
        query, truth, planted = plant(query, truth, task.doublets, task.thinned, seed)
    return Split(reference, query, truth, rare, planted)


def _larger(adata: ad.AnnData, labels_key: str, n_cells: int, seed: int) -> ad.AnnData:
    """Draw new cells, each between a cell and one of its neighbours of the same type."""
    labels = adata.obs[labels_key].astype(str).to_numpy()
    counts, drawn = larger(sp.csr_matrix(adata.X), labels, n_cells, seed)
    obs = adata.obs.iloc[drawn]
    obs.index = [f"{name}-{i}" for i, name in enumerate(obs.index)]
    return ad.AnnData(counts, obs, adata.var)


def _divided(adata: ad.AnnData, labels_key: str, n_types: int, seed: int) -> ad.AnnData:
    """Divide types at random, and exchange genes of the parts, until there are ``n_types``."""
    rng = np.random.default_rng(seed)
    adata = adata[adata.obs[labels_key].notna()]
    labels = adata.obs[labels_key].astype(str)
    types = list(labels.value_counts().index)
    if n_types < len(types):
        raise ValueError(f"n_types={n_types} is less than the {len(types)} types of the data")
    n_parts = {name: len(range(i, n_types, len(types))) for i, name in enumerate(types)}
    part = rng.integers(labels.map(n_parts).to_numpy())
    counts, blocks = sp.csr_matrix(adata.X), []
    for i in range(part.max() + 1):
        genes = np.arange(adata.n_vars)
        if i:
            some = rng.choice(adata.n_vars, adata.n_vars // 10, replace=False)
            genes[some] = rng.permutation(some)
        blocks.append(counts[part == i][:, genes])
    order = np.argsort(part, kind="stable")
    obs = adata.obs.iloc[order].copy()
    obs[labels_key] = (labels + [f" {i + 1}" for i in part]).to_numpy()[order]
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs, adata.var)


def _bare(part: ad.AnnData, task: Task) -> ad.AnnData:
    """Copy the expression of some cells, without anything that could give labels away."""
    obs = pd.DataFrame(index=part.obs_names)
    if task.batch_key is not None:
        obs[BATCH] = pd.Categorical(part.obs[task.batch_key].astype(str))
    layers = {} if task.layer is None else {task.layer: part.layers[task.layer].copy()}
    return ad.AnnData(part.X.copy(), obs=obs, var=part.var[[]], layers=layers)


def _masked(reference: pd.Series, query: pd.Series, task: Task, seed: int) -> list[str]:
    """Return the types to take out of the reference."""
    shared = sorted(set(reference.dropna()) & set(query.dropna()))
    drawn = np.random.default_rng(seed).permutation(shared)[: task.n_masked].tolist()
    masked = task.masked or drawn
    if set(shared) <= set(masked) or not set(masked) <= set(reference):
        raise ValueError(
            f"task {task.name!r} masks {masked}: these must be types of the reference, and must "
            f"leave one of the types that reference and query share: {shared}"
        )
    return masked


def _labelled(
    labels: pd.Series, task: Task, seed: int
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Draw the types to hide, and the cells of the other types that keep their labels.

    Returns
    -------
    Which cells are in the reference, and in the query; the type that was made rare, if one was.
    """
    rng = np.random.default_rng(seed)
    types = sorted(labels.dropna().unique())
    if len(types) < 2:
        raise ValueError(f"task {task.name!r} needs two types or more, found {types}")
    n_hidden = round(task.hidden * len(types))
    if task.hidden:
        n_hidden = int(np.clip(n_hidden, 1, len(types) - 1))
    size = labels.value_counts()
    seen = rng.permutation(types)[n_hidden:]
    n_labelled = {
        name: task.n_labelled or max(1, round(task.labelled * size[name])) for name in seen
    }
    if short := [name for name in seen if n_labelled[name] > size[name]]:
        raise ValueError(
            f"task {task.name!r} labels {task.n_labelled} cells, more than {short} has"
        )
    n_other = {name: size[name] - n_labelled[name] for name in seen}
    if task.equal:
        fewest = min(n_labelled.values()), min(n_other.values())
        n_labelled, n_other = (dict.fromkeys(seen, n) for n in fewest)
    rare = None
    if task.n_rare:
        common = [name for name in sorted(seen) if n_labelled[name] >= 2 * task.n_rare + 20]
        if not common:
            raise ValueError(f"task {task.name!r} has no type to cut to {task.n_rare} cells")
        rare = common[seed % len(common)]
        n_other[rare] += n_labelled[rare] - task.n_rare
        n_labelled[rare] = task.n_rare
    reference = np.zeros(len(labels), dtype=bool)
    query = ~labels.isin(seen).to_numpy()
    for name in seen:
        cells = np.flatnonzero(labels == name)
        reference[rng.choice(cells, n_labelled[name], replace=False)] = True
        others = cells[~reference[cells]]
        if n_other[name] < len(others):
            others = rng.choice(others, n_other[name], replace=False)
        query[others] = True
    if task.all_labelled:
        reference = labels.isin(seen).to_numpy() & ~query
    return reference, query, rare


def _at_most(n: int, cells: np.ndarray, groups: pd.Series, seed: int) -> np.ndarray:
    """Return a mask of at most ``n`` cells of each group, drawn from those of a mask."""
    drawn = groups.reset_index(drop=True)[cells].sample(frac=1, random_state=seed)
    first = drawn.groupby(drawn, observed=True).head(n)
    return np.isin(np.arange(len(cells)), first.index)


def _held_out(obs: pd.DataFrame, labels: pd.Series, task: Task, seed: int) -> np.ndarray:
    """Choose the cells of one batch, or of one stratified fold."""
    if task.groups is not None:
        groups = obs[task.groups].astype(str).to_numpy()
        batches = np.unique(groups)
        return groups == batches[seed % len(batches)]
    return np.isin(np.arange(len(labels)), _fold(labels, task.folds, seed))


def _fold(labels: pd.Series, n_folds: int, seed: int) -> np.ndarray:
    """Return the positions of fold ``seed``, stratified by type; each round is shuffled anew."""
    rounds, fold = divmod(seed, n_folds)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=rounds)
    return list(folds.split(labels, labels.fillna("")))[fold][1]
