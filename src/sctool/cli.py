"""Command-line interface to ``sctool.tl``."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

EPILOG = """\
examples:
  sctool demo
      annotate bundled blood cells (no download, no input files)
  sctool annotate query.h5ad --ref ref.h5ad --labels-key cell_type -o annotated.h5ad
      annotate query.h5ad with the cell types of ref.h5ad
  sctool annotate query.h5ad --ref ref.h5ad -o annotated.h5ad --save-model model/
  sctool annotate other.h5ad --model model/ -o other_annotated.h5ad
      save the trained model and apply it to other cells without training
  sctool annotate large.h5ad --model model/ --in-place
      with a saved model the cells are read in pieces and never loaded as a whole
  sctool annotate large.zarr --model model/ -o labels.csv --json
      a table of the labels alone, and a summary that other programs can read
  sctool annotate query.h5ad --model human -o annotated.h5ad
      annotate human cells without a reference; `sctool models` lists such models
  sctool annotate query.h5ad --ref one.h5ad --ref other.h5ad --model model/ -o annotated.h5ad
      one answer from several references
  sctool report annotated.h5ad -o report.html
      write a report on an annotation, one file that any browser opens
  sctool cluster cells.h5ad -o clustered.h5ad
      cluster cells without a reference

exit codes: 0 success, 1 an unforeseen error (with a traceback), 2 invalid input or arguments,
130 interrupted. Except for 0, inputs and existing outputs are as they were."""


#: What `sctool annotate` writes, by the ending of the name: cells, and tables of labels.
CELLS, TABLES = (".h5ad", ".zarr", ".h5mu"), (".csv", ".parquet")

METHOD_HELP = "{methods} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Parser that lists the methods in its help, and imports the models only for that.

    In an option's help, ``{methods}``, ``{grouping}`` and ``{clustering}`` are replaced by the
    methods that annotate, group novel cells and cluster.
    """

    def format_help(self) -> str:
        """Format the help with the registered methods."""
        for action in self._actions:
            if action.help and "{" in action.help:
                action.help = action.help.format(**_method_names())
        return super().format_help()


