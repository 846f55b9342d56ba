"""Minibatches of cells; labelled cells into training and held-out ones, and into folds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
import scipy.sparse as sp
import torch
from lightning.pytorch.utilities import CombinedLoader
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class Cells(Dataset):
    """Dataset of sparse cells; only minibatches are made dense.

    Parameters
    ----------
    x
        Model inputs, CSR (n_cells, n_genes).
    arrays
        Further values per cell, each (n_cells,).
    fill
        Values of genes missing from the data, (n_genes,), added to every cell.
    """

    def __init__(
        self, x: sp.csr_matrix, arrays: dict[str, np.ndarray], fill: np.ndarray | None = None
    ):
        self.x, self.arrays, self.fill = x, arrays, fill

    def __len__(self) -> int:
        return self.x.shape[0]

    @cached_property
    def unseen(self) -> np.ndarray:
        """Cells that express none of the inputs, (n_cells,) bool."""
        return np.asarray(self.x.sum(axis=1)).ravel() == 0

    def __getitem__(self, index: np.ndarray | list[int] | slice) -> dict[str, Tensor]:
        x = self.x[index].toarray()
        if self.fill is not None:
            x += self.fill
        batch = {"x": torch.from_numpy(x)}
        return batch | {k: torch.from_numpy(v[index]) for k, v in self.arrays.items()}


class EvenBatches(Sampler[np.ndarray]):
    """Shuffled batches of nearly equal size, at most ``batch_size``.

    No cell is dropped, and no batch is left with a single cell, on which BatchNorm fails.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, generator: torch.Generator | None = None
    ):
        self.indices, self.generator = np.asarray(indices), generator
        self.n_batches = -(-len(self.indices) // batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[np.ndarray]:
        shuffled = torch.randperm(len(self.indices), generator=self.generator).numpy()
        return iter(np.array_split(self.indices[shuffled], self.n_batches))


class SharedBatches(Sampler[np.ndarray]):
    """The part of each batch that one of several processes takes, equally large in all of them.

    Up to ``n_processes - 1`` cells of a batch are left out, others in each epoch; of a batch of
    fewer than two cells a process, some are taken twice.

    Parameters
    ----------
    batches
        Batches for all processes, the same in each of them.
    rank, n_processes
        Number of this process, and of all.
    """

    def __init__(self, batches: EvenBatches, rank: int, n_processes: int):
        self.batches, self.rank, self.n_processes = batches, rank, n_processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in self.batches:
            size = max(len(batch) // self.n_processes, 2)
            yield np.resize(batch, size * self.n_processes)[self.rank :: self.n_processes]


class TypeBatches(Sampler[np.ndarray]):
    """Batches with the same number of cells per type, as far as a type has enough cells.

    Each type in a batch has at least two distinct cells (unless it has only one in total), so that
    rare types have positive pairs. If two cells of every type do not fit into a batch, each batch
    has a random subset of the types.

    Parameters
    ----------
    indices
        Positions of the cells, (n_cells,).
    label
        Type codes, (n_cells,).
    batch_size
        Maximum number of cells in a batch.
    """

    def __init__(self, indices: np.ndarray, label: np.ndarray, batch_size: int):
        order = np.argsort(label, kind="stable")
        self.indices = indices[order]
        _, self.start, self.size = np.unique(label[order], return_index=True, return_counts=True)
        self.n_types = min(len(self.size), max(batch_size // 2, 1))
        self.quota = max(batch_size // self.n_types, 2)
        self.n_batches = -(-len(indices) // batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[np.ndarray]:
        # Cells are shuffled within types; each batch takes a run from a random start, wrapping.
        shuffled = torch.randperm(len(self.indices)).numpy()
        type_of = np.repeat(np.arange(len(self.size)), self.size)
        order = shuffled[np.argsort(type_of[shuffled], kind="stable")]
        for _ in range(self.n_batches):
            types = torch.randperm(len(self.size))[: self.n_types].numpy()
            size = self.size[types, None]
            first = (torch.rand(len(types), 1).numpy() * size).astype(int)
            run = np.arange(self.quota)
            place = self.start[types, None] + (first + run) % size
            yield self.indices[order[place[run < size]]]


def stratified_holdout(codes: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``share`` of the cells of each type, rounded down.

    Every type keeps a training cell; types with fewer than ``1 / share`` cells keep all of them.

    Returns
    -------
    Sorted positions for training and for validation.
    """
    train, validation = [], []
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        members = members[torch.randperm(len(members)).numpy()]
        n = int(share * len(members))
        validation.append(members[:n])
        train.append(members[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def assign_folds(y: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each cell, (n_cells,), stratified by type; -1 for the only cell of a type.

    Every type thus keeps a cell when a fold is left out. The number of folds is at most the number
    of cells of the largest type.
    """
    n = np.bincount(y)
    fold = np.full(len(y), -1)
    cells = np.flatnonzero(n[y] > 1)
    if not len(cells):
        return fold
    folds = StratifiedKFold(min(n_folds, n.max()), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # types with fewer cells than folds are absent from some folds
        warnings.filterwarnings("ignore", message="The least populated class")
        for i, (_, members) in enumerate(folds.split(cells, y[cells])):
            fold[cells[members]] = i
    return fold


class Splitter(pl.LightningDataModule):
    """Data module that yields one minibatch of each population ("labelled", "unlabelled") per step.

    An epoch is one pass over the largest population; smaller ones are reshuffled and repeated. Of
    several processes, each takes its share of every minibatch; held-out cells are seen by all.

    Parameters
    ----------
    batch_size
        Number of cells in a minibatch, of all processes together.
    """

    #: Seed of the order of the cells if several processes share it.
    seed = 0

    def __init__(
        self,
        cells: Cells,
        train: dict[str, np.ndarray],
        validation: np.ndarray,
        batch_size: int,
    ):
        super().__init__()
        self.cells, self.batch_size = cells, batch_size
        self.populations = {k: v for k, v in train.items() if len(v)}
        self.train_idx = np.sort(np.concatenate(list(self.populations.values())))
        self.val_idx = validation
        self.n_train, self.n_val = len(self.train_idx), len(validation)

    @property
    def steps_per_epoch(self) -> int:
        return max(-(-len(v) // self.batch_size) for v in self.populations.values())

    def _loader(self, sampler: Any) -> DataLoader:
        return DataLoader(self.cells, sampler=sampler, batch_size=None)

    def train_dataloader(self) -> CombinedLoader:
        """Return a loader with one minibatch of each population per step."""
        loaders = {
            name: self._loader(self._shared(indices, self.seed + i))
            for i, (name, indices) in enumerate(self.populations.items())
        }
        return CombinedLoader(loaders, mode="max_size_cycle")

    def _shared(self, indices: np.ndarray, seed: int) -> EvenBatches | SharedBatches:
        """Batches of some cells, or this process's shares of them."""
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return EvenBatches(indices, self.batch_size)
        # Not torch's own generator, for each process draws its own noise from that.
        generator = torch.Generator().manual_seed(seed)
        batches = EvenBatches(indices, self.batch_size, generator)
        return SharedBatches(batches, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> list[DataLoader]:
        """Return loaders of the held-out labelled cells, in order."""
        if not len(self.val_idx):
            return []
        n = -(-len(self.val_idx) // 1024)
        return [self._loader(np.array_split(self.val_idx, n))]


class TypeSplitter(Splitter):
    """Splitter that uses :class:`TypeBatches` for training and validation."""

    def _batches(self, indices: np.ndarray) -> TypeBatches:
        return TypeBatches(indices, self.cells.arrays["label"][indices], self.batch_size)

    def train_dataloader(self) -> CombinedLoader:
        """Return a loader with one minibatch per step."""
        batches = self._batches(self.populations["labelled"])
        return CombinedLoader({"labelled": self._loader(batches)}, mode="max_size_cycle")

    def val_dataloader(self) -> list[DataLoader]:
        """Return loaders of the held-out cells, with the same minibatches in every epoch."""
        if not len(self.val_idx):
            return []
        if not hasattr(self, "_held_out"):
            self._held_out = list(self._batches(self.val_idx))
        return [self._loader(self._held_out)]
