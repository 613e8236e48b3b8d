import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch import strategies as lightning_strategies
from torch import nn

from lightning_stable import callbacks, datamodules
from lightning_stable.checkpoints import import_class
from lightning_stable.trainers import callbacks_of, check_strategy, lightning_class, logging_interval, trainer_class
from tests.helpers import trainer


class First(Callback):
    pass


class Second(First):
    def table_entries(self) -> None: ...


@runtime_checkable
class Tabulated(Protocol):
    def table_entries(self) -> None: ...


def test_callbacks_of_a_kind_keep_their_order(tmp_path: Path) -> None:
    callbacks = [Second(), First(), Second()]
    run = trainer(tmp_path, *callbacks)
    assert callbacks_of(run, First) == callbacks
    assert callbacks_of(run, Second) == callbacks[::2]
    assert callbacks_of(run, Tabulated) == callbacks[::2]  # type: ignore[type-abstract]
    assert callbacks_of(run, Path) == []


def test_logging_interval(tmp_path: Path) -> None:
    assert logging_interval(trainer(tmp_path, log_every_n_steps=7)) == 7
    assert logging_interval(trainer(tmp_path, log_every_n_steps=0)) == 0


def strategy(name: str, package: Any) -> Any:
    kind = getattr(package, name)
    return SimpleNamespace(strategy=kind.__new__(kind))


WHOLE, SHARDED = ("SingleDeviceStrategy", "DDPStrategy"), ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


@pytest.mark.parametrize("name", [*WHOLE, *SHARDED])
def test_strategies_of_both_packages(name: str) -> None:
    other = pytest.importorskip("pytorch_lightning.strategies")
    for package in (lightning_strategies, other):
        run = strategy(name, package)
        if name in WHOLE:
            check_strategy(run, "The asker", "whole matrices")
        else:
            with pytest.raises(
                MisconfigurationException, match=rf"^The asker needs whole matrices, .* Got strategy {name}; use"
            ):
                check_strategy(run, "The asker", "whole matrices")


NAMES = (
    "StabilityProjectionCallback",
    "StableModelCheckpoint",
    "FeedForwardShadowCallback",
    "TruncationPenaltyCallback",
    "TruncationProfileCallback",
    "StateGradientCallback",
)
STRATEGIES = {
    "single device": "SingleDeviceStrategy",
    "ddp": "DDPStrategy",
    "ModelParallelStrategy": "ModelParallelStrategy",
    "fsdp": "FSDPStrategy",
    "deepspeed": "DeepSpeedStrategy",
}


def test_the_table_of_what_works_where() -> None:
    """Each cell of the table in the documentation, for both packages."""
    other = pytest.importorskip("pytorch_lightning.strategies")
    page = (Path(__file__).parents[1] / "docs" / "integrate.md").read_text(encoding="utf-8")
    head, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page.split("## What works where")[1].split("\n\n")[2].splitlines()
    )
    assert head[1:] == list(NAMES)
    assert [row[0].partition(",")[0].strip('`"') for row in rows] == list(STRATEGIES)
    for row, kind in zip(rows, STRATEGIES.values(), strict=True):
        for name, cell in zip(NAMES, row[1:], strict=True):
            callback = getattr(callbacks, name)(**({"window": 2} if name.startswith(("Feed", "TruncationPen")) else {}))
            for package in (lightning_strategies, other):
                run = strategy(kind, package)
                run.callbacks, run.loggers = [callback], []
                run.is_global_zero = True
                if cell == "refused":
                    with pytest.raises(MisconfigurationException, match=rf"^{name} needs .* Got strategy {kind};"):
                        callback.setup(run, nn.Module(), "validate" if "Profile" in name or "StateG" in name else "fit")
                elif kind != "ModelParallelStrategy":
                    check_strategy(run, name, "whole matrices")


def test_modules_of_both_packages() -> None:
    other = pytest.importorskip("pytorch_lightning")
    for package in (L, other):
        assert lightning_class(package.LightningModule()) is package.LightningModule
        assert trainer_class(package.LightningModule()) is package.Trainer
        assert import_class(f"{package.__name__}.LightningModule") is package.LightningModule
    assert lightning_class(nn.Linear(1, 1)) is lightning_class(None) is None


def test_data_modules_of_both_packages() -> None:
    for package in (L, pytest.importorskip("pytorch_lightning")):
        kinds = [getattr(datamodules, name) for name in datamodules.__all__ if name.endswith("DataModule")]
        assert len(kinds) > 5
        assert all(issubclass(kind, package.LightningDataModule) for kind in kinds)


def test_model_parallel_is_for_those_that_gather() -> None:
    other = pytest.importorskip("pytorch_lightning.strategies")
    for package in (lightning_strategies, other):
        check_strategy(strategy("ModelParallelStrategy", package), "The asker", "matrices", sharded=True)
        for name in ("FSDPStrategy", "DeepSpeedStrategy"):
            with pytest.raises(
                MisconfigurationException, match=rf"{name}; use 'ddp' or 'auto', or ModelParallelStrategy"
            ):
                check_strategy(strategy(name, package), "The asker", "matrices", sharded=True)


def test_the_strategy_of_ray_train_is_ddp() -> None:
    ray = pytest.importorskip("ray.train.lightning")
    check_strategy(strategy("RayDDPStrategy", ray), "The asker", "whole matrices")


def test_a_strategy_of_ones_own_is_one_of_its_base() -> None:
    class Own(lightning_strategies.DDPStrategy):
        pass

    check_strategy(strategy("Own", SimpleNamespace(Own=Own)), "The asker", "whole matrices")
    with pytest.raises(MisconfigurationException, match="Got strategy str; use 'ddp' or 'auto'"):
        check_strategy(SimpleNamespace(strategy="ddp"), "The asker", "whole matrices")  # type: ignore[arg-type]


def test_the_other_package_is_not_imported_for_the_question() -> None:
    script = """
import sys
from types import SimpleNamespace
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_stable.trainers import check_strategy
check_strategy(SimpleNamespace(strategy=SingleDeviceStrategy("cpu")), "The asker", "whole matrices")
assert "pytorch_lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