def _method_names() -> dict[str, str]:
    from sctool.model import CLUSTER_METHODS, METHODS, OpenWorldModel

    grouping = [name for name, cls in METHODS.items() if issubclass(cls, OpenWorldModel)]
    names = {"methods": METHODS, "grouping": grouping, "clustering": CLUSTER_METHODS}
    return {key: ", ".join(values) for key, values in names.items()}


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    from sctool import __version__

    top = Parser(
        prog="sctool",
        description="Annotate single cells with a labelled reference and flag novel cell types.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sctool {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    annotate = commands.add_parser(
        "annotate",
        help="annotate the cells of a file",
        description=(
            "Assign cell types to the cells of QUERY using a labelled reference or a trained "
            "model. Genes are matched by name; counts, linear and log1p values are recognised. "
            "OUT is QUERY with the results added to obs, obsm and uns, or a table of labels. QUERY "
            "and REF are .h5ad files, .zarr folders, 10x .h5 files or 10x folders, or .h5mu files, "
            "of which the gene expression is used."
        ),
    )
    annotate.add_argument("query", metavar="QUERY", type=Path, help="cells to annotate")
    annotate.add_argument(
        "--ref",
        metavar="REF",
        type=Path,
        action="append",
        default=[],
        help="labelled reference to train on; repeated, also together with --model, several give "
        "one answer",
    )
    annotate.add_argument(
        "--model",
        action="append",
        default=[],
        help="model to apply without training: a saved one, a name that `sctool models` lists, a "
        "file of CellTypist or a URL; may be repeated",
    )
    where = annotate.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="what to write: *.h5ad, *.zarr, *.h5mu with all modalities of a QUERY *.h5mu, or the "
        "labels alone in *.csv or *.parquet",
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="add the results to QUERY, which is replaced by an annotated copy at the very end",
    )
    annotate.add_argument(
        "--json", action="store_true", help="print a summary as JSON instead of text"
    )
    annotate.add_argument(
        "--labels-key",
        action="append",
        help="column of the reference's obs with the cell types (default: cell_type); repeated, "
        "from coarse to fine, they are a hierarchy",
    )
    annotate.add_argument("--method", default="auto", help=METHOD_HELP)
    annotate.add_argument("--preset", help="preset of the method, such as paper")
    annotate.add_argument(
        "--batch-key", help="column of both files' obs with batches, such as donors"
    )
    annotate.add_argument(
        "--layer",
        help="layer, of one or both files, with the values (raw for .raw; default: detected)",
    )
    annotate.add_argument(
        "--novel",
        default="auto",
        help="auto: flag novel cells; 0: assume all types are known; N: find N novel types "
        "({grouping}) (default: %(default)s)",
    )
    annotate.add_argument(
        "--risk",
        type=float,
        help="also name each cell as specifically as this risk of error allows, such as 0.05",
    )
    annotate.add_argument(
        "--hierarchy",
        choices=["ontology"],
        metavar="ontology",
        help="groups of types for --risk: those with a name in the Cell Ontology (default: the "
        "columns of labels, or learnt)",
    )
    annotate.add_argument(
        "--groupby", help="column of QUERY's obs with clusters, to describe and to pool names by"
    )
    annotate.add_argument(
        "--allowed",
        metavar="TYPE",
        action="append",
        help="a known type that may be there, repeated for each; cells that fit none of them are "
        "flagged (default: all)",
    )
    annotate.add_argument(
        "--ignore-case",
        action="store_true",
        help="ignore case when matching gene names (Cd79a, CD79A)",
    )
    annotate.add_argument(
        "--adapt",
        action="store_true",
        help="with --model: adapt it to QUERY, and search QUERY for novel types",
    )
    annotate.add_argument(
        "--key-added",
        default="sctool",
        help="key under which results are stored (default: %(default)s)",
    )
    _add_run_arguments(annotate)
    annotate.set_defaults(run=run_annotate)

    report = commands.add_parser(
        "report",
        help="write an HTML report on an annotated file",
        description=(
            "Write a report on the cells of ANNOTATED, a file that sctool annotate has written: "
            "one HTML file that any browser opens and that needs no network."
        ),
    )
    report.add_argument("annotated", metavar="ANNOTATED", type=Path, help="annotated cells")
    report.add_argument(
        "-o", "--output", metavar="REPORT.html", type=Path, required=True, help="file to write"
    )
    report.add_argument(
        "--key", default="sctool", help="key of the annotation (default: %(default)s)"
    )
    report.add_argument(
        "--basis",
        help="positions of the cells on the map, a slot of obsm (default: X_umap or, if there is "
        "none, a UMAP of the model's embedding)",
    )
    report.add_argument("--overwrite", action="store_true", help="replace REPORT if it exists")
    report.set_defaults(run=run_report)

    cluster = commands.add_parser(
        "cluster",
        help="cluster the cells of a file",
        description=(
            "Cluster the cells of CELLS without a reference, or assign them to the clusters of a "
            "trained model. OUT is CELLS with the results added to obs, obsm and uns."
        ),
    )
    cluster.add_argument("cells", metavar="CELLS", type=Path, help="cells to cluster")
    cluster.add_argument(
        "--model",
        help="model to apply without training: a saved one, a name that `sctool models` lists, a "
        "file of CellTypist or a URL",
    )
    cluster.add_argument(
        "-o", "--output", metavar="OUT.h5ad", type=Path, required=True, help="file to write"
    )
    cluster.add_argument(
        "-n", "--n-clusters", type=int, help="number of clusters (default: estimated)"
    )
    cluster.add_argument(
        "--method",
        default="cicl",
        help="{clustering} or leiden (default: %(default)s)",
    )
    cluster.add_argument("--preset", help="preset of the method, such as paper")
    cluster.add_argument("--layer", help="layer with the values (raw for .raw; default: detected)")
    cluster.add_argument(
        "--key-added", help="key under which results are stored (default: the method's name)"
    )
    _add_run_arguments(cluster)
    cluster.set_defaults(run=run_cluster)

    models = commands.add_parser(
        "models",
        help="list the models that have a name",
        description="List the models that `sctool annotate --model` knows by name.",
    )
    models.set_defaults(run=run_models)

    demo = commands.add_parser(
        "demo",
        help="annotate bundled blood cells",
        description=(
            "Split the 700 blood cells shipped with scanpy into a labelled reference and an "
            "unlabelled query, remove a type from the reference, annotate the query, and show "
            "beside logistic regression what becomes of the known and of the removed type."
        ),
    )
    demo.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("sctool_demo"),
        help="folder to write to (default: %(default)s)",
    )
    demo.add_argument("--method", default="auto", help=METHOD_HELP)
    demo.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    demo.set_defaults(run=run_demo)
    return top


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments shared by the commands that train a model."""
    command.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    command.add_argument(
        "--max-epochs", type=int, help="number of training epochs (default: the preset's)"
    )
    command.add_argument("--accelerator", default=None, help="cpu, gpu or auto (default: auto)")
    command.add_argument(
        "--save-model", metavar="DIR", type=Path, help="directory to save the trained model in"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace OUT and DIR if they exist"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="hide the progress bar")


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """Stop quietly if the reader of the output, such as ``head``, has seen enough."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    code = 0
    with pipe_may_close():
        code = _run(argv)
    return code


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of cell types may not be in its encoding
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    logging.basicConfig(format="sctool: %(message)s", level=logging.WARNING)
    try:
        return int(args.run(args) or 0)
    except BrokenPipeError:
        raise
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"sctool: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sctool: interrupted", file=sys.stderr)
        return 130


