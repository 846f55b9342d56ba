"""Models by name, file or URL: what there is, and how it gets here."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sctool.model import _actinn
from sctool.model._celltypist import read_celltypist
from sctool.model._pretrained import file_size

if TYPE_CHECKING:
    from sctool.model._base import CellModel

#: Of a saved model, alone in an archive.
SAVED = ["model.json", "weights.pt"]


@dataclass(frozen=True)
class Entry:
    """A model that has a name.

    Attributes
    ----------
    where
        File, folder or URL; empty for the model of an installed package.
    sha256
        Checksum of the file; None if it is not known.
    """

    species: str
    n_types: int | None
    n_genes: int | None
    licence: str
    source: str
    size_mb: float | None
    where: str = ""
    sha256: str | None = None


HUMAN = Entry(
    species="human",
    n_types=324,
    n_genes=4000,
    licence="weights CC BY 4.0, files MIT",
    source="actinn-jax 0.3.1, distilled from Pan-human Azimuth; extra sctool-annotate[human]",
    size_mb=17.1,
)
_entries: dict[str, Entry] = {"human": HUMAN}


def models() -> pd.DataFrame:
    """List the models that :func:`sctool.tl.annotate` knows by name.

    Returns
    -------
    A table with the names in its index: ``species``, ``n_types`` and ``n_genes`` of the model
    (missing for a URL that was not used yet), ``licence``, ``source``, ``size_mb`` in megabytes,
    and ``available``, whether it is on this computer.

    Examples
    --------
    >>> int(models().loc["human", "n_types"])
    324
    """
    rows = {
        name: {
            "species": entry.species,
            "n_types": entry.n_types,
            "n_genes": entry.n_genes,
            "licence": entry.licence,
            "source": entry.source,
            "size_mb": entry.size_mb,
            "available": _is_here(entry),
        }
        for name, entry in _entries.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "name"
    return table.astype({"n_types": "Int64", "n_genes": "Int64", "size_mb": "Float64"})


def register_model(
    name: str,
    source: str | Path,
    *,
    sha256: str | None = None,
    species: str = "",
    licence: str = "",
) -> None:
    """Give a model a name, until Python ends.

    Parameters
    ----------
    name
        Name for :func:`sctool.tl.annotate` and :func:`sctool.model.load`.
    source
        Folder of a saved model, a ``.zip`` of one, or a ``.pkl`` file of CellTypist; or the URL of
        such a file, which is downloaded when it is first used.
    sha256
        Checksum of the file, which is compared whenever the model is used.
    species, licence
        Shown by :func:`sctool.models`.

    Returns
    -------
    None.

    Raises
    ------
    ValueError
        The name is taken by a model of sctool, looks like a path, or there is no such file.
    """
    if name == "human" or not name or set(name) & set("/\\:"):
        raise ValueError(f"name={name!r}: pass a name that is not taken, without slashes or ':'.")
    where = str(source)
    if not where or (not is_url(where) and not Path(where).exists()):
        raise ValueError(f"source={where!r} is no file, folder or URL.")
    size = None if is_url(where) else round(file_size(Path(where)) / 1e6, 1)
    _entries[name] = Entry(species, None, None, licence, where, size, where, sha256)


def is_url(text: str) -> bool:
    """Whether a text is a URL that can be downloaded."""
    return text.startswith(("https://", "http://", "ftp://"))


def load(dir_path: str | Path) -> CellModel:
    """Load a model: a saved one of any class, or one that others trained.

    Nothing that a file names is run: saved models are JSON and plain tensors, and of CellTypist's
    pickles only the arrays are read.

    Parameters
    ----------
    dir_path
        One of: a name in :func:`sctool.models`, such as "human"; the directory written by a model's
        ``save``, or a ``.zip`` of its two files; a ``.pkl`` file of CellTypist; the URL of such a
        file, which is kept in the cache of the user, or in ``SCTOOL_CACHE_DIR``. A URL may end with
        ``#sha256=`` and the checksum of the file. Names come first: write "./human" for a folder.

    Returns
    -------
    The trained model.

    Raises
    ------
    FileNotFoundError
        There is no such name, file or directory, or the directory contains no saved model.
    ImportError
        A package that has the model, or downloads it, is not installed.
    OSError
        The download failed.
    ValueError
        The model class is unknown; the checksum is another; the file is damaged; or it contains
        more than is allowed.
    """
    text = str(dir_path)
    entry = _entries.get(text) if isinstance(dir_path, str) else None
    if entry is HUMAN:
        return _actinn.read_human()
    where, sha256 = (text, None) if entry is None else (entry.where, entry.sha256)
    if is_url(where):
        path = _download(where, sha256)
    else:
        path = Path(where)
        if not path.exists() and (path.name == where or path.suffix in (".pkl", ".zip")):
            raise FileNotFoundError(
                f"No saved sctool model in {text!r}: there is no such folder or file, and the "
                f"names of models are {list(_entries)!r}."
            )
        if sha256 is not None:
            _compare(path, sha256)
    model = _read(path)
    if is_url(where) and (sha256 or _split(where)[1]) is None:
        model.audit_.append(
            f"model: downloaded from {where}, without a checksum to compare; it has sha256="
            f"{_sha256(path)}"
        )
    if entry is not None:
        _entries[text] = replace(
            entry,
            species=entry.species or getattr(model, "source_", {}).get("species", ""),
            n_types=len(model.names_),
            n_genes=len(model.features_.selected),
            size_mb=round(file_size(path) / 1e6, 1),
        )
    return model


def _read(path: Path) -> CellModel:
    from sctool.model import load_saved

    if path.suffix.lower() == ".pkl" and path.is_file():
        return read_celltypist(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            _unpack(path, Path(folder))
            return load_saved(Path(folder))
    return load_saved(path)


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the two files of a saved model."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in SAVED:
                (folder / name).write_bytes(archive.read(name))
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError) as error:  # the last: encrypted
        raise ValueError(
            f"{str(path)!r} is no archive of a saved model: {error}. It should hold {SAVED!r}, and "
            "no folder."
        ) from error


def _pooch() -> Any:
    try:
        import pooch
    except ImportError:
        raise ImportError(
            "Models are downloaded with pooch, which is not installed: pip install "
            "'sctool-annotate[download]', or download the file yourself and pass its path."
        ) from None
    return pooch


def _cache() -> Path:
    given = os.environ.get("SCTOOL_CACHE_DIR")
    return Path(given) if given else Path(_pooch().os_cache("sctool"))


def _split(url: str) -> tuple[str, str | None]:
    """A URL without, and the checksum of, ``#sha256=...``."""
    url, _, checksum = url.partition("#sha256=")
    return url, checksum or None


