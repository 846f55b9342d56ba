"""Runs of a suite: what is planned, resumed, recorded and ended."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from sctool_benchmark import _run, run


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_run_records_every_method(
    suite: Path, jobs: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    run(suite, protocols=["blind"], out=out)
    assert len(jobs) == 12
    rows = read(out)
    assert len(rows) == 12

    by_id = {(row["task"], row["method"], row["seed"]): row for row in rows}
    best, worst = by_id["closed", "centroid", 0], by_id["closed", "losing", 0]
    assert best["n_ref"] == 57
    assert best["n_query"] == 60
    assert best["n_genes"] == 10
    assert best["n_types"] == 4
    assert best["n_novel_types"] == 0
    assert best["seen_accuracy"] == 1
    assert worst["seen_accuracy"] == 0.25
    assert best["false_novel"] == 0
    assert best["ece"] == 0.5
    assert best["seconds"] == 1.5
    assert best["peak_rss_gb"] == 0.25
    assert best["versions"]["peer"] == "1.0"
    assert "anndata" in best["versions"]
    assert worst["seconds"] > 0
    assert worst["peak_rss_gb"] > 0
    assert worst["n_threads"] > 0
    assert by_id["open", "centroid", 1]["n_novel_types"] == 2
    # A method failed, and the others went on.
    failed = by_id["open", "failing", 1]
    assert failed["error"] == "the command ended with exit code 1: out of luck"
    # Without a terminal there is a line for each run, and no bar.
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("closed · centroid · blind · seed 0: 1.5 s")
    assert lines[2].endswith("failed: the command ended with exit code 1: out of luck")
    assert len(lines) == 12

    frame = pd.read_csv(out / "results.csv")
    assert len(frame) == 12
    assert frame["id"].is_unique
    assert {"task", "kind", "data", "tuned", "method", "protocol", "seed", "macro_f1"} <= set(frame)
    assert {"date", "commit", "versions.python", "versions.peer", "error"} <= set(frame)
    assert frame["error"].notna().sum() == 4


def test_what_succeeded_is_not_run_again(suite: Path, jobs: list[dict], tmp_path: Path) -> None:
    methods = ["losing", "failing"]
    run(suite, methods, ["blind"], 1, tmp_path / "out")
    jobs.clear()
    rows = run(suite, methods, ["blind"], 1, tmp_path / "out")
    assert {job["method"]["name"] for job in jobs} == {"failing"}
    assert len(rows) == 4
    jobs.clear()
    run(suite, ["losing"], ["blind"], 1, tmp_path / "out")
    assert not jobs
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 4


def test_a_suite_in_another_folder_is_the_same_run(
    suite: Path, jobs: list[dict], tmp_path: Path
) -> None:
    run(suite, ["losing"], ["blind"], 1, tmp_path / "out")
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(suite, tmp_path / "moved" / "suite.toml")
    jobs.clear()
    run(moved, ["losing"], ["blind"], 1, tmp_path / "out")
    assert not jobs


def test_changed_settings_run_again_and_replace_the_row(
    suite: Path, jobs: list[dict], tmp_path: Path
) -> None:
    def again() -> pd.DataFrame:
        return run(suite, ["losing"], ["blind"], 1, tmp_path / "out")

    before = again()
    suite.write_text(suite.read_text().replace('"intra"', '"intra"\nhidden = 0.25'))
    jobs.clear()
    after = again()
    assert [job["task"]["name"] for job in jobs] == ["open"]
    assert before["id"][0] == after["id"][0]
    assert before["id"][1] != after["id"][1]
    assert len(read(tmp_path / "out")) == 3
    assert set(pd.read_csv(tmp_path / "out" / "results.csv")["id"]) == set(after["id"])


@pytest.mark.parametrize(
    ("methods", "protocols", "message"),
    [
        (["losing"], ["paper"], "nothing to run"),
        (["losing"], ["best"], "unknown protocols"),
        (["plane", "losing"], ["blind"], r"unknown methods \['plane'\]: choose from .*'logistic'"),
        (["leiden"], ["blind"], r"'leiden' \(leiden\) cannot do task 'closed'.*'logistic'"),
    ],
)
def test_what_cannot_be_run_is_said_first(
    suite: Path, tmp_path: Path, methods: list[str], protocols: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(suite, methods, protocols, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["scnym", "losing"])
def test_what_annotates_cannot_cluster(suite: Path, tmp_path: Path, method: str) -> None:
    suite.write_text(suite.read_text().replace('"pair"', '"cluster"'))
    with pytest.raises(
        ValueError, match=r"cannot do task 'closed'.*these can: \['cicl', 'rival-clear'"
    ):
        run(suite, [method], out=tmp_path / "out")


def test_a_process_that_takes_too_long_is_ended(suite: Path, tmp_path: Path) -> None:
    rows = run(suite, ["losing"], seeds=1, out=tmp_path / "out", timeout=0.05)
    assert set(rows["error"]) == {"ended after 0.05 seconds"}
    assert len(list((tmp_path / "out" / "failed").iterdir())) == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_says_whether_the_code_was_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert _run._commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "one")
    short = git("rev-parse", "--short", "HEAD")
    (tmp_path / "results").mkdir()
    assert _run._commit(tmp_path / "results") == short
    (tmp_path / "code.py").write_text("2")
    assert _run._commit(tmp_path) == f"{short}+changes"
