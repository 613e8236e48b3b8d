"""Twins on two processes: gradients are averaged as the model's are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.shadows import WHOLE
from tests.callbacks.two_shadows import BATCHES
from tests.helpers import equal


@pytest.mark.parametrize("strategy", ["ddp_find_unused_parameters_true", "ddp_spawn_find_unused_parameters_true"])
def test_twins_on_two_processes(strategy: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.callbacks.two_shadows", strategy, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    alone, beside = (
        [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for name in ("alone", "beside")
    )

    # The model does not notice, and on both processes it is what it is; so are the twins.
    for rank in range(2):
        assert len(beside[rank]["model"]) == BATCHES
        assert all(map(equal, alone[rank]["model"], beside[rank]["model"]))
    for step in range(BATCHES):
        parameters = [name for name in beside[0]["model"][0] if "running" not in name and "tracked" not in name]
        (whole, short), (other_whole, other_short) = (beside[rank]["twins"][step] for rank in range(2))
        for first, second in ((whole, other_whole), (short, other_short)):
            assert all(torch.equal(first[name], second[name]) for name in parameters)
        for rank in range(2):
            assert equal(beside[rank]["model"][step], beside[rank]["twins"][step][0])
        assert equal(short, whole) == (step == 0)

    # Values of validations are of all processes.
    metrics = [rank["metrics"] for rank in beside]
    for name in ("val_loss", "val_prediction_distance", "val_weight_distance_relative"):
        assert metrics[0][f"shadow/k=1/{name}"] == metrics[1][f"shadow/k=1/{name}"] > 0 or name == "val_loss"
        assert metrics[0][f"shadow/k=1/{name}"] == metrics[1][f"shadow/k=1/{name}"]
    gaps = {name: value for name, value in metrics[0].items() if f"k={WHOLE}/" in name}
    nonzero = {name.rpartition("/")[2] for name, value in gaps.items() if value != 0}
    assert nonzero == {"loss", "val_loss", "step_time_ratio"}
    assert metrics[0][f"shadow/k={WHOLE}/val_loss"] != metrics[0]["shadow/k=1/val_loss"]

    saved = torch.load(beside[0]["saved"], weights_only=True)
    states = [value for key, value in saved["callbacks"].items() if "Shadow" in key]
    assert len(states) == 2
    assert "self.log('shadow" not in done.stderr