def _name_in_cache(url: str) -> str:
    """The file's own name, for its ending says what it is, after the checksum of its URL."""
    name = url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def _download(url: str, sha256: str | None) -> Path:
    """Download a file once; its checksum is compared each time, if one is known."""
    url, stated = _split(url)
    known = sha256 or stated
    known = known and known.lower()
    pooch = _pooch()
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # it prints a checksum of every file that came without one
    try:
        found = pooch.retrieve(
            url,
            known_hash=None if known is None else f"sha256:{known}",
            fname=_name_in_cache(url),
            path=_cache(),
        )
    except ValueError as error:
        raise ValueError(
            f"The file at {url!r} does not have the checksum that was given, so it was not kept: "
            f"{error}"
        ) from error
    except OSError as error:
        raise OSError(f"{url!r} could not be downloaded: {error}") from error
    finally:
        logger.setLevel(level)
    return Path(found)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(path: Path, sha256: str) -> None:
    if path.is_dir():
        raise ValueError(f"sha256: {str(path)!r} is a folder, which has no checksum; pass none.")
    if (found := _sha256(path)) != sha256.lower():
        raise ValueError(f"{str(path)!r} has the checksum {found!r}, not the given {sha256!r}.")


def _is_here(entry: Entry) -> bool:
    if entry is HUMAN:
        try:
            return _actinn.human_folder().is_dir()
        except ImportError:
            return False
    if not is_url(entry.where):
        return Path(entry.where).exists()
    try:
        return (_cache() / _name_in_cache(_split(entry.where)[0])).exists()
    except ImportError:
        return False
