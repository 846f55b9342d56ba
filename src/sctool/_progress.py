"""Progress on stderr: a bar on a terminal, a few lines in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from tqdm.auto import tqdm

#: Minimum number of seconds between two lines in a log.
SLOW = 60.0
IN_NOTEBOOK = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    total: int | None = None,
    unit: str = "it",
    enabled: bool = True,
    leave: bool = False,
) -> Any:
    """Wrap an iterable in a tqdm bar, or make a bar that is updated manually.

    Parameters
    ----------
    leave
        Keep the bar on screen when finished, as is always done in a log.
    """
    watched = IN_NOTEBOOK or sys.stderr.isatty()
    pace = {} if watched else {"mininterval": SLOW, "maxinterval": SLOW}
    leave = leave or not watched
    return tqdm(
        iterable, desc=desc, total=total, unit=unit, disable=not enabled, leave=leave, **pace
    )


class EpochBar(Callback):
    """Progress bar over training epochs, with the latest loss."""

    def __init__(self, desc: str):
        self.desc = desc
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, only in the main process."""
        self.bar = progress(
            desc=self.desc,
            total=trainer.max_epochs,
            enabled=trainer.is_global_zero,
            leave=True,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance the bar."""
        losses = [v for k, v in trainer.callback_metrics.items() if k.endswith("loss_train")]
        if losses:
            self.bar.set_postfix(loss=f"{float(losses[0]):.3g}", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error message starts on a new line."""
        if self.bar is not None:
            self.bar.close()


def note_lines(audit: Sequence[str], alarms: Sequence[str]) -> list[str]:
    """Lines of the audit of an annotation and of its alarms; what is both is an alarm alone."""
    notes = [f"  {note}" for note in audit if note not in list(alarms)]
    return notes + [f"  alarm: {alarm}" for alarm in alarms]
