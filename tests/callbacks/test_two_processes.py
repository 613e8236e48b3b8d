"""Two processes make the same weights, whatever each of them has seen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_stable import certify
from lightning_stable.stability import Box
from tests.callbacks.two_processes import BATCHES, BOUND, RATE, Three, data
from tests.helpers import Recurrent, equal


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_both_have_the_same_stable_weights_after_every_step(strategy: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.callbacks.two_processes", strategy, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))

    assert len(first["weights"]) == BATCHES
    assert all(map(equal, first["weights"], second["weights"]))
    assert first["report"] == second["report"]
    assert first["metrics"]["stability/rate"] == second["metrics"]["stability/rate"]
    assert {layer["name"]: layer["guarantee"] for layer in first["report"]["layers"]} == {
        "core.recorded.l0": "data",
        "core.derived.l0": "guaranteed",
        "core.given.l0": "guaranteed",
        "core.free.l0": "guaranteed",
    }

    # Both have the range of all training inputs, and of those only; recurrences that need none have none.
    seen = data().dataset.data[:, :-1]
    box = Box(seen.amin((0, 1)), seen.amax((0, 1)))
    for rank in (first, second):
        assert rank["ranges"].keys() == {"core.recorded"}
        low, high = rank["ranges"]["core.recorded"]
        assert torch.equal(-low, box.low)
        assert torch.equal(high, box.high)

    model = Recurrent(Three())
    middle = torch.load(tmp_path / "middle-step=3.ckpt", weights_only=True)
    for weights in first["weights"][3], middle["state_dict"]:  # projected every second step, and for a checkpoint
        model.load_state_dict(weights)
        report = certify(model, input_bound={"core.given": BOUND, "core.recorded": box})
        assert report.rate <= RATE
        assert report.layers[-1].rate > 0.99 * RATE

    # The second process saw inputs outside, the first warns; Lightning has nothing to complain about.
    assert done.stderr.count("Inputs of 'core.given' lie outside its input set (|x| <= 0.5) by") == 1
    assert "self.log('stability" not in done.stderr