def run_annotate(args: argparse.Namespace) -> int:
    """``sctool annotate``."""
    from sctool import tl

    if not args.ref and not args.model:
        raise ValueError("one of the arguments --ref --model is required")
    files = [str(Path(source).resolve()) for source in (*args.ref, *args.model)]
    if twice := sorted({file for file in files if files.count(file) > 1}):
        raise ValueError(f"{twice!r} is given twice, and would count twice.")
    if args.save_model is not None and len(args.ref) + len(args.model) > 1:
        raise ValueError(
            "--save-model requires a single --ref or --model: several have no single model."
        )
    if args.save_model is not None and args.model and not args.adapt:
        raise ValueError(
            "--save-model requires --ref or --adapt: with --model alone nothing is trained."
        )
    if args.in_place:
        args.output, args.overwrite = args.query, True
    _check_outputs(args, (*CELLS, *TABLES))
    with _query(args) as adata, _references(args) as refs:
        levels = args.labels_key or ["cell_type"]
        model = tl.annotate(
            adata,
            refs[0] if len(refs) == 1 else refs,
            labels_key=levels if len(levels) > 1 else levels[0],
            method=args.method,
            batch_key=args.batch_key,
            layer=args.layer,
            novel=int(args.novel) if args.novel.isdigit() else args.novel,
            risk=args.risk,
            hierarchy=args.hierarchy,
            groupby=args.groupby,
            allowed=args.allowed,
            ignore_case=args.ignore_case,
            adapt=args.adapt,
            key_added=args.key_added,
            random_state=args.seed,
            return_model=len(refs) == 1,
            model_kwargs={"preset": args.preset} if args.preset else None,
            train_kwargs=_train_kwargs(args),
        )
    _write(adata, model, args)
    print(_as_json(adata, args) if args.json else _as_text(adata, args))
    return 0


@contextmanager
def _query(args: argparse.Namespace) -> Iterator[AnnData]:
    """Yield the query; with a saved model it stays on disk, if its format allows that."""
    from sctool import _ondisk

    if not _stays_on_disk(args) or (args.ref and not _is_large(args.query)):
        yield _read_for(args, args.query)
        return
    with ExitStack() as stack:
        try:
            adata = _ondisk.lazy(stack.enter_context(_ondisk.opened(args.query)))
        except Exception:  # older than what can be read in pieces, or broken, which this says
            adata = _read_for(args, args.query)
        yield adata


