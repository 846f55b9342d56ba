"""Training: seeds, the plan's common part, best weights, and the run through Lightning.

With ``model/_base.py`` the only code that touches scvi-tools' internals.
"""

from __future__ import annotations

import copy
import inspect
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from scvi.train import Trainer, TrainingPlan, TrainRunner
from torch import Tensor, nn

from sctool._batches import Splitter
from sctool._progress import EpochBar


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Everything random inside follows ``seed``; the caller's random state is put back after."""
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
    """A generator that follows torch's, which :func:`seeded` seeds."""
    return np.random.default_rng(int(torch.randint(2**31, (1,))))


class Plan(TrainingPlan):
    """A scvi-tools training plan without the ELBO: subclasses say what a step is.

    The module's ``loss`` is not called by this class; ELBO metrics are neither made nor logged.
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
        """Log the losses of a training step on ``n`` cells as ``{name}_train``, an epoch's mean.

        Summed here and logged once an epoch: Lightning's own means would take a third of a small
        step.
        """
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + n * value.detach()
        self._n_cells += n

    def on_train_epoch_end(self) -> None:
        """Log the means."""
        means = {f"{name}_train": total / self._n_cells for name, total in self._sums.items()}
        self.log_dict(means, sync_dist=self.use_sync_dist)
        self._sums, self._n_cells = {}, 0


def _module(plan: pl.LightningModule) -> nn.Module:
    return cast(nn.Module, plan.module)


class BestWeights(Callback):
    """Keeps the best epoch's weights in memory, puts them back at the end, and may stop early.

    Parameters
    ----------
    monitor
        Logged value of which the lowest is the best. If it is never logged (nothing was held out)
        the last weights stay.
    from_epoch
        First epoch that may be the best: earlier ones belong to a schedule that still rises.
    patience
        Stop after this many epochs without a better one; None never stops.
    """

    def __init__(self, monitor: str, from_epoch: int = 0, patience: int | None = None):
        self.monitor, self.from_epoch, self.patience = monitor, from_epoch, patience
        self.best, self.epoch = float("inf"), -1
        self.state: dict[str, Tensor] | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights if this epoch is the best so far."""
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
        """Put the best weights back."""
        if self.state is not None:
            _module(pl_module).load_state_dict(self.state)


@dataclass(frozen=True)
class TrainOptions:
    """What a call of ``train`` asks for, beside the model's settings.

    Attributes
    ----------
    max_epochs
        Passes over the cells; None leaves it to the settings.
    progress
        Show progress bars.
    trainer
        Arguments of scvi-tools' ``Trainer``.
    """

    max_epochs: int | None = None
    progress: bool = True
    trainer: dict[str, Any] = field(default_factory=dict)


#: What scvi-tools' and Lightning's trainers take, beside what ``train`` names itself. Their early
#: stopping watches the ELBO, which no model here has.
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
    """Refuse arguments of ``train`` that it does not take."""
    if unknown := sorted(set(names) - set(taken)):
        raise TypeError(f"train has no arguments {unknown!r}{why}; it takes {taken!r}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its notes on hardware and its advice on data loaders, inside only."""
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
    """Train ``model`` through scvi-tools' runner, quietly but for a bar with the stage's name."""
    own = [EpochBar(name)] if options.progress else []
    callbacks = [*filter(None, [best]), *own, *options.trainer.get("callbacks", [])]
    arguments = {
        "check_val_every_n_epoch": 1,
        **options.trainer,
        "callbacks": callbacks,
        "enable_progress_bar": False,
    }
    if options.trainer.get("devices", "auto") in ("auto", 1):
        # Inside a SLURM job Lightning would otherwise expect a process for each of its tasks.
        arguments = {"plugins": [LightningEnvironment()], **arguments}
    with _quiet():
        TrainRunner(model, plan, splitter, max_epochs=max_epochs, **arguments)()


def n_epochs(settings: Any, splitter: Splitter, options: TrainOptions) -> int:
    """Passes over the cells: as many as asked for, else by the settings' steps."""
    s = settings
    by_steps = max(-(-s.min_steps // splitter.steps_per_epoch), s.min_epochs)
    return options.max_epochs or s.max_epochs or by_steps
