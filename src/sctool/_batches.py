"""Cells into minibatches, and labelled cells into those to train on and those to hold out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import scipy.sparse as sp
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class Cells(Dataset):
    """Cells kept sparse until a minibatch asks for them.

    Parameters
    ----------
    x
        Model inputs, CSR (n_cells, n_genes).
    arrays
        Further values by cell, each (n_cells,).
    fill
        Added to every cell (n_genes,): the values of genes that the data lack.
    """

    def __init__(
        self, x: sp.csr_matrix, arrays: dict[str, np.ndarray], fill: np.ndarray | None = None
    ):
        self.x, self.arrays, self.fill = x, arrays, fill

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: np.ndarray | list[int] | slice) -> dict[str, Tensor]:
        x = self.x[index].toarray()
        if self.fill is not None:
            x += self.fill
        batch = {"x": torch.from_numpy(x)}
        return batch | {k: torch.from_numpy(v[index]) for k, v in self.arrays.items()}


class EvenBatches(Sampler[np.ndarray]):
    """Shuffled batches of nearly equal size, none above ``batch_size``.

    No cell is dropped and no batch is left with a single cell, which BatchNorm could not train on.
    """

    def __init__(self, indices: np.ndarray, batch_size: int):
        self.indices = np.asarray(indices)
        self.n_batches = -(-len(self.indices) // batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.indices[torch.randperm(len(self.indices)).numpy()]
        return iter(np.array_split(order, self.n_batches))


class TypeBatches(Sampler[np.ndarray]):
    """Batches in which the types have equal shares, as far as they have cells.

    Of every type in a batch there are two cells at least, unless it has a single one, and no cell
    twice: so rare types have positives. Where a batch cannot hold two of every type, it holds some
    types, drawn anew each time.

    Parameters
    ----------
    indices
        Positions of the cells, (n_cells,).
    label
        Their codes, (n_cells,).
    batch_size
        Cells in a batch, at most.
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
        # Within each type in a new order, of which every batch takes a run from a random place.
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
    """Positions for training and for validation, ``share`` of each type (rounded down) held out.

    Every type keeps a training cell, and a type with fewer than ``1 / share`` cells keeps them all.
    """
    train, validation = [], []
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        members = members[torch.randperm(len(members)).numpy()]
        n = int(share * len(members))
        validation.append(members[:n])
        train.append(members[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


class Splitter(pl.LightningDataModule):
    """Named populations of cells ("labelled", "unlabelled"), one minibatch of each per step.

    The smaller populations are reshuffled and begun again until the largest has been seen once:
    that is an epoch.
    """

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
        """One minibatch of each population per step."""
        loaders = {
            name: self._loader(EvenBatches(indices, self.batch_size))
            for name, indices in self.populations.items()
        }
        return CombinedLoader(loaders, mode="max_size_cycle")

    def val_dataloader(self) -> list[DataLoader]:
        """Held-out labelled cells, in order."""
        if not len(self.val_idx):
            return []
        n = -(-len(self.val_idx) // 1024)
        return [self._loader(np.array_split(self.val_idx, n))]


class TypeSplitter(Splitter):
    """Minibatches by :class:`TypeBatches`, for training and of the held-out cells."""

    def _batches(self, indices: np.ndarray) -> TypeBatches:
        return TypeBatches(indices, self.cells.arrays["label"][indices], self.batch_size)

    def train_dataloader(self) -> CombinedLoader:
        """One minibatch per step."""
        batches = self._batches(self.populations["labelled"])
        return CombinedLoader({"labelled": self._loader(batches)}, mode="max_size_cycle")

    def val_dataloader(self) -> list[DataLoader]:
        """Held-out cells, in the same minibatches after each epoch."""
        if not len(self.val_idx):
            return []
        if not hasattr(self, "_held_out"):
            self._held_out = list(self._batches(self.val_idx))
        return [self._loader(self._held_out)]