@contextmanager
def _references(args: argparse.Namespace) -> Iterator[list[AnnData | str]]:
    """Yield the references, of which large ones stay on disk, and the names of trained models."""
    from sctool import _files, _ondisk

    with ExitStack() as stack:
        refs: list[AnnData | str] = []
        for path in args.ref:
            if path.exists() and _ondisk.kind_of(path) is not None and _is_large(path):
                refs.append(_ondisk.lazy(stack.enter_context(_ondisk.opened(path))))
            else:
                refs.append(_files.read(path))
        yield [*refs, *args.model]


def _summary(adata: AnnData, args: argparse.Namespace) -> dict[str, Any]:
    """What an annotation found, by name."""
    key = args.key_added
    result, names, flagged = adata.uns[key], adata.obs[key], adata.obs.get(f"{key}_novel")

    models = [str(args.save_model)] if args.save_model else args.model

    def count(values: pd.Series) -> dict[str, int]:
        return {str(name): int(n) for name, n in values.value_counts().items() if n}

    return {
        "output": str(args.output),
        "model": models[0] if len(models) == 1 else models or None,
        "key": key,
        "n_cells": adata.n_obs,
        "counts": count(names),
        "flagged_as_novel": None if flagged is None else count(names[flagged]),
        "status": count(adata.obs[f"{key}_status"]),
        "audit": [str(note) for note in result["audit"]],
        "alarms": [str(alarm) for alarm in result["alarms"]],
    }


def _as_json(adata: AnnData, args: argparse.Namespace) -> str:
    """The summary as one JSON object."""
    return json.dumps(_summary(adata, args), ensure_ascii=False, indent=1)


def _as_text(adata: AnnData, args: argparse.Namespace) -> str:
    """The audit of an annotation, its alarms and the number of cells of each type."""
    from sctool._progress import note_lines

    found = _summary(adata, args)
    flagged = found["flagged_as_novel"]
    lines = note_lines(found["audit"], found["alarms"])
    width = max(map(len, found["counts"]), default=0)
    for name, n in found["counts"].items():
        novel = "" if flagged is None else f"  ({flagged.get(name, 0)} flagged as novel)"
        lines.append(f"  {name:<{width}}  {n:>7}{novel}")
    saved = f" and {args.save_model}" if args.save_model else ""
    return "\n".join([*lines, f"wrote {args.output}{saved}"])


def run_report(args: argparse.Namespace) -> int:
    """``sctool report``."""
    from sctool import _files, tl

    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{str(args.output)!r} exists: pass --overwrite to replace it.")
    tl.report(_files.read(args.annotated), args.output, key=args.key, basis=args.basis)
    print(f"wrote {args.output}")
    return 0


def run_cluster(args: argparse.Namespace) -> int:
    """``sctool cluster``."""
    from sctool import tl
    from sctool.model import CLUSTER_METHODS

    trains = args.model is None and args.method in CLUSTER_METHODS
    if args.save_model is not None and not trains:
        raise ValueError("--save-model: this call trains no model; drop --save-model.")
    _check_outputs(args)
    adata = _read_for(args, args.cells)
    model = tl.cluster(
        adata,
        n_clusters=args.n_clusters,
        method=args.method,
        model=args.model,
        layer=args.layer,
        key_added=args.key_added,
        random_state=args.seed,
        return_model=True,
        model_kwargs={"preset": args.preset} if args.preset else None,
        train_kwargs=_train_kwargs(args) if trains else None,
    )
    _write(adata, model, args)
    key = args.key_added or args.method
    for note in adata.uns[key]["audit"]:
        print(f"  {note}")
    for name, n in adata.obs[key].value_counts(sort=False).items():
        print(f"  {name!s:<4}  {n:>7}")
    print(f"wrote {args.output}" + (f" and {args.save_model}" if args.save_model else ""))
    return 0


def run_models(args: argparse.Namespace) -> int:
    """``sctool models``."""
    from sctool.model import models

    for name, row in models().iterrows():
        print(f"{name}" + ("" if row["available"] else "  (not installed)"))
        print(f"  {row['species']}, {row['n_types']} types, {row['n_genes']} genes")
        print(f"  {row['source']}; {row['size_mb']} MB; licence: {row['licence']}")
    return 0


