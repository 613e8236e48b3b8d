"""Two processes, one of which dies, falls behind, or has other data: an end that says why, or none of them notices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import equal

LIMIT = 180  # seconds, of which starting both processes takes most


def run(what: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.ranks", what, str(folder)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["more", "unsized"])
def test_other_numbers_of_batches_end_with_their_cause(what: str, tmp_path: Path) -> None:
    ended = run(what, tmp_path)
    assert ended.returncode != 0
    assert "All processes must have the same number of training batches" in ended.stderr
    assert "Got 4 batches in the processes [0] of 2, and more in the others." in ended.stderr


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other(tmp_path: Path) -> None:
    assert run("dies", tmp_path).returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["late", "unsized alike"])
def test_a_process_that_falls_behind_is_waited_for(what: str, tmp_path: Path) -> None:
    ended = run(what, tmp_path)
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGTERM 1:1", "SIGTERM 0:1 1:2", "SIGINT 1:1"])
def test_processes_end_at_the_same_step(what: str, tmp_path: Path) -> None:
    """A signal for one of them ends both, and the second signal changes nothing."""
    run(what, tmp_path)
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    error = {"SIGTERM": "SIGTERMException", "SIGINT": "KeyboardInterrupt"}[what.split()[0]]
    assert said == [f"{error} after 2 steps"] * 2
    assert equal(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGUSR1 1:3", "SIGUSR1 0:3 1:2"])
def test_processes_save_at_the_same_step(what: str, tmp_path: Path) -> None:
    """And go on to the end that a run resumed from there has."""
    results = []
    for part in (what, "resume"):
        ended = run(part, tmp_path)
        assert ended.returncode == 0, ended.stderr
        results += [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(equal(results[0], other) for other in results[1:])
