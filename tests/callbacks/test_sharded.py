"""Sharded recurrent weights are projected to what whole ones are, certified alike, and saved as they are certified."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import strategies

from lightning_stable.callbacks import FeedForwardShadowCallback, StateGradientCallback, TruncationProfileCallback
from lightning_stable.checkpoints import read_checkpoint
from tests.callbacks.two_processes import BATCHES
from tests.helpers import Recurrent, equal

pytest.importorskip("torch.distributed.fsdp", reason="needs torch.distributed")
if not hasattr(torch.distributed.fsdp, "fully_shard"):
    pytest.skip("needs fully_shard", allow_module_level=True)

from tests.callbacks.sharded_runs import Core

ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    run("tests.callbacks.sharded_runs", "ddp", str(folder))
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run("tests.callbacks.sharded_runs", "lightning.pytorch", str(folder))
    return folder


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[key].float(), second[key].float(), rtol=0, atol=1e-6) for key in first
    )


def check_like_ddp(ddp: Path, sharded: Path, name: str) -> None:
    for whole, part in zip(seen(ddp, name), seen(sharded, name), strict=True):
        assert close(whole["weights"], part["weights"])
        # torch makes one more step, of size 0, for every checkpoint of an optimizer without a state.
        assert name == "resumed" or all(map(close, whole["steps"], part["steps"]))
        assert close(whole["ranges"], part["ranges"])
        assert close(whole["metrics"], part["metrics"])
        assert whole["projections"] == part["projections"]
        assert whole["best_path"]
        assert Path(whole["best_path"]).name == Path(part["best_path"]).name
        for key, report in whole["reports"].items():
            layers = zip(report["layers"], part["reports"][key]["layers"], strict=True)
            for expected, layer in layers:
                assert layer["rate"] == pytest.approx(expected["rate"], rel=1e-6)
                assert layer["guarantee"] == expected["guarantee"]
                assert layer["rate"] <= 0.9 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["every1", "every2", "resumed"])
def test_the_same_as_under_ddp(ddp: Path, sharded: Path, name: str) -> None:
    check_like_ddp(ddp, sharded, name)
    assert len(seen(ddp, "every1")[0]["steps"]) == BATCHES
    guarantees = [layer["guarantee"] for layer in seen(sharded, name)[0]["reports"]["ours"]["layers"]]
    assert guarantees == ["derived", "data", "guaranteed", "guaranteed", "guaranteed"]


@pytest.mark.slow
def test_the_same_with_the_other_package(ddp: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    run("tests.callbacks.sharded_runs", "pytorch_lightning", str(tmp_path))
    check_like_ddp(ddp, tmp_path, "every2")


@pytest.mark.slow
def test_checkpoints_load_into_the_plain_model(ddp: Path, sharded: Path) -> None:
    whole = {name: read_checkpoint(ddp / f"{name}-middle.ckpt") for name in ("every1", "every2")}
    single = read_checkpoint(sharded / "every1-middle.ckpt")

    folder = sharded / "every2-middle.ckpt"
    with pytest.raises(
        ValueError, match=r"must be one file. Got the folder of a sharded one, .*consolidate_checkpoint"
    ):
        read_checkpoint(folder)
    run("lightning.fabric.utilities.consolidate_checkpoint", str(folder), "--output_file", str(sharded / "one.ckpt"))
    merged = read_checkpoint(sharded / "one.ckpt")

    # The third step is not projected with every_n_steps=2: the checkpoint has it projected all the same.
    for expected, saved in (whole["every1"], single), (whole["every2"], merged):
        assert close(expected["state_dict"], saved["state_dict"])
        weights = {name.removeprefix("core."): value for name, value in saved["state_dict"].items()}
        Core().load_state_dict(weights)
        states = [
            next(state for key, state in each["callbacks"].items() if "StabilityProjection" in key)
            for each in (expected, saved)
        ]
        assert states[0]["steps"] == states[1]["steps"] == 3
    last = seen(sharded, "every2")[0]["steps"][2]
    assert not close(last, merged["state_dict"])


@pytest.mark.slow
def test_rounded_weights_are_not_those_certified(sharded: Path) -> None:
    for rank in seen(sharded, "rounded"):
        for layer in rank["reports"]["ours"]["layers"]:
            assert layer["guarantee"] == "none"
            assert "MixedPrecisionPolicy of fully_shard" in layer["reason"]


@pytest.mark.slow
def test_both_processes_hold_the_same(sharded: Path) -> None:
    first, second = seen(sharded, "every2")
    assert equal(first["weights"], second["weights"])
    assert first["reports"] == second["reports"]


def test_a_loop_of_torchs_own(tmp_path: Path) -> None:
    run(
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.callbacks.sharded_runs",
        "plain",
        str(tmp_path),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"plain-0", "plain-1"}


@pytest.mark.parametrize(
    "callback",
    [TruncationProfileCallback(), StateGradientCallback(), FeedForwardShadowCallback(2)],
    ids=lambda callback: type(callback).__name__,
)
@pytest.mark.parametrize("name", ["ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy"])
def test_what_needs_a_whole_model_refuses(callback: Any, name: str) -> None:
    kind = getattr(strategies, name)
    run = SimpleNamespace(strategy=kind.__new__(kind), callbacks=[callback])
    with pytest.raises(
        MisconfigurationException, match=rf"^{type(callback).__name__} needs .* Got strategy {name}; use"
    ):
        callback.setup(run, Recurrent(), "fit")