def _write(adata: AnnData, model: Any, args: argparse.Namespace) -> None:
    """Write model and cells; if one fails, the other is still written."""
    from sctool import _files, _ondisk

    try:
        if args.save_model is not None:  # first: it took the longest to make
            model.save(args.save_model, overwrite=args.overwrite)
    finally:
        if args.output.suffix.lower() in TABLES:
            _ondisk.write_table(adata, args.key_added, args.output)
        elif _stays_on_disk(args):
            _ondisk.write_annotated(adata, args.key_added, args.query, args.output)
        else:
            _files.write(adata, args.output)


def _stays_on_disk(args: argparse.Namespace) -> bool:
    """Whether results are appended to a copy of the query, which need not be loaded."""
    from sctool import _ondisk

    if args.command != "annotate" or not args.query.exists():
        return False
    if _ondisk.kind_of(args.query) is None:
        return False
    whole = args.in_place or args.output.suffix.lower() == ".h5mu"
    return not args.ref or whole or _is_large(args.query)


def _is_large(path: Path) -> bool:
    """Whether a file that need not be loaded has more cells than are trained with."""
    from sctool import _data, _ondisk

    with ExitStack() as stack, suppress(Exception):  # older, or broken, which reading it says
        return _ondisk.lazy(stack.enter_context(_ondisk.opened(path))).n_obs > _data.MOST
    return False


def _check_outputs(args: argparse.Namespace, endings: Sequence[str] = (".h5ad",)) -> None:
    """Refuse outputs that cannot or must not be written, before anything is computed."""
    from sctool import _ondisk

    output, model = args.output, args.save_model
    ending = output.suffix.lower()
    named = " or ".join(f"*{ending}" for ending in endings)
    if ending not in endings:
        raise ValueError(f"-o {str(output)!r}: what is written is named {named}.")
    if ending == ".h5mu" and args.query.suffix.lower() != ".h5mu":
        raise ValueError(
            f"-o {str(output)!r}: {str(args.query)!r} is no .h5mu file, so there are no other "
            "modalities to write. Name it *.h5ad."
        )
    if output.is_dir() and _ondisk.kind_of(output) != "zarr":
        raise ValueError(f"-o {str(output)!r} is a folder: name a file, {named}.")
    if model is not None and output.resolve() in (model.resolve(), *model.resolve().parents):
        raise ValueError(f"-o and --save-model are both {str(output)!r}: name two places.")
    if model is not None and model.exists() and not model.is_dir():
        raise ValueError(f"--save-model {str(model)!r} is a file: name a folder.")
    for path in (output, model):
        if path is not None and path.exists() and not args.overwrite:
            raise ValueError(f"{str(path)!r} exists: pass --overwrite to replace it.")
    if not output.parent.is_dir():
        raise ValueError(f"The folder {str(output.parent)!r} does not exist.")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"The folder {str(output.parent)!r} may not be written to.")
    for ref in getattr(args, "ref", []):
        if ref.exists() and output.exists() and output.samefile(ref):
            raise ValueError(f"-o {str(output)!r} is the reference, which would be lost.")
    if ending in TABLES:
        _ondisk.check_table(output)
    elif _stays_on_disk(args):
        _ondisk.check_space(args.query, output)


def _read_for(args: argparse.Namespace, path: Path) -> AnnData:
    """Read the cells that are written to ``args.output``, and make sure that they can be."""
    from sctool import _files

    adata = _files.read(path)
    # (with --json stdout is for programs)
    where = sys.stderr if getattr(args, "json", False) else sys.stdout
    for note in _files.check_writable(adata, args.output):
        print(f"  {note}", file=where)
    return adata


def _train_kwargs(args: argparse.Namespace) -> dict[str, object] | None:
    """Collect the options that concern training."""
    given = {"max_epochs": args.max_epochs, "accelerator": args.accelerator}
    if args.quiet:
        given["enable_progress_bar"] = False
    return {name: value for name, value in given.items() if value is not None} or None


def run_demo(args: argparse.Namespace) -> int:
    """``sctool demo``."""
    from sctool import _demo

    _demo.run(args.output, args.method, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
