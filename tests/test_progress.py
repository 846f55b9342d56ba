"""Progress: a bar for a person who watches, a few lines for a log, nothing if it is not wanted."""

import io
import re
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sctool import _progress
from sctool._progress import EpochBar, progress


class Terminal(io.StringIO):
    """A stderr that a person watches."""

    def isatty(self) -> bool:
        return True


#: Pytest puts its own stderr in place between a fixture and its test: so it is redirected within.
every_stderr = pytest.mark.parametrize("stderr", [io.StringIO, Terminal], ids=["log", "terminal"])


def lines(text: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_a_loop_is_a_line_at_its_start_and_at_its_end_in_a_log():
    with redirect_stderr(io.StringIO()) as stream:
        assert list(progress(range(1000), desc="stage")) == list(range(1000))
    first, last = lines(stream.getvalue())
    assert first.startswith("stage:   0%")
    assert last.startswith("stage: 100%")
    assert "1000/1000" in last
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize("leave", [False, True], ids=["removed", "left"])
def test_a_loop_is_a_bar_on_a_terminal(leave):
    with redirect_stderr(Terminal()) as stream:
        for _ in progress(range(5), desc="stage", leave=leave):
            time.sleep(0.03)
    shown = stream.getvalue().split("\r")
    assert any(text.startswith("stage:  ") for text in shown)
    assert len(shown) > 3  # it moves
    if leave:
        assert "5/5" in shown[-1]
    else:
        assert shown[-2].strip() == ""  # and is gone at its end


def test_a_slow_loop_tells_of_itself_again_in_a_log(monkeypatch):
    monkeypatch.setattr(_progress, "SLOW", 0.0)
    with redirect_stderr(io.StringIO()) as stream, progress(desc="stage", total=5) as bar:
        for _ in range(5):
            bar.update()
    assert len(lines(stream.getvalue())) >= 5


@every_stderr
def test_nothing_is_shown_if_it_is_not_wanted(stderr):
    with redirect_stderr(stderr()) as stream:
        assert list(progress(range(3), desc="stage", enabled=False)) == [0, 1, 2]
        with progress(desc="stage", total=3, enabled=False) as bar:
            bar.update()
    assert stream.getvalue() == ""


def trainer(**metrics: float) -> SimpleNamespace:
    """What a bar needs to know of a trainer."""
    metrics = {name: torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(max_epochs=4, is_global_zero=True, callback_metrics=metrics)


def train(bar: EpochBar, state: SimpleNamespace, n: int) -> None:
    """Go through ``n`` epochs."""
    bar.on_train_start(state, None)
    for _ in range(n):
        bar.on_train_epoch_end(state, None)


@every_stderr
def test_epochs_are_counted_with_their_loss(stderr):
    bar = EpochBar("component")
    with redirect_stderr(stderr()) as stream:
        train(bar, trainer(component_loss_train=0.12345, component_loss_validation=9.0), 4)
        bar.on_train_end(trainer(), None)
    last = lines(stream.getvalue())[-1]
    assert last.startswith("component: 100%")
    assert "4/4" in last
    assert "loss=0.123" in last


@every_stderr
def test_epochs_that_log_no_loss_are_counted(stderr):
    bar = EpochBar("training")
    with redirect_stderr(stderr()) as stream:
        train(bar, trainer(accuracy=1.0), 4)
        bar.on_train_end(trainer(), None)
    last = lines(stream.getvalue())[-1]
    assert "4/4" in last
    assert "loss" not in last


@every_stderr
def test_an_error_leaves_the_line_to_its_message(stderr):
    bar = EpochBar("training")
    with redirect_stderr(stderr()) as stream:
        bar.on_exception(trainer(), None, ValueError())  # before the first epoch: no bar
        assert stream.getvalue() == ""
        train(bar, trainer(), 2)
        assert not stream.getvalue().endswith("\n")
        bar.on_exception(trainer(), None, ValueError())
    assert stream.getvalue().endswith("\n")
    assert "2/4" in lines(stream.getvalue())[-1]


@every_stderr
def test_one_process_of_several_reports(stderr):
    state = trainer()
    state.is_global_zero = False
    bar = EpochBar("training")
    with redirect_stderr(stderr()) as stream:
        train(bar, state, 4)
        bar.on_train_end(state, None)
    assert stream.getvalue() == ""


ANNOTATE = """
import sys
sys.path.insert(0, {folder!r})
from synthetic import simulate_sides
import sctool
for method in ("scnym", "scdae", "contrastive"):
    adata, ref = simulate_sides()
    sctool.tl.annotate(adata, ref, method=method, train_kwargs={{"max_epochs": 3}})
"""
#: What the three methods train, in order.
STAGES = ["training", "reconstruct", "classify", "joint", "components of folds"]


@pytest.mark.slow
def test_a_log_of_a_run_has_a_few_lines_a_stage(tmp_path):
    code = ANNOTATE.format(folder=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert len(done.stderr) < 3000
    warned = ("Only 300 genes", "genes: ", "shift: ")
    told = [line for line in lines(done.stderr) if not line.startswith(warned)]
    assert list(dict.fromkeys(line.split(":")[0] for line in told)) == STAGES
    for stage in STAGES:
        own = [line for line in told if line.startswith(stage)]
        assert 2 <= len(own) <= 4
        assert "0%" in own[0]
        assert "100%" in own[-1]
