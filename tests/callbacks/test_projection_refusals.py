"""Arguments, models, weights and inputs that a projection refuses or warns about."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    OnExceptionCheckpoint,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn

from tests.callbacks.projections import RATE, Nest, projection
from tests.helpers import (
    CELLS,
    FEATURES,
    UNITS,
    AfterStep,
    Recurrent,
    Sequences,
    equal,
    sequences,
    trainer,
    weights,
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l3"}, r"`norm` must be one of \('row', .*'core\.l0'\. Got 'l3'"),
        ({"method": "magic"}, r"`method` must be one of \('shares', .*'core\.l0'\. Got 'magic'"),
        ({"input_bound": {"cor": 1.0}}, r"`input_bound` names no recurrence\. Got key 'cor'.*'core'"),
        ({"gate_bound": 0.4, "bias": False}, r"has no bias.*above 0\.5\. Got .*gate_bound=0\.4"),
    ],
)
@pytest.mark.parametrize("bounded", [True, False])
def test_argument_that_does_not_fit_the_model(
    arguments: dict[str, Any], message: str, bounded: bool, tmp_path: Path
) -> None:
    """Refused before the first batch, inputs known or not, and nothing is left behind."""
    arguments = dict(arguments)
    model = Recurrent("lstm", bounded=bounded, bias=arguments.pop("bias", True))
    start = weights(model)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, projection(**arguments), num_sanity_val_steps=0).fit(model, sequences())
    assert equal(start, weights(model))
    assert not model.core._forward_pre_hooks


class NoRecurrence(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def normed() -> nn.Module:
    core = nn.LSTM(FEATURES, UNITS, batch_first=True)
    nn.utils.parametrizations.weight_norm(core, "weight_hh_l0")
    return core


@pytest.mark.parametrize(
    ("core", "modules", "message"),
    [
        (
            lambda: NoRecurrence(FEATURES, UNITS),
            None,
            r"No recurrence found in Recurrent\. Got modules of types \['Lin",
        ),
        (normed, None, r"must be plain parameters\. Got .*'weight_hh_l0'.*remove_parametrizations"),
        (lambda: "gru", "decoder.*", r"`modules` pattern matches no recurrent module\. Got 'decoder\.\*'.*\['core'\]"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_models_that_cannot_be_projected(core: Any, modules: Any, message: str, stage: str, tmp_path: Path) -> None:
    model = Recurrent(core())
    run = trainer(tmp_path, projection(modules=modules), num_sanity_val_steps=0)
    with pytest.raises(MisconfigurationException, match=message):
        run.fit(model, sequences()) if stage == "fit" else run.validate(model, sequences(), verbose=False)
    assert not model.core._forward_pre_hooks


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_sharding_strategies(strategy: type) -> None:
    run = SimpleNamespace(strategy=strategy.__new__(strategy))
    for stage in ("fit", "validate"):
        with pytest.raises(MisconfigurationException, match=rf"Got strategy {strategy.__name__}; use 'ddp' or 'auto'"):
            projection().setup(run, Recurrent(), stage)
    projection().setup(run, Recurrent(), "test")


@pytest.mark.parametrize(
    ("cell", "value"),
    [("rnn", "nan"), ("gru", "inf"), ("lstm", "nan"), ("lstm", "inf"), ("ugrnn", "nan"), ("intersection", "inf")],
)
def test_weights_that_are_not_finite(cell: str, value: str, tmp_path: Path) -> None:
    """The run fails at that step, names the parameter, and no recurrence was projected by half."""

    class Spoiled(Recurrent):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 1:
                self.core.decoder.weight_hh_l1.grad[0, 0] = float(value)

    ours, probe = projection(), AfterStep(weights)
    model = Spoiled(Nest(cell))
    with pytest.raises(ValueError, match=r"must be finite\. Got NaN or Inf in 'core\.decoder\.weight_hh_l1'.* clip"):
        trainer(tmp_path, probe, ours, OnExceptionCheckpoint(tmp_path)).fit(model, sequences())
    left = probe.results[1]
    assert all(torch.equal(left[n].nan_to_num(), v.nan_to_num()) for n, v in weights(model).items())
    assert ours.num_projections == 1
    assert ours.report is None
    assert not model.core.decoder._forward_pre_hooks
    assert not model._state_dict_pre_hooks


def test_embedding_that_is_not_finite(tmp_path: Path) -> None:
    """Its table is the input set: NaN must not spread into the recurrent weights, nor be taken for theirs."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, FEATURES)
            self.cell = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.cell(self.table(x.sum(2).long() % 7))

    class Spoiled(Recurrent):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 1:
                self.core.table.weight.grad[0, 0] = float("nan")

    model = Spoiled(Words(), bounded=False)
    with pytest.raises(ValueError, match=r"input set of the recurrence 'core\.cell\.l0' must be finite\. Got NaN"):
        trainer(tmp_path, projection()).fit(model, sequences())
    assert all(value.isfinite().all() for value in model.core.cell.parameters())


