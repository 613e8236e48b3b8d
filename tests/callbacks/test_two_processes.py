"""Two processes make the same weights, whatever each of them has seen, and their twins follow them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_stable import certify, truncation_profile
from lightning_stable.stability import Box
from lightning_stable.truncation.exact.stack import stacks_of
from lightning_stable.truncation.restarts import restart_difference
from tests.callbacks import two_shadows
from tests.callbacks.shadows import WHOLE
from tests.callbacks.two_processes import BATCHES, BOUND, PENALTY, RATE, Penalised, Three, data, validation_data
from tests.helpers import Recurrent, equal

Done = tuple[Path, str]


def done(strategy: str, folder: Path) -> Done:
    """What the runs have left in a folder, and on stderr."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.callbacks.two_processes", strategy, str(folder)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stderr


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def ddp_spawn(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done("ddp_spawn", tmp_path_factory.mktemp("ddp_spawn"))


def test_both_have_the_same_stable_weights_after_every_step(ddp: Done) -> None:
    folder, stderr = ddp
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first["weights"]) == BATCHES
    assert all(map(equal, first["weights"], second["weights"]))
    assert first["report"] == second["report"]
    assert first["metrics"]["stability/rate"] == second["metrics"]["stability/rate"]
    assert {layer["name"]: layer["guarantee"] for layer in first["report"]["layers"]} == {
        "core.recorded.l0": "data",
        "core.derived.l0": "derived",
        "core.given.l0": "none",  # the second process sees inputs a hundred times as large
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
    middle = torch.load(folder / "middle-step=3.ckpt", weights_only=True)
    for weights in first["weights"][3], middle["state_dict"]:  # projected every second step, and for a checkpoint
        model.load_state_dict(weights)
        report = certify(model, input_bound={"core.given": BOUND, "core.recorded": box})
        assert report.rate <= RATE
        assert report.layers[-1].rate > 0.99 * RATE

    # The second process saw inputs outside, the first warns; Lightning has nothing to complain about.
    assert stderr.count("Inputs of 'core.given' lie outside its input set (|x| <= 0.5) by") == 1
    assert "self.log('stability" not in stderr


def test_a_statistical_window_counts_the_sequences_of_both_once(ddp: Done) -> None:
    first, second = (torch.load(ddp[0] / f"{rank}.pt", weights_only=True) for rank in range(2))
    model = Recurrent(Three(), bounded=False)
    model.load_state_dict(first["last"])
    whole = validation_data().dataset.data[:, :-1]
    expected = truncation_profile(model.core.recorded, whole, 3).sequence_error
    found = first["errors"]["core.recorded"]
    assert found.shape == (3, 2 * 2 * BATCHES - 1)
    # The first process has every second sequence.
    torch.testing.assert_close(found, torch.cat((expected[:, ::2], expected[:, 1::2]), 1), rtol=1e-4, atol=1e-6)
    assert not second["errors"]  # the first process speaks
    assert first["metrics"]["truncation/core.recorded/statistical_window"] >= 1


def test_a_penalty_is_the_mean_of_both(ddp: Done) -> None:
    folder, stderr = ddp
    without, found = (
        [torch.load(folder / f"penalty-{weight}-{rank}.pt", weights_only=True) for rank in range(2)]
        for weight in (0.0, PENALTY)
    )
    assert len(found[0]["gradients"]) == 3
    assert all(map(equal, found[0]["gradients"], found[1]["gradients"]))
    assert equal(found[0]["weights"], found[1]["weights"])
    assert found[0]["metrics"]["penalty/core/loss"] == found[1]["metrics"]["penalty/core/loss"] > 0

    model = Penalised()
    added = []
    for rank in found:  # of the first step: the last of two accumulated batches
        places = torch.Generator().manual_seed(0)
        difference = restart_difference(stacks_of(model.core), rank["inputs"][1], None, 1, 8, places)
        added.append(torch.autograd.grad(PENALTY * difference, list(model.core.parameters())))
    for (name, _), first, second in zip(model.core.named_parameters(prefix="core"), *added, strict=True):
        assert not torch.equal(first, second)
        change = found[0]["gradients"][0][name] - without[0]["gradients"][0][name]
        torch.testing.assert_close(change, (first + second) / 2, rtol=1e-4, atol=1e-6)
    assert "self.log('penalty" not in stderr


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_twins_on_two_processes(strategy: str, ddp: Done, request: pytest.FixtureRequest) -> None:
    folder, stderr = request.getfixturevalue(strategy)
    alone, beside = (
        [torch.load(path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for path, name in ((ddp[0], "alone"), (folder, "beside"))
    )

    # The model does not notice, and on both processes it is what it is; so are the twins.
    for rank in range(2):
        assert len(beside[rank]["model"]) == two_shadows.BATCHES
        assert all(map(equal, alone[rank]["model"], beside[rank]["model"]))
    for step in range(two_shadows.BATCHES):
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
    assert "self.log('shadow" not in stderr
