"""Training by several processes: what each sees, what they must share, and what they end with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import simulate_joint

from sctool import model as models
from sctool._batches import Cells, EvenBatches, SharedBatches, Splitter
from sctool._train import TrainOptions

SCRIPT = Path(__file__).parent / "shared_training.py"


def shares(n: int, batch_size: int, n_processes: int) -> list[list[np.ndarray]]:
    """The batches of each process."""
    return [
        list(
            SharedBatches(
                EvenBatches(np.arange(n), batch_size, torch.Generator().manual_seed(3)),
                rank,
                n_processes,
            )
        )
        for rank in range(n_processes)
    ]


@pytest.mark.parametrize(("n", "batch_size", "n_processes"), [(103, 20, 2), (100, 32, 3)])
def test_processes_see_different_cells_of_the_same_batches(n, batch_size, n_processes):
    whole = list(EvenBatches(np.arange(n), batch_size, torch.Generator().manual_seed(3)))
    each = shares(n, batch_size, n_processes)
    for batch, *parts in zip(whole, *each, strict=True):
        seen = np.concatenate(parts)
        assert len({len(part) for part in parts}) == 1
        assert len(np.unique(seen)) == len(seen) > len(batch) - n_processes
        assert set(seen) <= set(batch)


def test_no_process_has_a_single_cell():
    [[a], [b]] = shares(3, 10, 2)  # on which BatchNorm would fail
    assert len(a) == len(b) == 2
    assert set(a) | set(b) == {0, 1, 2}


def test_a_splitter_shares_its_batches_and_not_the_held_out_cells():
    cells = Cells(np.zeros((60, 1)), {})
    populations = {"labelled": np.arange(30), "unlabelled": np.arange(30, 50)}
    state = torch.random.get_rng_state()
    found = []
    for rank in (0, 1):
        splitter = Splitter(cells, populations, np.arange(50, 60), 10)
        assert splitter.steps_per_epoch == 3
        splitter.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        loaders = splitter.train_dataloader().iterables
        found.append({name: list(loader.sampler) for name, loader in loaders.items()})
        assert sorted(np.concatenate(splitter.val_dataloader()[0].sampler)) == list(range(50, 60))
    for name, indices in populations.items():
        both = np.concatenate([np.concatenate(one[name]) for one in found])
        assert sorted(both) == list(indices)
    assert torch.equal(state, torch.random.get_rng_state())  # which is for each process's noise


@pytest.mark.parametrize(
    ("given", "n"),
    [
        ({}, 1),
        ({"devices": "auto"}, 1),
        ({"devices": 1}, 1),
        ({"devices": 3}, 3),
        ({"devices": "2"}, 2),
        ({"devices": [1]}, 1),
        ({"devices": "0,2"}, 2),
        ({"devices": 2, "num_nodes": 2}, 4),
    ],
)
def test_number_of_processes(given, n):
    assert TrainOptions(trainer=given).n_processes == n


def make(name: str, **settings) -> object:
    joint = simulate_joint()
    cls = getattr(models, name)
    cls.setup_anndata(joint, *([] if name == "CICL" else ["cell_type", "Unknown"]))
    return cls(joint, **settings)


def test_models_that_several_processes_cannot_train_say_so():
    on_two = {"accelerator": "cpu", "devices": 2, "enable_progress_bar": False}
    with pytest.raises(ValueError, match=r"devices=2 makes 2 processes, but this model is trained"):
        make("ACTINN").train(**on_two)
    with pytest.raises(ValueError, match=r"attention='cells' compares .* pass devices=1"):
        make("CICL", n_clusters=3, attention="cells").train(**on_two)
    with pytest.raises(ValueError, match=r"strategy='ddp_spawn': pass 'ddp', and start the script"):
        make("SCNYM").train(**on_two, strategy="ddp_spawn")


def trained(method: str, n_processes: int, batch_size: int, folder: Path) -> list[dict]:
    """What each process has in the end."""
    folder.mkdir()
    words = [sys.executable, "-W", "ignore", str(SCRIPT), method]
    words += [str(n_processes), str(batch_size), "8", str(folder)]
    own = {name: v for name, v in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(words, capture_output=True, text=True, env=own, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for rank in range(n_processes):
        arrays = np.load(folder / f"{rank}.npz")
        history = json.loads((folder / f"{rank}.json").read_text())
        found.append({"history": history} | {name: arrays[name] for name in arrays})
    assert len(list(folder.iterdir())) == 2 * n_processes  # nothing else was written
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scnym", "scdet", "cicl", "auto"])
def test_two_processes_learn_as_one_with_the_double_batch(method, tmp_path):
    first, second = trained(method, 2, 32, tmp_path / "two")
    [one] = trained(method, 1, 64, tmp_path / "one")
    # both end with the same model, history and labels
    np.testing.assert_array_equal(first["weights"], second["weights"])
    np.testing.assert_array_equal(first["found"], second["found"])
    assert first["history"] == second["history"]
    assert first["history"].keys() == one["history"].keys()
    if method == "auto":
        assert (first["found"] == one["found"]).mean() > 0.95
    # "auto" trains two of scNym's networks; the noise of an adversary is not to be compared
    names = ["loss_train"]
    if method == "auto":
        names = ["adversary_supervised_train", "mixmatch_loss_train"]
    for name in names:
        loss, expected = (np.array(run["history"][name]) for run in (first, one))
        assert len(loss) == len(expected) == 8
        # An epoch has two steps, and scNym's have much noise; half of a batch would be 10 % below
        # in contrastive losses.
        np.testing.assert_allclose(
            loss, expected, rtol=0.35 if method in ("scnym", "auto") else 0.05
        )
        assert loss.mean() == pytest.approx(expected.mean(), rel=0.05)
        assert loss[-1] < loss[0]