def test_exception_and_a_second_run(tmp_path: Path) -> None:
    class Failing(Recurrent):
        fails = True

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            if self.fails and batch_idx == 1:
                raise RuntimeError("as planned")
            return super().training_step(batch, batch_idx)

    model, ours = Failing("lstm", bounded=False), projection()
    with pytest.raises(RuntimeError, match="as planned"):
        trainer(tmp_path, ours, OnExceptionCheckpoint(tmp_path)).fit(model, sequences())
    (saved,) = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["callbacks"].values()
    assert saved["report"] is None  # nobody certified these weights
    assert not model.core._forward_pre_hooks
    model.fails = False
    trainer(tmp_path, ours).fit(model, sequences())
    assert ours.num_projections == 3
    assert ours.report.rate <= RATE


@pytest.mark.parametrize("cell", CELLS)
def test_frozen_weights(cell: str, tmp_path: Path) -> None:
    model = Recurrent(Nest(cell))
    model.core.encoder["core"].requires_grad_(False)
    with torch.no_grad():
        core = model.core.encoder["core"]
        getattr(core, "weight_hh_l0", core.weight_ih_l0).mul_(100)
    before = weights(model.core.encoder)
    ours = projection()
    with pytest.warns(UserWarning, match=r"frozen recurrence 'core\.encoder\.core\.l0' has the certified rate .*0\.9"):
        trainer(tmp_path, ours).fit(model, sequences(), sequences())
    assert equal(before, weights(model.core.encoder))
    assert ours.report.rate > RATE
    assert all(layer.rate <= RATE for layer in ours.report.layers[1:])


def test_validation_inputs_outside_their_bound(tmp_path: Path) -> None:
    """Looked at in every validation, however long the logging interval."""
    run = trainer(tmp_path, projection(input_bound=9.0), num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=r"Inputs of 'core' lie outside"):
        run.fit(Recurrent("lstm", bounded=False), sequences(), sequences(scale=99.0))


@pytest.mark.parametrize(
    ("cell", "bound"),
    [
        ("rnn", 0.5),
        ("gru", {"core": 0.5}),
        ("lstm", {"core.l0": 0.5}),
        ("ugrnn", 0.5),
        ("intersection", {"core": 0.5}),
    ],
    ids=str,
)
def test_inputs_outside_their_bound(cell: str, bound: Any, tmp_path: Path) -> None:
    """One warning for the whole run, with the recurrence and by how much."""
    data = Sequences(6).data[:, :-1].abs()
    name = "core.l0" if isinstance(bound, dict) and "core.l0" in bound else "core"
    ours = projection(input_bound=bound)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path, ours, log_every_n_steps=1, max_epochs=2)
        run.fit(Recurrent(cell, num_layers=2), sequences(), sequences())
    (message,) = [str(w.message) for w in caught if "does not cover this run" in str(w.message)]
    if cell == "rnn":  # its rate rests on no inputs
        assert "the rate rests on none, but the windows do" in message
        assert ours.report.guarantee == "guaranteed"
        assert ours.report.required_window(1e-2) is None
        return
    first = Sequences(6).data[:4].abs().max().item() - 0.5  # the sanity check's two batches come first, with all steps
    assert f"Inputs of '{name}' lie outside its input set (|x| <= 0.5) by " in message
    assert float(message.partition(" by ")[2].split(". ")[0]) <= max(first, data.max().item())
    assert ours.report.guarantee == "none"
    assert "Pass a larger `input_bound`, or clamp" in message
    assert ours.report.rate <= RATE


def test_inputs_of_large_magnitude_are_not_outside_for_their_rounding(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, FEATURES)
            self.dropout = nn.Dropout(0.3)
            self.cell = nn.GRU(FEATURES, UNITS, batch_first=True)
            with torch.no_grad():
                self.table.weight.mul_(1e4)

        def forward(self, x: Tensor) -> Any:
            return self.cell(self.dropout(self.table(x.sum(2).long() % 7)))

    ours = projection()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not cover this run")
        model = Recurrent(Words(), bounded=False, growth=0.0, optimizer=lambda p: torch.optim.SGD(p, lr=1e-6))
        trainer(tmp_path, ours, log_every_n_steps=1).fit(model, sequences(20))
    assert ours.report is not None
    assert (ours.report.guarantee, ours.report.input_excess) == ("derived", 0.0)


def test_recurrence_that_is_never_called(tmp_path: Path) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.RNN(FEATURES, UNITS, batch_first=True)
            self.unused = nn.LSTM(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    ours = projection()
    with pytest.warns(UserWarning, match=r"recurrences \['core\.unused\.l0'\] were not projected.* Pass `input_bound`"):
        trainer(tmp_path, ours).fit(Recurrent(Unused()), sequences())
    assert [layer.guarantee for layer in ours.report.layers] == ["guaranteed", "none"]
