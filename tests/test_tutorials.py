"""The tutorials run from top to bottom, offline, and are kept with their results."""

import importlib.util
import json
import shutil
from pathlib import Path

import anndata as ad
import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 600_000


def human_available() -> bool:
    """Whether the model is there; its package is not imported, which would need JAX."""
    return importlib.util.find_spec("actinn_jax") is not None


def place_pbmc3k(cells: ad.AnnData, folder: Path) -> None:
    """Put the cells where ``scanpy.datasets.pbmc3k`` keeps its download: tests use no network."""
    folder.mkdir()
    ad.AnnData(cells.X, cells.obs[[]], cells.var[[]]).write_h5ad(folder / "pbmc3k_raw.h5ad")


@pytest.mark.slow
# The packages that run notebooks warn about themselves; it is the notebook that is tested.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_executes(path: Path, tmp_path: Path, monkeypatch, read_real) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # else it sets torch's threads, see conftest
    reason = 'the extra "tutorials" is not installed: pip install "sctool-annotate[tutorials]"'
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    pytest.importorskip("captum", reason=reason)
    if path.stem == "no_reference" and not human_available():
        pytest.skip('the extra "human" is not installed')
    if "sc.datasets.pbmc3k()" in path.read_text(encoding="utf-8"):
        place_pbmc3k(read_real("pbmc3k_seurat"), tmp_path / "data")
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises, and shows the cell, if one fails
    left = [file.name for file in tmp_path.iterdir() if file.name not in (path.name, "data")]
    assert left == [], "a tutorial leaves no files behind"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_with_its_results(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < MAX_BYTES
