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
from scvi.train._logger import SimpleLogger
from torch import Tensor, nn

from sctool._batches import Splitter
from sctool._checks import Seed, check
from sctool._progress import EpochBar

logger = logging.getLogger("sctool")


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed all random number generators inside the context and restore their state afterwards."""
    seed = check("random_state", seed, Seed | None)
    if seed is None:
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed)
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

    #: Whether several processes may share the minibatches, and whether there are steps in which a
    #: part of the network learns nothing, which they must then look out for.
    shareable, uneven = False, False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._sums: dict[str, Tensor] = {}
        self._n_cells = 0

    @property
    def shared(self) -> bool:
        """Whether several processes share the minibatches."""
        return self.trainer.world_size > 1

    def on_fit_start(self) -> None:
        """Let each of several processes draw its own noise, after a look at what they must share.

        Raises
        ------
        RuntimeError
            The processes started from other random numbers, or from other cells.
        """
        if not self.shared:
            return
        splitter = cast(Splitter, self.trainer.datamodule)
        own = torch.tensor([splitter.seed, splitter.n_train], device=self.device)
        if (self.all_gather(own) != own).any():
            raise RuntimeError(
                "The processes that train together do not have the same cells and random numbers. "
                "Let each of them read the same data, and seed them alike: random_state=0 in "
                "sctool.tl, or torch.manual_seed(0) before model.train()."
            )
        torch.manual_seed(splitter.seed + self.global_rank)

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate the cells, (n_cells, ...), of all processes, in each of which all follow.

        Losses that compare the cells of a minibatch see those of all processes. Their gradients
        come back to the process that a cell is from.
        """
        if not self.shared:
            return x
        return cast(Tensor, self.all_gather(x, sync_grads=x.requires_grad)).flatten(0, 1)

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
        """Log the mean losses of the epoch, over all processes."""
        sums, n_cells = self._sums, self._n_cells
        if self.shared:
            # Not by Lightning, which would wait for a term that another process does not have.
            each: list[Any] = [None] * self.trainer.world_size
            own = {name: float(total) for name, total in sums.items()}
            torch.distributed.all_gather_object(each, (own, n_cells))
            names = dict.fromkeys(name for own, _ in each for name in own)
            sums = {name: sum(own.get(name, 0.0) for own, _ in each) for name in names}
            n_cells = sum(n for _, n in each)
        self.log_dict({f"{name}_train": total / n_cells for name, total in sums.items()})
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

    @property
    def n_processes(self) -> int:
        """Number of processes, each with a device, that train together."""
        devices = self.trainer.get("devices", "auto")
        if isinstance(devices, str) and devices != "auto":
            listed = [device for device in devices.split(",") if device.strip()]
            devices = listed if "," in devices else int(devices)
        if devices == "auto":  # scvi-tools takes one
            n = 1
        elif isinstance(devices, int):
            n = devices if devices > 0 else max(torch.cuda.device_count(), 1)
        else:
            n = len(devices)
        return n * self.trainer.get("num_nodes", 1)

    @property
    def where(self) -> dict[str, Any]:
        """The arguments that say on which devices to train."""
        names = ("accelerator", "devices", "num_nodes", "strategy", "plugins")
        return {name: self.trainer[name] for name in names if name in self.trainer}


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
        # of scvi-tools, whose early stopping is not used
        warnings.filterwarnings("ignore", message="early_stopping was automatically disabled")
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


#: Strategies of Lightning for several processes that each run the whole script.
STRATEGIES = ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


def _for_processes(plan: Plan, options: TrainOptions) -> dict[str, Any]:
    """Arguments of the trainer that several processes need.

    Raises
    ------
    ValueError
        The model cannot be trained by several, or the strategy is another one.
    """
    n, given = options.n_processes, options.trainer
    strategy = given.get("strategy", "ddp")
    if not plan.shareable:
        raise ValueError(
            f"devices={given.get('devices')!r} makes {n} processes, but this model is trained by "
            "one: pass devices=1. scNym, scDET, CICL and auto can be trained by several."
        )
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(
            f"strategy={strategy!r}: pass 'ddp', and start the script that calls sctool with "
            "python, torchrun or srun; each process runs all of it."
        )
    if strategy == "ddp" and plan.uneven:
        strategy = "ddp_find_unused_parameters_true"
    # Of scvi-tools' own loggers, the one for several processes writes into the working directory.
    own = given.get("logger", SimpleLogger())
    return {"strategy": strategy, "use_distributed_sampler": False, "logger": own}


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
    """Train ``model`` with scvi-tools' runner, showing only a progress bar called ``name``.

    Several processes end with the weights and the history of the first.

    Raises
    ------
    ValueError
        Training diverged.
    """
    _warn_of_busy_waiting()
    several = options.n_processes > 1
    own = [EpochBar(name)] if options.progress else []
    callbacks = [*filter(None, [best]), *own, *options.trainer.get("callbacks", [])]
    arguments = {
        "check_val_every_n_epoch": 1,
        **options.trainer,
        **(_for_processes(plan, options) if several else {}),
        "callbacks": callbacks,
        "enable_progress_bar": False,
    }
    one_process = not several and not {"strategy", "num_nodes", "plugins"} & set(options.trainer)
    with _quiet(), _outside_slurm() if one_process else nullcontext():
        if not several:
            TrainRunner(model, plan, splitter, max_epochs=max_epochs, **arguments)()
            _check_finite(model, name)
            return
        splitter.seed = int(torch.randint(2**31, (1,)))
        # What follows draws the same in all processes.
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            TrainRunner(model, plan, splitter, max_epochs=max_epochs, **arguments)()
        _take_from_first(model)
    _check_finite(model, name)


def _check_finite(model: Any, name: str) -> None:
    weights = [w for w in model.module.state_dict().values() if w.is_floating_point()]
    if not all(torch.isfinite(w).all() for w in weights):
        raise ValueError(
            f"{name} diverged: weights of the network are not finite numbers. Pass a lower "
            f"learning rate (lr), or settings nearer to the defaults; found {model.settings_!r}."
        )


def _take_from_first(model: Any) -> None:
    """Set weights and history to those of the first process.

    After the last step, running means of BatchNorm are still those of each process.
    """
    module = model.module
    weights = {key: value.cpu() for key, value in module.state_dict().items()}
    shared = [weights, vars(model).get("history_")]
    torch.distributed.broadcast_object_list(shared, src=0)
    module.load_state_dict(shared[0])
    model.history_ = shared[1]


def n_epochs(settings: Any, splitter: Splitter, options: TrainOptions) -> int:
    """Return the number of epochs: as requested, or derived from the settings."""
    s = settings
    by_steps = max(-(-s.min_steps // splitter.steps_per_epoch), s.min_epochs)
    return options.max_epochs or s.max_epochs or by_steps
