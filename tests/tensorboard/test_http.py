"""What TensorBoard itself says about a demo."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_stable import cli
from lightning_stable.callbacks import StabilityProjectionCallback
from tests.helpers import Recurrent, sequences, trainer

SCRIPT = Path(__file__).parents[2] / "docs" / "screenshots.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_a_demo_keeps_its_promises(cell: str, script: ModuleType, tmp_path: Path) -> None:
    small = ["--epochs", "2", "--limit-batches", "4", "--hidden-size", "12", "--window", "3", "--distance-steps", "4"]
    assert cli.main(["demo", "--cell", cell, "--out", str(tmp_path / "demo"), *small]) == 0
    with script.tensorboard(tmp_path / "demo") as server:
        assert script.problems(server) == []
        if script.BROWSER is not None:
            for file in script.photograph(server, tmp_path / "images"):
                assert file.read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(script: ModuleType, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="stable")
    projection = StabilityProjectionCallback(0.9)
    run = trainer(tmp_path, projection, logger=logger, log_every_n_steps=1)
    run.fit(Recurrent(), sequences(), sequences())
    logger.experiment.add_scalar("truncation/core/max_error", float("nan"), 0)
    logger.experiment.flush()
    with script.tensorboard(tmp_path) as server:
        found = script.problems(server)
    assert "run 'stable' has no scalar 'shadow/compared/loss'" in found
    assert "scalar 'truncation/core/max_error' of run 'stable' is not finite" in found
    assert "run 'stable' has no image 'truncation/core'" in found
    assert "the table of runs has no row for 'unconstrained'" in found
    assert "run 'stable' has no scalar 'stability/rate'" not in found
    assert not any("histogram" in problem for problem in found)
