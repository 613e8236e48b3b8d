"""The best checkpoint among the certified ones, with and without a projection."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback, StableModelCheckpoint
from lightning_stable.stability.report import REMEDY
from tests.helpers import Recurrent, sequences, trainer


class Planned(Recurrent):
    """A model whose recurrent weights and validation loss follow a plan: one ``(norm, loss)`` per epoch."""

    def __init__(self, *plan: tuple[float, float], core: nn.Module | str = "rnn", **kwargs: Any) -> None:
        super().__init__(core, growth=0.0, **kwargs)
        self.plan = plan

    def on_train_epoch_start(self) -> None:
        with torch.no_grad():
            for weight in self.recurrent_weights().values():
                weight.copy_(self.plan[self.current_epoch][0] * torch.eye(*weight.shape))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("val_loss", self.plan[self.current_epoch][1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(path: Path, model: Planned, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    run = trainer(path, *callbacks, **{"max_epochs": len(model.plan), **kwargs})
    run.fit(model, sequences(2), sequences(1), ckpt_path=kwargs.pop("ckpt_path", None))
    return run


def kept(checkpoint: ModelCheckpoint) -> list[int]:
    epochs = [torch.load(path, weights_only=False)["epoch"] for path in checkpoint.best_k_models]
    assert sorted(Path(checkpoint.dirpath).glob("epoch*")) == sorted(map(Path, checkpoint.best_k_models))
    return sorted(epochs)


PLAN = [(0.9, 4.0), (2.0, 1.0), (0.5, 3.0), (0.8, 2.0), (1.1, 0.5), (0.9, 5.0)]


def test_keeps_the_best_of_the_certified(tmp_path: Path) -> None:
    ours = StableModelCheckpoint(dirpath=tmp_path)
    run = fit(tmp_path, Planned(*PLAN), ours)
    assert kept(ours) == [3]
    assert ours.best_model_score == 2.0
    assert run.callback_metrics["stability/rate"] == pytest.approx(0.9, rel=1e-6)
    model = Planned(*PLAN)
    model.load_state_dict(torch.load(ours.best_model_path, weights_only=False)["state_dict"])
    assert certify(model).rate == pytest.approx(0.8, rel=1e-6)


@pytest.mark.parametrize(("top", "expected"), [(2, [2, 3]), (-1, [0, 2, 3, 5])])
def test_several(top: int, expected: list[int], tmp_path: Path) -> None:
    ours = StableModelCheckpoint(dirpath=tmp_path, save_top_k=top)
    fit(tmp_path, Planned(*PLAN), ours)
    assert kept(ours) == expected


def test_a_smaller_rate(tmp_path: Path) -> None:
    ours = StableModelCheckpoint(dirpath=tmp_path, rate=0.6)
    fit(tmp_path, Planned(*PLAN), ours)
    assert kept(ours) == [2]


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path / "last", save_top_k=1)  # no monitor: the latest
    ours = StableModelCheckpoint(dirpath=tmp_path / "best")
    fit(tmp_path, Planned(*PLAN), ours, last, max_epochs=4)
    ours = StableModelCheckpoint(dirpath=tmp_path / "best")
    run = trainer(tmp_path, ours, max_epochs=6)
    run.fit(Planned(*PLAN), sequences(2), sequences(1), ckpt_path=last.best_model_path)
    assert kept(ours) == [3]


def test_at_steps_between_validations_and_without_them(tmp_path: Path) -> None:
    class Logs(Planned):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            self.log("train_loss", self.plan[self.current_epoch][1])
            assert self.core.training
            return super().training_step(batch, batch_idx)

    ours = StableModelCheckpoint("train_loss", dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    run = trainer(tmp_path, ours, max_epochs=len(PLAN))
    run.fit(Logs(*PLAN), sequences(2))
    assert kept(ours) == [0, 0, 2, 2, 3, 3, 5, 5]


def test_warns_if_nothing_was_certified(tmp_path: Path) -> None:
    ours = StableModelCheckpoint(dirpath=tmp_path)
    with pytest.warns(UserWarning, match="kept nothing"):
        fit(tmp_path, Planned((2.0, 1.0)), ours)
    assert kept(ours) == []


def test_says_so_once_and_early(tmp_path: Path) -> None:
    ours = StableModelCheckpoint(dirpath=tmp_path)
    said: list[tuple[int, str]] = []

    class Listens(Planned):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            said.extend((self.current_epoch, str(warning.message)) for warning in seen)
            seen.clear()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(tmp_path, Listens((2.0, 1.0), (3.0, 1.0), (2.0, 1.0), (0.9, 1.0)), ours)
    ((epoch, message),) = [(epoch, text) for epoch, text in said if "has kept nothing yet" in text]
    assert epoch == 1
    assert "The rate of 'core.l0', 2.0000" in message
    assert REMEDY in message
    assert kept(ours) == [3]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"rate": 0.5}, "is above `rate`, 0.5: train with StabilityProjectionCallback(rate=0.5)"),
        ({"guaranteed": True}, "The certificate is 'data', and `guaranteed=True` asks for 'guaranteed'"),
        ({"guaranteed": True, "derived": True}, "asks for 'derived'"),
    ],
)
def test_says_what_is_not_enough(arguments: dict[str, Any], reason: str, tmp_path: Path) -> None:
    ours = StableModelCheckpoint(dirpath=tmp_path, **arguments)
    with pytest.warns(UserWarning, match="has kept nothing yet") as seen:
        fit(tmp_path, Planned((0.0, 1.0), core="gru", bounded=False), ours, StabilityProjectionCallback(0.9))
    assert any(reason in str(warning.message) for warning in seen)


def test_inputs_of_gated_cells(tmp_path: Path) -> None:
    """Unknown inputs have no certificate without a projection; one that was recorded is no guarantee."""
    plan = [(0.0, 1.0)]
    unknown = StableModelCheckpoint(dirpath=tmp_path / "unknown")
    with pytest.warns(UserWarning, match="kept nothing"):
        fit(tmp_path, Planned(*plan, core="gru", bounded=False), unknown)
    given = StableModelCheckpoint(dirpath=tmp_path / "given", input_bound=3.0, guaranteed=True)
    fit(tmp_path, Planned(*plan, core="gru", bounded=False), given)
    assert kept(given) == [0]

    data = StableModelCheckpoint(dirpath=tmp_path / "data")
    guaranteed = StableModelCheckpoint(dirpath=tmp_path / "guaranteed", guaranteed=True)
    model = Planned(*plan, core="gru", bounded=False)
    with pytest.warns(UserWarning, match="kept nothing"):
        fit(tmp_path, model, data, guaranteed, StabilityProjectionCallback(0.9))
    assert kept(data) == [0]
    assert data.report is not None
    assert data.report.layers[0].guarantee == "data"
    assert kept(guaranteed) == []


def test_with_a_projection_every_epoch_is_certified(tmp_path: Path) -> None:
    ours, plain = StableModelCheckpoint(dirpath=tmp_path / "a"), ModelCheckpoint(tmp_path / "b", monitor="val_loss")
    fit(tmp_path, Planned(*PLAN), ours, plain, StabilityProjectionCallback(0.9))
    assert kept(ours) == kept(plain) == [4]


def test_recurrences_the_projection_leaves_alone(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.RNN(3, 5, batch_first=True), nn.RNN(5, 5, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.two(self.one(x)[0])

    ours = StableModelCheckpoint(dirpath=tmp_path / "a")
    whole = StableModelCheckpoint(dirpath=tmp_path / "b", input_bound=9.0)
    model = Planned((2.0, 1.0), core=Two())
    with pytest.warns(UserWarning, match="kept nothing"):
        fit(tmp_path, model, ours, whole, StabilityProjectionCallback(0.9, modules="core.one"))
    assert kept(ours) == [0]
    assert kept(whole) == []

    both = StableModelCheckpoint(dirpath=tmp_path / "c", rate=0.6)
    looser = StabilityProjectionCallback(0.9, modules="core.two")
    with pytest.warns(UserWarning, match="kept nothing"):
        fit(tmp_path, model, both, StabilityProjectionCallback(0.5, modules="core.one"), looser)
    assert both.report is not None
    assert [layer.name for layer in both.report.layers] == ["core.one.l0", "core.two.l0"]


def test_averaged_weights_are_judged_as_they_are_validated(tmp_path: Path) -> None:
    if not hasattr(pl_callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")
    ours = StableModelCheckpoint(dirpath=tmp_path, save_top_k=-1)
    # The plain average of 0.9, 0.9 (two steps) and 2.0, 2.0 is not stable, nor is the model.
    fit(tmp_path, Planned((0.5, 1.0), (1.2, 1.0), (3.0, 1.0)), pl_callbacks.WeightAveraging(), ours)
    assert kept(ours) == [0, 1]
    for path in ours.best_k_models:
        model = Planned()
        model.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
        assert certify(model).rate < 1


@pytest.mark.parametrize(
    ("weights_only", "norms", "expected"),
    # The weights themselves are saved; or averages at every step of 3, 3, 0, 0, 0, 0, 0, 0.
    [(True, (0.3, 1.5), [0]), (False, (3.0, 0.0, 0.0, 0.0), [3, 3])],
)
def test_averaged_weights_are_judged_as_they_are_saved(
    weights_only: bool, norms: tuple[float, ...], expected: list[int], tmp_path: Path
) -> None:
    if not hasattr(pl_callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")

    class Logs(Planned):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            self.log("train_loss", 1.0)
            return super().training_step(batch, batch_idx)

    when: dict[str, Any] = {"save_weights_only": True} if weights_only else {"every_n_train_steps": 1}
    ours = StableModelCheckpoint("train_loss", dirpath=tmp_path, save_top_k=-1, **when)
    model = Logs(*((norm, 1.0) for norm in norms))
    fit(tmp_path, model, pl_callbacks.WeightAveraging(), ours)
    assert kept(ours) == expected


def test_refuses_a_model_without_recurrence_before_the_first_step(tmp_path: Path) -> None:
    class NoRecurrence(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    model = Planned((0.5, 1.0), core=NoRecurrence(3, 5))
    with pytest.raises(MisconfigurationException, match="No recurrence found in Planned"):
        fit(tmp_path, model, StableModelCheckpoint(dirpath=tmp_path))
    assert model.trainer.global_step == 0


def test_arguments_of_a_plain_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="save_top_k"):
        StableModelCheckpoint(dirpath=tmp_path, save_top_k=-2)


def test_refuses_sharded_parameters(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.strategy.__class__ = FSDPStrategy
    with pytest.raises(MisconfigurationException, match="Got strategy FSDPStrategy"):
        StableModelCheckpoint().setup(run, Planned(), "fit")
