"""The command line."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from sctool.model import METHODS
from sctool_benchmark import shipped_suites
from sctool_benchmark.__main__ import main


def test_it_is_run_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # (as python -m does, without the time that a process takes for its imports)
    monkeypatch.delitem(sys.modules, "sctool_benchmark.__main__")
    monkeypatch.setattr(sys, "argv", ["sctool_benchmark", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("sctool_benchmark", run_name="__main__", alter_sys=True)
    assert not end.value.code
    assert capsys.readouterr().out.startswith("usage: python -m sctool_benchmark ")


@pytest.mark.slow
def test_a_run_of_the_real_method(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["--suite", "demo", "--methods", "logistic", "--protocols", "blind", "-o", str(out)]
    assert main(words) == 0, (out / "results.jsonl").read_text()
    said = capsys.readouterr()
    assert "1 of 1 runs succeeded" in said.out
    assert said.err.startswith("pbmc68k_hidden · logistic · blind · seed 0: ")
    (row,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert row["n_genes"] == 765
    assert row["n_types"] == 7
    assert row["n_novel_types"] == 3
    assert row["seen_accuracy"] > 0.6
    assert row["novel_auroc"] > 0.5
    assert row["seconds"] < 60
    assert 0.05 < row["peak_rss_gb"] < 8
    command = f"python -m sctool_benchmark {' '.join(words[:-2])} --seeds 1 -o {out}"
    assert f"\n    {command}\n" in (out / "table.md").read_text()


def test_a_failed_run_is_exit_code_1(
    suite: Path, jobs: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--suite", suite, "--methods", "losing,failing", "--seeds", "1", "-o", tmp_path / "o"]
    assert main([*map(str, words)]) == 1
    assert "2 of 4 runs succeeded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "nowhere", "-o", "out"], "no suite 'nowhere'"),
        (["-o", "out"], "SCTOOL_DATA_DIR"),
        ([], "-o DIR"),
    ],
)
def test_nothing_to_run_is_exit_code_2(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    empty_cwd: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("SCTOOL_DATA_DIR", str(empty_cwd / "absent"))
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_suites_and_methods_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} (seeds: " in said for name in shipped_suites())
    assert "    zheng_rare_5: intra, zheng\n" in said
    known = said.splitlines()[-1].removeprefix("all methods: ").split(", ")
    assert {*METHODS, "leiden", "logistic-tuned"} <= set(known)
