"""Training: random seeds, training plan, best weights, and the call of scvi-tools' runner.

Only this module and ``model/_base.py`` depend on scvi-tools' internals.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import Trainer, TrainingPlan, TrainRunner
from torch import Tensor, nn

from sctool._batches import Splitter
from sctool._progress import EpochBar

logger = logging.getLogger("sctool")


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed all random number generators inside the context and restore their state afterwards."""
    if seed is None:
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def numpy_generator() -> np.random.Generator:
    """Return a NumPy generator seeded from torch's, which :func:`seeded` seeds."""
    return np.random.default_rng(int(torch.randint(2**31, (1,))))


class Plan(TrainingPlan):
    """A scvi-tools training plan without the ELBO; subclasses define the training step.

    The module's ``loss`` is not called, and no ELBO metrics are computed or logged.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._sums: dict[str, Tensor] = {}
        self._n_cells = 0

    def initialize_train_metrics(self) -> None:
        """No ELBO."""

    def initialize_val_metrics(self) -> None:
        """No ELBO."""

    def log_losses(self, losses: dict[str, Tensor], n: int) -> None:
        """Add the losses of a training step on ``n`` cells to the epoch means ``{name}_train``.

        They are logged once per epoch, because Lightning's averaging takes a third of a small step.
        """
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + n * value.detach()
        self._n_cells += n

    def on_train_epoch_end(self) -> None:
        """Log the mean losses of the epoch."""
        means = {f"{name}_train": total / self._n_cells for name, total in self._sums.items()}
        self.log_dict(means, sync_dist=self.use_sync_dist)
        self._sums, self._n_cells = {}, 0


def _module(plan: pl.LightningModule) -> nn.Module:
    return cast(nn.Module, plan.module)


class BestWeights(Callback):
    """Restore the weights of the best epoch after training, optionally with early stopping.

    Parameters
    ----------
    monitor
        Logged value to minimise. If it is never logged (no held-out cells), the last weights are
        kept.
    from_epoch
        First epoch to consider; earlier ones are part of a warm-up schedule.
    patience
        Stop after this many epochs without improvement; None disables early stopping.
    """

    def __init__(self, monitor: str, from_epoch: int = 0, patience: int | None = None):
        self.monitor, self.from_epoch, self.patience = monitor, from_epoch, patience
        self.best, self.epoch = float("inf"), -1
        self.state: dict[str, Tensor] | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights if this is the best epoch so far."""
        value, epoch = trainer.callback_metrics.get(self.monitor), trainer.current_epoch
        if value is None or epoch < self.from_epoch:
            return
        if float(value) < self.best:
            self.best, self.epoch = float(value), epoch
            self.state = copy.deepcopy(_module(pl_module).state_dict())
        elif (
            self.patience is not None and epoch - max(self.epoch, self.from_epoch) >= self.patience
        ):
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best weights."""
        if self.state is not None:
            _module(pl_module).load_state_dict(self.state)


@dataclass(frozen=True)
class TrainOptions:
    """Arguments of ``train`` that are not model settings.

    Attributes
    ----------
    max_epochs
        Number of passes over the cells; None uses the settings.
    progress
        Show progress bars.
    trainer
        Arguments for scvi-tools' ``Trainer``.
    """

    max_epochs: int | None = None
    progress: bool = True
    trainer: dict[str, Any] = field(default_factory=dict)


#: Arguments of scvi-tools' and Lightning's trainers other than those of ``train`` itself. Early
#: stopping is excluded because it monitors the ELBO, which our models do not have.
TRAINER_ARGUMENTS = sorted(
    name
    for name in {
        **inspect.signature(Trainer.__init__).parameters,
        **inspect.signature(pl.Trainer.__init__).parameters,
    }
    if not name.startswith("early_stopping")
    and name not in ("self", "kwargs", "max_epochs", "accelerator", "devices")
    and "progress_bar" not in name
)


def refuse_arguments(names: list[str], taken: list[str], why: str = "") -> None:
    """Raise an error for arguments that ``train`` does not accept."""
    if unknown := sorted(set(names) - set(taken)):
        raise TypeError(f"train has no arguments {unknown!r}{why}; it accepts {taken!r}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's messages on hardware and data loaders inside the context."""
    loggers = [logging.getLogger(f"lightning.pytorch{s}") for s in ("", ".utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _outside_slurm() -> Iterator[None]:
    """Train in one process inside a SLURM job, where Lightning expects one for each task.

    Lightning leaves jobs of this name alone.
    """
    name = os.environ.get("SLURM_JOB_NAME")
    os.environ["SLURM_JOB_NAME"] = "interactive"
    try:
        yield
    finally:
        if name is None:
            del os.environ["SLURM_JOB_NAME"]
        else:
            os.environ["SLURM_JOB_NAME"] = name


@cache
def _warn_of_busy_waiting() -> None:
    """Say once in a process why training may be slow on cores that other programs use."""
    # Importing sctool sets it, unless torch was loaded before.
    if "OMP_WAIT_POLICY" in os.environ or torch.get_num_threads() == 1 or torch.cuda.is_available():
        return
    logger.warning(
        "torch was imported before sctool, so its threads wait actively: if other programs use the "
        "same cores, training may take several times as long. Import sctool first, or set the "
        "environment variable OMP_WAIT_POLICY=PASSIVE before Python starts."
    )


def fit(
    model: Any,
    plan: Plan,
    splitter: Splitter,
    max_epochs: int,
    options: TrainOptions,
    *,
    best: BestWeights | None = None,
    name: str = "training",
) -> None:
    """Train ``model`` with scvi-tools' runner, showing only a progress bar called ``name``."""
    _warn_of_busy_waiting()
    own = [EpochBar(name)] if options.progress else []
    callbacks = [*filter(None, [best]), *own, *options.trainer.get("callbacks", [])]
    arguments = {
        "check_val_every_n_epoch": 1,
        **options.trainer,
        "callbacks": callbacks,
        "enable_progress_bar": False,
    }
    one_process = options.trainer.get("devices", "auto") in ("auto", 1) and not {
        "strategy",
        "num_nodes",
        "plugins",
    } & set(options.trainer)
    with _quiet(), _outside_slurm() if one_process else nullcontext():
        TrainRunner(model, plan, splitter, max_epochs=max_epochs, **arguments)()


def n_epochs(settings: Any, splitter: Splitter, options: TrainOptions) -> int:
    """Return the number of epochs: as requested, or derived from the settings."""
    s = settings
    by_steps = max(-(-s.min_steps // splitter.steps_per_epoch), s.min_epochs)
    return options.max_epochs or s.max_epochs or by_steps
