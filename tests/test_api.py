"""The rules of the public API, over all of it."""

import doctest
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from synthetic import simulate, simulate_sides

import sctool
from sctool.model import CLUSTER_METHODS, METHODS, AnnotationModel
from sctool.model._base import CellModel

MODULES = ["datasets", "metrics", "model", "pl", "tl"]
SECTIONS = [
    "Parameters",
    "Attributes",
    "Returns",
    "Raises",
    "See Also",
    "Notes",
    "References",
    "Examples",
]


def functions(*modules: str) -> dict[str, Callable]:
    """Public functions, by qualified name."""
    return {
        f"{module}.{name}": getattr(getattr(sctool, module), name)
        for module in modules
        for name in getattr(sctool, module).__all__
        if inspect.isfunction(getattr(getattr(sctool, module), name))
    }


def classes() -> dict[str, type]:
    """Public classes, by qualified name."""
    return {
        f"{module}.{name}": getattr(getattr(sctool, module), name)
        for module in MODULES
        for name in getattr(sctool, module).__all__
        if inspect.isclass(getattr(getattr(sctool, module), name))
    }


def methods() -> Iterator[tuple[str, Callable]]:
    """What the models themselves define in public, by qualified name."""
    for cls in dict.fromkeys(
        [CellModel, AnnotationModel, *METHODS.values(), *CLUSTER_METHODS.values()]
    ):
        for name, value in vars(cls).items():
            function = value.__func__ if isinstance(value, classmethod) else value
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{cls.__name__}.{name}", function


