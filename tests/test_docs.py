"""The snippets of the README and of the documentation run as they are printed."""

import dataclasses
import importlib.util
import inspect
import re
import shlex
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import yaml
from sklearn.neighbors import kneighbors_graph
from synthetic import simulate, simulate_sides

import sctool
from sctool.cli import main
from sctool.model import CLUSTER_METHODS, METHODS
from sctool_benchmark import shipped_suites

ROOT = Path(__file__).parents[1]
GENERATED = {"_build", "_generated", "generated", "jupyter_execute"}
PAGES = {
    page.relative_to(ROOT).as_posix(): page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if not GENERATED & set(page.relative_to(ROOT).parts)
}
#: Languages of blocks that are run, and of those that are only shown.
RUN, SHOWN = {"python", "bash"}, {"text", "toml"}
#: Pages that take long even if training is short, and why: they run with ``-m slow`` only.
LONG = {
    "docs/gallery.md": "the search hides types of the reference many times",
    "docs/guide/novel_types.md": "the search hides types of the reference many times",
    "docs/guide/annotate.md": "many calls of every method",
    "docs/questions.md": "many calls of every method",
    "docs/quickstart.md": "the README, which is run, has nearly the same calls",
}
#: Beginnings of commands that are not run, and why.
NOT_RUN = {
    "python3 -m venv ": "makes an environment",
    ". .venv/bin/activate": "makes an environment",
    "pip install ": "installs",
    ".venv/bin/pip install ": "installs",
    ".venv-test/bin/pip install ": "installs",
    ".venv-test/bin/pytest ": "is this test suite",
    "python -c ": "reports on the installation",
    "python -m sctool_benchmark ": "is tested in tests/benchmark",
    "python -m sctool_benchmark.pretrained ": "is tested in tests/benchmark",
    "python -m sctool_benchmark.adapt ": "is tested in tests/benchmark",
    "python -m sctool_benchmark.several ": "is tested in tests/benchmark",
    "python -m sctool_benchmark.peers ": "installs",
    "python -m sctool_benchmark.openproblems ": "is tested in tests/benchmark",
    "python -m sctool_benchmark.embeddings ": "is tested in tests/benchmark",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the number of its first line."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, without Sphinx's directives."""
    found, fence, language, start = [], "", "", 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        mark = re.match(r"\s*(`{3,}|~{3,}|:{3,})\s*(\S*)", line)
        if mark and not fence:
            fence, language, start = mark[1], mark[2], number + 1
        elif fence and line.strip() == fence:
            if not language.startswith("{"):
                found.append(Block(language, start, "\n".join(lines[start - 1 : number - 1])))
            fence = ""
    assert not fence, f"{page}:{start - 1}: this block has no end"
    return found


BLOCKS = {name: blocks(page) for name, page in PAGES.items()}
RUNNABLE = [name for name, found in BLOCKS.items() if RUN & {block.language for block in found}]


def test_every_block_is_run_or_only_shown() -> None:
    unknown = [
        f"{name}:{block.line}: {block.language!r}"
        for name, found in BLOCKS.items()
        for block in found
        if block.language not in RUN | SHOWN
    ]
    assert unknown == []
    assert {"python", "bash"} <= {block.language for block in BLOCKS["README.md"]}
    assert set(LONG) <= set(RUNNABLE) or not (ROOT / "docs").exists()


def run_python(name: str, block: Block, namespace: dict) -> None:
    """Run a block so that errors, and warnings, have the line of the page."""
    source = "\n" * (block.line - 1) + block.text
    try:
        exec(compile(source, name, "exec"), namespace)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        line = lines[-1] if lines else getattr(error, "lineno", None) or block.line
        pytest.fail(f"{name}:{line}: {type(error).__name__}: {error}")


def run_bash(name: str, block: Block) -> None:
    """Run the ``sctool`` commands of a block, one a line or joined by ``&&``."""
    for number, text in enumerate(block.text.splitlines(), block.line):
        for command in re.sub(r"(^|\s)#.*", "", text).split(" && "):
            command = command.strip().removeprefix(".venv/bin/")
            if command.startswith("sctool "):
                try:
                    code = main(shlex.split(command)[1:])
                except SystemExit as end:  # argparse's way
                    code = end.code
                assert code == 0, f"{name}:{number}: exit code {code} of {command!r}"
            elif command and not command.startswith(tuple(NOT_RUN)):
                pytest.fail(f"{name}:{number}: {command!r} is neither run nor in NOT_RUN")


@pytest.fixture
def page_data(tmp_path, monkeypatch) -> Iterator[dict[str, ad.AnnData]]:
    """Go to a folder with the files that a page may read, and return the objects it may use.

    The query has a UMAP and neighbours of its own, which no page may replace.
    """
    monkeypatch.chdir(tmp_path)
    adata, ref = simulate_sides(160)  # too few to be searched for novel types, which takes long
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2), dtype=np.float32)
    adata.uns["neighbors"] = {"params": {"n_neighbors": 15, "method": "mine"}}
    for side in (adata, ref):
        side.obs["donor"] = np.resize(["a", "b"], side.n_obs)
    adata.obs["leiden"] = np.resize(["0", "1", "2"], adata.n_obs)
    lymphoid = ref.obs["cell_type"].isin(["B", "CD4 T/NK"])
    ref.obs["lineage"] = np.where(lymphoid, "lymphoid", "myeloid")
    other = simulate(60, seed=2)
    other.obs = other.obs.drop(columns="cell_type")
    for name, cells in {
        "query": adata,
        "ref": ref,
        "reference": ref,
        "other": other,
        "cells": adata,
        "others": other,
    }.items():
        cells.write_h5ad(f"{name}.h5ad")
    shown, sc.settings.autoshow = sc.settings.autoshow, False  # drawn, but there is no window
    yield {"adata": adata, "ref": ref, "other": other}
    sc.settings.autoshow = shown


