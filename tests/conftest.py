"""What several test files share; the synthetic cells themselves are in ``synthetic.py``."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# One thread: on networks this small, and on a machine that does other work too, more of them only
# wait for each other. Set before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "agg")

import anndata as ad
import pytest
from synthetic import simulate_joint, simulate_sides

DATA_DIR = Path(
    os.environ.get("SCTOOL_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data"
).absolute()


@pytest.fixture
def sides() -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query, with ``obs["truth"]``, and a labelled reference."""
    return simulate_sides()


@pytest.fixture
def adata(sides) -> ad.AnnData:
    """Return the query of ``sides``."""
    return sides[0]


@pytest.fixture
def ref(sides) -> ad.AnnData:
    """Return the reference of ``sides``."""
    return sides[1]


@pytest.fixture
def joint() -> ad.AnnData:
    """Return the cells of ``sides`` in one object, the query's labelled "Unknown"."""
    return simulate_joint()


@pytest.fixture
def empty_cwd(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """Run in an empty folder, which must be empty at the end as well."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    yield folder
    assert [p.name for p in folder.iterdir()] == []


@pytest.fixture
def figdir(tmp_path) -> Iterator[Path]:
    """Return the folder in which scanpy saves figures, a new one; its settings may be changed."""
    from scanpy import settings

    before = settings.figdir, settings.file_format_figs, settings.autosave
    settings.figdir = tmp_path / "figures"
    yield tmp_path / "figures"
    settings.figdir, settings.file_format_figs, settings.autosave = before


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def read_real() -> Callable[[str], ad.AnnData]:
    """Return a function that reads a real data set by its file's name, or skips."""

    def read(name: str) -> ad.AnnData:
        path = DATA_DIR / f"{name}.h5ad"
        if not path.is_file():
            pytest.skip(f"no {path.name}: set SCTOOL_DATA_DIR to the folder with the real data")
        return ad.read_h5ad(path)

    return read
