"""The command line: argument parsing over ``sctool.tl``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
examples:
  sctool demo
      annotate bundled blood cells, no network and no files needed
  sctool annotate query.h5ad --ref ref.h5ad --labels-key cell_type -o annotated.h5ad
      name the cells of query.h5ad after the types of ref.h5ad
  sctool annotate query.h5ad --ref ref.h5ad -o annotated.h5ad --save-model model/
  sctool annotate other.h5ad --model model/ -o other_annotated.h5ad
      keep the trained model, and use it again without training
  sctool cluster cells.h5ad -o clustered.h5ad
      group cells without a reference

exit codes: 0 done, 2 the input or the arguments are wrong"""


METHOD_HELP = "{methods}, or auto (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Lists the methods in its help; the models are loaded when somebody asks for it, not before.

    ``{methods}``, ``{grouping}`` and ``{clustering}`` in an option's help stand for those that
    annotate, that group novel cells, and that cluster.
    """

    def format_help(self) -> str:
        """The help, with the methods that are registered."""
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
    """The whole command line."""
    from sctool import __version__

    top = Parser(
        prog="sctool",
        description="Name cells after a labelled reference, and say which are none of its types.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sctool {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    annotate = commands.add_parser(
        "annotate",
        help="annotate an .h5ad file",
        description=(
            "Name the cells of QUERY after the types of a labelled reference, or with a trained "
            "model. Genes are matched by name; counts, linear and log1p values are recognised. "
            "OUT is QUERY with the results in obs, obsm and uns, for scanpy to plot."
        ),
    )
    annotate.add_argument("query", metavar="QUERY.h5ad", type=Path, help="cells to annotate")
    source = annotate.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--ref", metavar="REF.h5ad", type=Path, help="labelled reference to train on"
    )
    source.add_argument(
        "--model", metavar="DIR", type=Path, help="saved model to use; nothing is trained"
    )
    annotate.add_argument(
        "-o", "--output", metavar="OUT.h5ad", type=Path, required=True, help="file to write"
    )
    annotate.add_argument(
        "--labels-key",
        default="cell_type",
        help="column of the reference's obs with the types (default: %(default)s)",
    )
    annotate.add_argument("--method", default="auto", help=METHOD_HELP)
    annotate.add_argument("--preset", help="preset of the method, such as paper")
    annotate.add_argument("--batch-key", help="column of both obs with donors or technologies")
    annotate.add_argument(
        "--layer", help="layer of both files with the values (raw for .raw; default: found)"
    )
    annotate.add_argument(
        "--novel",
        default="auto",
        help="auto: flag cells of no known type; 0: all are known; N: N novel types "
        "({grouping}) (default: %(default)s)",
    )
    annotate.add_argument(
        "--ignore-case",
        action="store_true",
        help="match gene names of another species (Cd79a, CD79A)",
    )
    annotate.add_argument(
        "--key-added", default="sctool", help="name of the slots written (default: %(default)s)"
    )
    _add_run_arguments(annotate)
    annotate.set_defaults(run=run_annotate)

    cluster = commands.add_parser(
        "cluster",
        help="cluster an .h5ad file",
        description=(
            "Group the cells of CELLS by what they express, without a reference, or with a trained "
            "model. OUT is CELLS with the results in obs, obsm and uns, for scanpy to plot."
        ),
    )
    cluster.add_argument("cells", metavar="CELLS.h5ad", type=Path, help="cells to cluster")
    cluster.add_argument(
        "--model", metavar="DIR", type=Path, help="saved model to use; nothing is trained"
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
    cluster.add_argument("--layer", help="layer with the values (raw for .raw; default: found)")
    cluster.add_argument("--key-added", help="name of the slots written (default: the method's)")
    _add_run_arguments(cluster)
    cluster.set_defaults(run=run_cluster)

    demo = commands.add_parser(
        "demo",
        help="annotate bundled blood cells",
        description=(
            "Split the 700 blood cells that scanpy ships into a labelled reference and an "
            "unlabelled query, annotate the query, compare with the truth, and draw the result."
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
    """Add what every command that trains and writes takes."""
    command.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    command.add_argument("--max-epochs", type=int, help="epochs to train (default: the preset's)")
    command.add_argument("--accelerator", default=None, help="cpu, gpu or auto (default: auto)")
    command.add_argument(
        "--save-model", metavar="DIR", type=Path, help="directory to save the trained model in"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace OUT and DIR if they exist"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Before torch is loaded: on cores that other programs use too, threads that wait by spinning
    # slow training far down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = parser().parse_args(argv)
    logging.basicConfig(format="sctool: %(message)s", level=logging.WARNING)
    try:
        return int(args.run(args) or 0)
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"sctool: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sctool: interrupted", file=sys.stderr)
        return 130


def _read(path: Path):  # type: ignore[no-untyped-def]
    import anndata as ad

    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file.")
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # of HDF5, or of what anndata finds in it
        raise ValueError(f"{str(path)!r} cannot be read as an .h5ad file: {error}") from error


def run_annotate(args: argparse.Namespace) -> int:
    """``sctool annotate``."""
    from sctool import tl

    if args.model is not None and args.save_model is not None:
        raise ValueError("--save-model goes with --ref: with --model nothing is trained.")
    _check_outputs(args)
    adata = _read(args.query)
    model = tl.annotate(
        adata,
        _read(args.ref) if args.ref is not None else args.model,
        labels_key=args.labels_key,
        method=args.method,
        batch_key=args.batch_key,
        layer=args.layer,
        novel=int(args.novel) if args.novel.isdigit() else args.novel,
        ignore_case=args.ignore_case,
        key_added=args.key_added,
        random_state=args.seed,
        return_model=True,
        model_kwargs={"preset": args.preset} if args.preset else None,
        train_kwargs=_train_kwargs(args),
    )
    adata.write_h5ad(args.output)
    if args.save_model is not None:
        model.save(args.save_model, overwrite=args.overwrite)
    key = args.key_added
    for note in adata.uns[key]["audit"]:
        print(f"  {note}")
    novel = adata.obs.get(f"{key}_novel")
    counts = adata.obs[key].value_counts()
    width = max(len(str(name)) for name in counts.index)
    for name, n in counts[counts > 0].items():
        flagged = (
            ""
            if novel is None
            else f"  ({int(novel[adata.obs[key] == name].sum())} flagged as novel)"
        )
        print(f"  {name!s:<{width}}  {n:>7}{flagged}")
    print(f"wrote {args.output}" + (f" and {args.save_model}" if args.save_model else ""))
    return 0


def run_cluster(args: argparse.Namespace) -> int:
    """``sctool cluster``."""
    from sctool import tl
    from sctool.model import CLUSTER_METHODS

    trains = args.model is None and args.method in CLUSTER_METHODS
    if args.save_model is not None and not trains:
        raise ValueError("--save-model: there is no newly trained model to save.")
    _check_outputs(args)
    adata = _read(args.cells)
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
    adata.write_h5ad(args.output)
    if args.save_model is not None:
        model.save(args.save_model, overwrite=args.overwrite)  # type: ignore[union-attr]
    key = args.key_added or args.method
    for note in adata.uns[key]["audit"]:
        print(f"  {note}")
    for name, n in adata.obs[key].value_counts(sort=False).items():
        print(f"  {name!s:<4}  {n:>7}")
    print(f"wrote {args.output}" + (f" and {args.save_model}" if args.save_model else ""))
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse to write over files, before anything is computed."""
    for path in (args.output, args.save_model):
        if path is not None and path.exists() and not args.overwrite:
            raise ValueError(f"{str(path)!r} exists: pass --overwrite to replace it.")
    if not args.output.parent.is_dir():
        raise ValueError(f"the folder {str(args.output.parent)!r} is not there.")