@pytest.fixture
def short(monkeypatch) -> None:
    """Train for two epochs, and replace what scanpy compiles for half a minute in each process.

    Of the real query there are so few cells that novel types are not sought, which takes long.
    """
    blood = sctool.datasets.blood

    def few(**kwargs) -> tuple[ad.AnnData, ad.AnnData]:
        adata, ref = blood(**kwargs)
        return adata[::3].copy(), ref

    monkeypatch.setattr(sctool.datasets, "blood", few)
    for cls in {*METHODS.values(), *CLUSTER_METHODS.values()}:
        for preset, settings in cls.PRESETS.items():
            if "max_epochs" in {f.name for f in dataclasses.fields(settings)}:
                changed = dataclasses.replace(settings, max_epochs=2)
                monkeypatch.setitem(cls.PRESETS, preset, changed)
    neighbors_arguments = inspect.signature(sc.pp.neighbors)
    umap_arguments = inspect.signature(sc.tl.umap)

    def neighbors(*args, **kwargs) -> None:
        given = neighbors_arguments.bind(*args, **kwargs).arguments
        cells, key = given["adata"], given.get("key_added")
        graph = kneighbors_graph(cells.obsm[given["use_rep"]], 5)
        cells.uns[key or "neighbors"] = {"params": {"method": "stand-in"}}
        cells.obsp[f"{key}_connectivities" if key else "connectivities"] = graph

    def umap(*args, **kwargs) -> None:
        given = umap_arguments.bind(*args, **kwargs).arguments
        cells = given["adata"]
        assert given.get("neighbors_key", "neighbors") in cells.uns
        points = np.arange(2.0 * cells.n_obs).reshape(-1, 2)
        cells.obsm[given.get("key_added") or "X_umap"] = points

    monkeypatch.setattr(sc.pp, "neighbors", neighbors)
    monkeypatch.setattr(sc.tl, "umap", umap)


def run_page(name: str, data: dict[str, ad.AnnData]) -> None:
    """Run the blocks of a page, in order and in one namespace."""
    namespace = dict(data)
    for block in BLOCKS[name]:
        if block.language == "python":
            run_python(name, block, namespace)
        elif block.language == "bash":
            run_bash(name, block)
    for key, value in namespace.items():
        if isinstance(value, ad.AnnData) and "X_umap" in value.obsm:
            assert not np.any(value.obsm["X_umap"]), f"{name}: replaces the UMAP of {key}"
            assert value.uns["neighbors"]["params"]["method"] == "mine", name


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name not in LONG])
def test_the_snippets_run(name, page_data, short) -> None:
    run_page(name, page_data)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_snippets_run_at_full_length(name, page_data) -> None:
    run_page(name, page_data)


def test_the_links_of_the_readme_exist() -> None:
    text = PAGES["README.md"].read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    if not (ROOT / "docs").exists():
        pytest.skip("a source distribution has no documentation")
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, link


@pytest.mark.parametrize("name", ["CITATION.cff", ".github/scverse_meta.yaml"])
def test_versions_agree(name) -> None:
    if not (ROOT / name).exists():
        pytest.skip("not a clone of the repository")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = yaml.safe_load((ROOT / name).read_text())
    assert entry["version"] == project["version"]
    assert entry["license"] == project["license"]
    if "install" in entry:
        assert entry["install"] == {"pypi": project["name"]}


def test_the_page_on_the_papers_names_what_exists() -> None:
    path = ROOT / "docs" / "benchmarks" / "papers.md"
    if not path.exists():
        pytest.skip("not a clone of the repository")
    page = path.read_text()
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in tests, name
    source = "".join(p.read_text() for p in (ROOT / "src" / "sctool").rglob("*.py"))
    for name in re.findall(r"`(?:losses|metrics)\.(\w+)`", page):
        assert f"def {name}(" in source, name
    cells = re.findall(r"suites? (`\w+`(?:(?:, | and )`\w+`)*)", page)
    suites = {name for cell in cells for name in re.findall(r"\w+", cell.replace(" and ", " "))}
    assert len(suites) > 10
    assert suites <= set(shipped_suites())
    for name in re.findall(r"python -m sctool_benchmark\.(\w+)", page):
        assert importlib.util.find_spec(f"sctool_benchmark.{name}"), name
