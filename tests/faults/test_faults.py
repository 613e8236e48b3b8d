"""Interrupted runs go on to the same end as one that is not interrupted; ``make test-faults`` has many more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its runs")
def test_interrupted_runs_are_resumed_exactly() -> None:
    # In a process without the threads of a test runner, as it forks.
    command = [sys.executable, "-m", "tests.faults", "12", "1"]
    root, environment = Path(__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=3000
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 failures" in ended.stdout