def sections(function: Callable) -> dict[str, str]:
    """The numpydoc sections of a docstring, "" being the summary."""
    doc = inspect.cleandoc(function.__doc__ or "")
    parts = re.split(rf"^({'|'.join(SECTIONS)})\n-+$", doc, flags=re.MULTILINE)
    return {"": parts[0].strip(), **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented_parameters(text: str) -> list[str]:
    names = []
    for line in text.splitlines():
        if line and not line[0].isspace():
            names += [n.strip().lstrip("*") for n in line.split(" : ")[0].split(",")]
    return names


MODELS = {**METHODS, **CLUSTER_METHODS}
PUBLIC = functions(*MODULES)
TOOLS = functions("tl")
PLOTS = functions("pl")


# -- names ---------------------------------------------------------------------------------------


def test_the_public_names_are_those_promised():
    assert set(sctool.__all__) == {"__version__", "models", *MODULES}
    assert set(dir(sctool)) == set(sctool.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", sctool.__version__)
    tools = {"annotate", "check_reference", "cluster", "evaluate", "explain", "map_to_ontology"}
    tools |= {"project_umap", "rename_novel", "report"}
    assert set(TOOLS) == {f"tl.{name}" for name in tools}
    plots = {"agreement", "annotation", "composition", "confidence", "confusion", "explain"}
    plots |= {"history", "markers", "mls", "novel", "reliability", "risk"}
    assert set(PLOTS) == {f"pl.{name}" for name in plots}


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_all_is_there(module):
    module = getattr(sctool, module)
    assert sorted(module.__all__, key=str.lower) == sorted(set(module.__all__), key=str.lower)
    for name in module.__all__:
        assert hasattr(module, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        sctool.anotate  # noqa: B018


def test_every_method_is_a_public_class():
    for cls in MODELS.values():
        assert getattr(sctool.model, cls.__name__) is cls
        assert cls.__name__ in sctool.model.__all__
        assert "default" in cls.PRESETS


IMPORT = """
import logging, os, sys, warnings
filters, handlers = list(warnings.filters), list(logging.root.handlers)
import sctool
assert warnings.filters == filters, "a warning filter"
assert logging.root.handlers == handlers, "a handler of the root logger"
assert not logging.getLogger("sctool").handlers, "a handler of our logger"
heavy = {"torch", "scvi", "lightning", "scanpy", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE", "before torch is loaded"
import sctool.cli
sctool.cli.parser()
heavy = {"torch", "scvi", "lightning", "scanpy"} & set(sys.modules)
assert not heavy, heavy
import sctool.tl, sctool.pl, sctool.model
assert logging.root.handlers == handlers, "a handler of the root logger, on use"
assert not logging.getLogger("sctool").handlers, "a handler of our logger, on use"
"""


def test_import_is_light_and_changes_nothing(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


AFTER_TORCH = """
import os, sys, types
sys.modules["torch"] = types.ModuleType("torch")
import sctool
assert "OMP_WAIT_POLICY" not in os.environ, "torch would not read it, and training would not warn"
"""


def test_what_torch_would_not_read_is_not_set():
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", AFTER_TORCH], check=True, env=env)


# -- signatures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TOOLS, *PLOTS])
def test_data_come_first_and_the_rest_is_keyword_only(name):
    parameters = list(inspect.signature((TOOLS | PLOTS)[name]).parameters.values())
    first = {"tl.check_reference": "ref", "pl.history": "model"}
    assert parameters[0].name == first.get(name, "adata")
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 2
    assert [p.name for p in positional[1:]] in (
        [],
        ["ref"],
        ["model"],
        ["truth"],
        ["names"],
        ["labels_key"],
        ["path"],
        ["groupby"],
        ["key"],
    )
    assert all(p.default is p.empty for p in positional)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(positional) :])
    assert all(p.default is not p.empty for p in parameters[len(positional) :])


#: The tool that returns a table, kept in ``uns`` as well; it draws nothing and reads no expression.
TABLE = "tl.evaluate"
#: The tool that writes a file, and nothing into the AnnData.
FILE = "tl.report"


@pytest.mark.parametrize("name", [name for name in TOOLS if name not in (TABLE, FILE)])
def test_tools_take_what_scanpys_tools_take(name):
    parameters = inspect.signature(TOOLS[name]).parameters
    assert parameters["copy"].default is False
    if name in ("tl.map_to_ontology", "tl.rename_novel"):  # they read no expression
        return
    assert parameters["random_state"].default == 0
    if name == "tl.cluster":  # named after the method, as scanpy's own
        assert parameters["key_added"].default is None
    else:
        assert parameters["key_added"].default.startswith("sctool")
    assert parameters["layer"].default is None


#: The plots of several axes, and those that scanpy draws, in the place of the given axes.
SEVERAL, IN_PLACE = ("pl.annotation", "pl.history"), ("pl.novel", "pl.markers")


@pytest.mark.parametrize("name", list(PLOTS))
def test_plots_take_axes(name):
    signature = inspect.signature(PLOTS[name])
    assert signature.parameters["ax"].default is None
    assert signature.return_annotation == ("list[Axes]" if name in SEVERAL else "Axes")
    assert list(signature.parameters)[-3:] == ["ax", "show", "save"]
    assert signature.parameters["show"].default is None
    assert signature.parameters["save"].default is None


@pytest.mark.parametrize("name", list(PUBLIC))
def test_everything_is_annotated(name):
    signature = inspect.signature(PUBLIC[name])
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty


@pytest.mark.parametrize("cls", list(MODELS.values()), ids=list(MODELS))
def test_models_have_scvi_tools_methods(cls):
    setup = inspect.signature(cls.setup_anndata).parameters
    if cls in METHODS.values():
        expected = ["adata", "labels_key", "unlabeled_category", "batch_key", "layer"]
        assert list(setup)[:5] == expected
        assert setup["unlabeled_category"].default == "Unknown"
    else:
        assert list(setup)[:2] == ["adata", "layer"]
    train = inspect.signature(cls.train).parameters
    assert {"max_epochs", "accelerator", "devices", "batch_size"} <= set(train)
    assert list(inspect.signature(cls.predict).parameters)[:3] == ["self", "adata", "soft"]
    assert list(inspect.signature(cls.load).parameters) == ["dir_path", "adata"]
    assert list(inspect.signature(cls.save).parameters) == ["self", "dir_path", "overwrite"]
    assert isinstance(cls.history, property)


# -- docstrings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PUBLIC))
def test_functions_document_parameters_and_results(name):
    function = PUBLIC[name]
    doc, parameters = sections(function), list(inspect.signature(function).parameters)
    summary = doc[""].splitlines()[0]
    assert summary.endswith((".", ":", "?")) or doc[""].split("\n\n")[0].endswith(".")
    if parameters:
        assert documented_parameters(doc["Parameters"]) == parameters
    assert doc["Returns"].strip()


@pytest.mark.parametrize(("name", "function"), list(methods()), ids=[n for n, _ in methods()])
def test_methods_document_what_they_take(name, function):
    doc = sections(function)
    assert doc[""], f"{name} has no docstring"
    if "Parameters" in doc:
        known = {*inspect.signature(function).parameters}
        assert set(documented_parameters(doc["Parameters"])) <= known


@pytest.mark.parametrize("name", list(classes()))
def test_classes_have_a_docstring(name):
    assert sections(classes()[name])[""]


@pytest.mark.parametrize("cls", list(MODELS.values()), ids=list(MODELS))
def test_every_setting_is_documented(cls):
    settings = type(cls.PRESETS["default"])
    documented: set[str] = set()
    for base in settings.__mro__[:-1]:
        documented |= set(documented_parameters(sections(base).get("Parameters", "")))
    assert documented == set(vars(cls.PRESETS["default"]))


@pytest.mark.parametrize("name", list(TOOLS))
def test_the_returns_section_of_a_tool_lists_its_slots(name):
    text = sections(TOOLS[name])["Returns"].strip()
    slots = re.findall(r"^``(obs|obsm|uns|varm)\[(.+)\]`` : \S", text, flags=re.MULTILINE)
    if name == TABLE:
        assert [slot for slot, _ in slots] == ["uns"]
        assert inspect.signature(TOOLS[name]).return_annotation == "pd.DataFrame"
    elif name == FILE:
        assert slots == []
        assert text.startswith("None. The file is written; ``adata`` is not changed.")
    elif "return_model" in inspect.signature(TOOLS[name]).parameters:
        copied = {"tl.annotate": "annotated", "tl.cluster": "clustered"}[name]
        assert " ".join(text.split()).startswith(
            f"None; the {copied} copy if ``copy=True``, the model if ``return_model=True``, or the "
            "tuple (copy, model) if both. The following is written"
        )
        assert len(slots) >= 4
    else:
        assert re.match(r"None, or the (modified )?copy if ``copy=True``\.", text)
        assert len(slots) >= 2
    assert all("key" in slot for _, slot in slots)


@pytest.mark.parametrize("name", [*TOOLS, *PLOTS, "model.load"])
def test_what_may_go_wrong_is_documented(name):
    assert re.search(r"^[A-Z]\w+Error$", sections(PUBLIC[name])["Raises"], flags=re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in PUBLIC if ">>>" in (PUBLIC[n].__doc__ or "")])
def test_examples_are_right(name):
    function = PUBLIC[name]
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(function, name, globs={function.__name__: function})
    results = [doctest.DocTestRunner().run(test) for test in tests]
    assert sum(r.attempted for r in results) > 0
    assert sum(r.failed for r in results) == 0


# -- behaviour -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained():
    """Return an annotated and explained query."""
    adata, _ = simulate_sides()
    joint = simulate(80, seed=3)
    sctool.model.ContrastiveClassifier.setup_anndata(joint, "cell_type")
    model = sctool.model.ContrastiveClassifier(joint, component="mls", folds=1)
    model.train(max_epochs=3, enable_progress_bar=False)
    sctool.tl.annotate(adata, model)
    sctool.tl.explain(adata, model, n_cells=10)
    adata.obsm["X_umap"] = adata.obsm["X_sctool"][:, :2]
    # a group such as a search for novel types finds
    name = str(adata.obs["sctool"].cat.categories[0])
    table = {"n_cells": [9], "nearest": ["DC"], "distance": [0.3], "markers": ["GENE000, GENE001"]}
    adata.uns["sctool"]["novel"] = pd.DataFrame(table, index=[name])
    return adata


def trained() -> AnnotationModel:
    """Return a model with the history of three networks."""
    model = object.__new__(sctool.model.SCNYM)
    curve = pd.DataFrame({"loss": [2.0, 1.0]}, index=pd.RangeIndex(2, name="epoch"))
    model.history_ = {f"{name}_loss_train": curve for name in ("a", "b", "c")}
    return model


DRAW = {
    "pl.agreement": lambda adata, **kwargs: sctool.pl.agreement(adata, "truth", **kwargs),
    "pl.annotation": lambda adata, **kwargs: sctool.pl.annotation(adata, **kwargs),
    "pl.composition": lambda adata, **kwargs: sctool.pl.composition(adata, "truth", **kwargs),
    "pl.confidence": lambda adata, **kwargs: sctool.pl.confidence(adata, **kwargs),
    "pl.confusion": lambda adata, **kwargs: sctool.pl.confusion(adata, "truth", **kwargs),
    "pl.explain": lambda adata, **kwargs: sctool.pl.explain(adata, **kwargs),
    "pl.history": lambda _, **kwargs: sctool.pl.history(trained(), **kwargs),
    "pl.markers": lambda adata, **kwargs: sctool.pl.markers(adata, simulate(), **kwargs),
    "pl.mls": lambda adata, **kwargs: sctool.pl.mls(adata, color="truth", **kwargs),
    "pl.novel": lambda adata, **kwargs: sctool.pl.novel(adata, **kwargs),
    "pl.reliability": lambda adata, **kwargs: sctool.pl.reliability(adata, "truth", **kwargs),
    "pl.risk": lambda adata, **kwargs: sctool.pl.risk(adata, "truth", **kwargs),
}


@pytest.mark.parametrize("name", list(PLOTS))
def test_plots_return_axes_and_show_nothing(name, explained, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("plt.show was called"))
    before = explained.copy()
    drawn = DRAW[name](explained)
    for ax in drawn if name in SEVERAL else [drawn]:
        assert isinstance(ax, Axes)
        assert ax.has_data()
    assert set(explained.uns) == set(before.uns)
    assert list(explained.obs) == list(before.obs)
    figure, (left, *others) = plt.subplots(1, 4)
    given = others if name in SEVERAL else others[0]
    drawn = DRAW[name](explained, ax=given)
    assert drawn == given or name in IN_PLACE
    assert all(ax.has_data() for ax in (drawn if name in SEVERAL else [drawn]))
    assert not left.has_data()
    assert len(plt.get_fignums()) == 2
    figure.canvas.draw()


@pytest.mark.parametrize("name", list(PLOTS))
def test_plots_are_saved_as_by_scanpy_and_shown_if_asked_to(name, explained, monkeypatch, figdir):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    DRAW[name](explained, save="_mine.png", show=True)
    (saved,) = figdir.iterdir()
    assert saved.name == f"sctool_{name.removeprefix('pl.')}_mine.png"
    assert plt.imread(saved).std() > 0
    assert shown == [True]


@pytest.mark.parametrize("name", [name for name in PLOTS if name != "pl.history"])  # of a model
def test_plots_name_what_is_missing(name):
    adata, _ = simulate_sides()
    with pytest.raises(KeyError, match="sctool"):
        DRAW[name](adata)
