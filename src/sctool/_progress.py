"""Progress on stderr: a bar for a person, and in a log a line at the start and at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from tqdm.auto import tqdm

#: Seconds between two lines in a log, at least.
SLOW = 60.0
IN_NOTEBOOK = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    total: int | None = None,
    enabled: bool = True,
    leave: bool = False,
) -> Any:
    """A tqdm bar, of an iterable or to be moved by hand.

    Parameters
    ----------
    leave
        Keep the bar on the screen at the end, as a log always does.
    """
    watched = IN_NOTEBOOK or sys.stderr.isatty()
    pace = {} if watched else {"mininterval": SLOW, "maxinterval": SLOW}
    leave = leave or not watched
    return tqdm(iterable, desc=desc, total=total, disable=not enabled, leave=leave, **pace)


class EpochBar(Callback):
    """Progress of a training by epochs, with its latest loss."""

    def __init__(self, desc: str):
        self.desc = desc
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, of the process that reports alone."""
        self.bar = progress(
            desc=self.desc,
            total=trainer.max_epochs,
            enabled=trainer.is_global_zero,
            leave=True,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move it."""
        losses = [v for k, v in trainer.callback_metrics.items() if k.endswith("loss_train")]
        if losses:
            self.bar.set_postfix(loss=f"{float(losses[0]):.3g}", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close it."""
        self.bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close it after an error too, so that the message has a line of its own."""
        if self.bar is not None:
            self.bar.close()