def _train_kwargs(args: argparse.Namespace) -> dict[str, object] | None:
    """What the options say of training."""
    given = {"max_epochs": args.max_epochs, "accelerator": args.accelerator}
    if args.quiet:
        given["enable_progress_bar"] = False
    return {name: value for name, value in given.items() if value is not None} or None


def run_demo(args: argparse.Namespace) -> int:
    """``sctool demo``."""
    from sctool import datasets, metrics, tl

    adata, ref = datasets.blood(random_state=args.seed)
    print(
        f"{ref.n_obs} labelled blood cells of {ref.obs['cell_type'].nunique()} types teach, "
        f"{adata.n_obs} unlabelled ones are annotated"
    )
    start = time.perf_counter()
    tl.annotate(adata, ref, method=args.method, random_state=args.seed)
    seconds = time.perf_counter() - start
    for note in adata.uns["sctool"]["audit"]:
        print(f"  {note}")
    truth, named = adata.obs["truth"].astype(str), adata.obs["sctool"].astype(str)
    seen = list(adata.uns["sctool"]["classes"])
    print(
        f"accuracy {metrics.seen_accuracy(truth, named, seen):.3f}, "
        f"macro-F1 {metrics.macro_f1(truth, named, seen):.3f}, {seconds:.1f} s"
    )
    args.output.mkdir(parents=True, exist_ok=True)
    _draw_demo(adata, args.output / "annotated.png")
    adata.write_h5ad(args.output / "annotated.h5ad")
    print(f"wrote annotated.h5ad and annotated.png into {args.output.resolve()}")
    return 0


def _draw_demo(adata, path: Path) -> None:  # type: ignore[no-untyped-def]
    """UMAP of the model's embedding, coloured by prediction, truth and score."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_sctool")
    sc.tl.umap(adata, random_state=0)
    adata.uns["truth_colors"] = adata.uns["sctool_colors"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
    panels = {"sctool": "prediction", "sctool_score": "score", "truth": "truth"}
    for ax, (color, title) in zip(axes, panels.items(), strict=True):
        # One legend, at the far right, serves prediction and truth: their colours are the same.
        legend = "right margin" if color == "truth" else None
        sc.pl.umap(
            adata, color=color, title=title, ax=ax, show=False, frameon=False, legend_loc=legend
        )
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
