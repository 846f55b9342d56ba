"""Who may import whom: no import runs upward, and nothing of the library needs the benchmark."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sctool

SRC = Path(sctool.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
MODULES_OF_ARRAYS = ["losses", "metrics", "nn"]
#: From the ground up: a file imports from its own package and from floors below, never from above
#: or beside.
FLOORS = [
    ["_tables"],
    [
        *("_ahead", "_checks", "_docs", "_expected", "_ontology", "_progress", "_sets", "_slots"),
        "_umap",
        *MODULES_OF_ARRAYS,
    ],
    ["_batches", "_data", "_neighbors", "_regression", "_several"],
    ["_files", "_label_errors", "_quality", "_sketch", "_train", "_truth", "datasets", "novelty"],
    ["_ondisk", "_verdicts", "model"],
    ["_report"],
    ["pl", "tl"],
    ["_demo"],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def part(file: Path) -> str:
    """The package or module of sctool that a file belongs to, "" for sctool itself."""
    first = file.relative_to(SRC).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(file: Path) -> Iterator[str]:
    """Full names of all that a file imports, also inside functions and for type checkers alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


#: What each file imports, by its name.
IMPORTS = {name_of(file): sorted(set(imports(file))) for file in FILES}


def importers(*names: str) -> set[str]:
    """Files that import one of some packages."""
    return {f for f, found in IMPORTS.items() if {n.split(".")[0] for n in found} & set(names)}


def test_every_part_has_its_floor():
    assert len(FILES) > 40
    assert {part(file) for file in FILES} - {""} == set(FLOOR)


def test_no_import_runs_upward():
    upward = []
    for file in FILES:
        if (own := part(file)) == "":
            continue  # sctool itself names its parts, and imports them when they are used
        for name in IMPORTS[name_of(file)]:
            first, *rest = name.split(".")
            if first != "sctool" or name in ("sctool.__version__", "sctool.DISTRIBUTION"):
                continue
            if rest[0] != own and FLOOR[rest[0]] >= FLOOR[own]:
                upward.append((name_of(file), name))
    assert upward == []


def test_the_check_would_find_what_runs_upward():
    # a plain import, one of a name, one inside a function and one for type checkers
    found = set(IMPORTS["model/_contrastive.py"])
    assert {"dataclasses.dataclass", "sctool.model.load", "sctool._data.Features"} <= found
    assert "sctool.model._base.CellModel" in IMPORTS["model/_saving.py"]


def test_the_library_does_not_know_the_benchmark():
    assert importers("sctool_benchmark") == set()
    named = [name_of(f) for f in FILES if "sctool_benchmark" in f.read_text(encoding="utf-8")]
    assert named == []


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("losses.py", {"torch"}),
        ("nn.py", {"torch"}),
        ("metrics.py", {"numpy", "scipy", "sklearn"}),
        ("_sets.py", {"numpy", "pandas", "scipy"}),
    ],
    ids=["losses-torch", "nn-torch", "metrics-numpy-and-scikit-learn", "sets-numpy-and-scipy"],
)
def test_what_is_pure_stays_pure(name, allowed):
    found = {imported.split(".")[0] for imported in IMPORTS[name]}
    assert found - set(sys.stdlib_module_names) == allowed


def test_novelty_takes_arrays():
    # one file of it makes an AnnData of its own, for scanpy's test for markers
    of_novelty = {name for name in IMPORTS if name.startswith("novelty/")}
    assert of_novelty & importers("anndata", "mudata") == {"novelty/_describe.py"}
    assert of_novelty & importers("scvi", "lightning", "torch") == set()


def test_scvi_tools_is_met_in_few_places():
    # its trainer, its base class and registry, and one of its distributions
    known = {"_train.py", "model/_base.py", "model/_cicl.py", "model/_scdet.py"}
    assert importers("scvi") == known


def writes_slots(file: Path) -> bool:
    """Whether a file assigns to a slot of an AnnData, or to an entry of one."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for target in node.targets if isinstance(node, ast.Assign) else []:
            slot = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(slot, ast.Attribute) and slot.attr in ("obs", "obsm", "varm", "uns"):
                return True
    return False


def test_slots_are_written_in_one_place():
    # but for scvi-tools' registration, the example, and repairs of files that are read
    known = {"_slots.py", "model/_base.py", "datasets.py", "_files.py"}
    assert {name_of(file) for file in FILES if writes_slots(file)} == known


def test_plots_need_no_model():
    of_plots = [n for f, found in IMPORTS.items() if f.startswith("pl/") for n in found]
    ours = {name.split(".")[1] for name in of_plots if name.startswith("sctool.")}
    # _data matches the genes of a reference
    assert ours == {"_data", "_docs", "_truth", "metrics", "pl"}


BLOCKED = """
import sys
for name in ("resource", "rich"):
    sys.modules[name] = None
import sctool
assert sctool.__version__
from sctool.cli import main
try:
    main(["--version"])
except SystemExit as end:
    assert end.code == 0, end.code
"""


def test_import_and_version_need_neither_resource_nor_rich(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"sctool {sctool.__version__}\n"
    assert done.stderr == ""
