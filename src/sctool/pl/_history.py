from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool.pl import _figure

ACCURACY = "accuracy_validation"


@docs.dedent
def history(
    model: Any,
    *,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> list[Axes]:
    """Plot the losses of training, and the accuracy on held-out cells, by epoch.

    Parameters
    ----------
    model
        Trained in this session, such as what :func:`sctool.tl.annotate` returns with
        ``return_model=True``; a file does not keep the history.
    ax
        Axes to draw on, one for each network.
    %(show_save)s

    Returns
    -------
    The axes, one panel for each network or stage of training. Losses are on the left axis, those of
    the training cells as lines and that of held-out cells dashed. The accuracy on held-out cells,
    of the models that record it ("auto", "scnym"), is on the right axis, dotted. "loss" is what is
    minimised; the others are its terms.

    Raises
    ------
    TypeError
        ``model`` is not a model of sctool.
    ValueError
        The model was not trained in this session, or not in epochs; ``ax`` has not one axes for
        each network.
    """
    if not hasattr(type(model), "history"):
        raise TypeError(f"model must be a model of sctool, not {type(model).__name__}.")
    panels = _panels(model)
    if ax is None:
        size = (4.6 * len(panels), 3.4)
        _, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        axes = list(grid[0])
    else:
        axes = list(ax)
    if len(axes) != len(panels):
        raise ValueError(
            f"ax has {len(axes)} axes: pass {len(panels)}, one for each of {list(panels)!r}, or "
            "None for a new figure."
        )
    for panel, (title, curves) in zip(axes, panels.items(), strict=True):
        _draw(panel, curves)
        panel.set_title(title)
    _figure.finish(axes[0], "sctool_history", show, save)
    return axes


def _panels(model: Any) -> dict[str, dict[str, pd.Series]]:
    """Curves of more than one epoch, by network and then by name."""
    recorded = getattr(model, "history_", None) or {}
    curves = {
        name: pd.Series(np.asarray(table, dtype=float).ravel(), index=table.index)
        for name, table in recorded.items()
        if isinstance(table, pd.DataFrame)
    }
    curves = {name: curve.dropna() for name, curve in curves.items() if curve.count() > 1}
    if not curves:
        raise ValueError(
            f"This {type(model).__name__} has no history to draw: "
            + (
                "it is not trained in epochs."
                if recorded
                else "it was loaded from a file, or is not trained in epochs."
            )
        )
    # What is minimised has the name of its network before it, where there are several.
    networks = [n.removesuffix("loss_train") for n in curves if n.endswith("loss_train")]
    panels: dict[str, dict[str, pd.Series]] = {}
    for name, curve in curves.items():
        own = max((n for n in networks if name.startswith(n)), key=len, default="")
        title = own.rstrip("_") or type(model).__name__
        panels.setdefault(title, {})[name.removeprefix(own)] = curve
    return panels


def _draw(ax: Axes, curves: dict[str, pd.Series]) -> None:
    losses = sorted(n for n in curves if n != ACCURACY)
    terms = [n for n in losses if not n.startswith("loss")]
    colors = dict(zip(["loss", *terms], _figure.COLOR_BLIND_SAFE * 3, strict=False))
    for name in losses:
        held_out = name.endswith("_validation")
        label = name.removesuffix("_train").removesuffix("_validation")
        ax.plot(
            curves[name].index,
            curves[name],
            color=colors.get(label, colors.get(name)),
            linestyle="--" if held_out else "-",
            linewidth=1.8 if label == "loss" else 1,
            label=f"{label}, held-out" if held_out else label,
        )
    ax.set(xlabel="epoch", ylabel="loss")
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    if ACCURACY in curves:
        right = ax.twinx()
        accuracy = curves[ACCURACY]
        handles += right.plot(accuracy.index, accuracy, color="0.35", linestyle=":", linewidth=1.8)
        labels.append("accuracy, held-out")
        right.set(ylabel="accuracy", ylim=(0, 1.02))
        right.spines["top"].set_visible(False)
    style: dict[str, Any] = {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, -0.18),
        "ncols": 2,
        "frameon": False,
    }
    ax.legend(handles, labels, fontsize=_figure.FONT_SIZE, **style)
