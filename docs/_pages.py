"""Parts of the documentation that are made from the code, so that they never go stale."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import sctool
from sctool import datasets, metrics, model, pl, tl
from sctool.model import CLUSTER_METHODS, METHODS


def write_pages(docs: Path) -> None:
    """Write ``docs/_generated``: tables of the models and their presets, and the tutorials."""
    out = docs / "_generated"
    out.mkdir(exist_ok=True)
    _write(out / "models.md", models({**METHODS, **CLUSTER_METHODS}))
    for name, cls in {**METHODS, **CLUSTER_METHODS}.items():
        published = docs / "methods" / f"{name}_published.toml"
        text = presets(cls, tomllib.loads(published.read_text()) if published.exists() else {})
        _write(out / f"presets_{name}.md", text)
    for path in sorted((docs.parent / "tutorials").glob("*.ipynb")):
        shutil.copy2(path, out / path.name)
    check_api((docs / "api.md").read_text())


def models(by_method: dict[str, Any]) -> str:
    """A table of the methods: their models, settings classes and presets."""
    lines = [_row(["Method", "Model", "Settings", "Presets"]), _row(["---"] * 4)]
    for name, cls in by_method.items():
        settings = type(cls.PRESETS["default"]).__name__
        links = (f"{{class}}`~sctool.model.{linked}`" for linked in (cls.__name__, settings))
        lines.append(_row([f'`"{name}"`', *links, ", ".join(f"`{p}`" for p in cls.PRESETS)]))
    return "\n".join(lines) + "\n"


def presets(cls: type, published: dict[str, Any]) -> str:
    """A table of the settings of every preset of a model, beside published values if there are any.

    ``published["columns"]`` names further columns; ``published["settings"]`` has their values by
    setting. A name that is no setting of the model makes a row of its own, which may fill the
    presets' columns too.
    """
    columns: list[str] = published.get("columns", [])
    rows: dict[str, list[str]] = published.get("settings", {})
    names = [f.name for f in dataclasses.fields(cls.PRESETS["default"])]
    order = sorted(cls.PRESETS, key=lambda name: name == "default")
    header = ["Setting", *columns, *(f"Preset `{name}`" for name in order)]
    lines = [_row(header), _row(["---"] * len(header))]
    for name in names:
        ours = [f"`{getattr(cls.PRESETS[preset], name)}`" for preset in order]
        lines.append(_row([f"`{name}`", *rows.get(name, ["-"] * len(columns)), *ours]))
    for name, values in rows.items():
        if name not in names:
            empty = [""] * (len(header) - 1 - len(values))
            lines.append(_row([name, *values, *empty]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def check_api(page: str) -> None:
    """Raise if a public name is not on the page of the API."""
    public: set[str] = set()
    for module in (tl, pl, model, datasets, metrics):
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
        ]
        public |= {f"{module.__name__.removeprefix('sctool.')}.{name}" for name in names}
    listed = set(re.findall(r"^\s+([a-z]+\.\w+)$", page, flags=re.MULTILINE))
    if listed != public:
        raise RuntimeError(
            f"docs/api.md lacks {sorted(public - listed)} and has {sorted(listed - public)} "
            f"beyond the public names of sctool {sctool.__version__}."
        )


def _write(path: Path, text: str) -> None:
    """Write a file only if it changes, so that Sphinx rebuilds only what did."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
