"""The gradient that the penalty adds, and everything else that it leaves as it was."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lightning_stable import certify, truncation_profile
from lightning_stable.callbacks import FeedForwardShadowCallback, TruncationPenaltyCallback
from lightning_stable.truncation.exact.stack import stacks_of
from lightning_stable.truncation.restarts import restart_difference
from tests.callbacks.projections import Manual
from tests.callbacks.shadows import WHOLE, AfterBatch, Loader, Noisy, adam, data, fit, half, projection, seed, state
from tests.callbacks.test_shadow_exact import SETTINGS, fused
from tests.helpers import (
    FEATURES,
    TIME,
    UNITS,
    AfterStep,
    Recurrent,
    equal,
    resumes_inside_an_epoch,
    sequences,
    takes_stand_ins,
    trainer,
    weights,
)

WINDOW = 2


class Gradients(L.Callback):
    """Copies gradients before every step; placed behind the penalty, it sees what that one has added."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.seen.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


class Inputs(Recurrent):
    """Keeps what its core was given in the latest training step."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        self.inputs = batch[:, :-1].clamp(-2.0, 2.0)
        return super().training_step(batch, batch_idx)


def generator_of(callback: TruncationPenaltyCallback, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((callback.seed + 0x9E3779B97F4A7C15 * step) % 2**63)


def first_gradients(path: Path, *callbacks: L.Callback, make: Callable[[], Any], **kwargs: Any) -> Any:
    model, gradients = make(), Gradients()
    seed()
    run = trainer(path, *callbacks, gradients, **{"max_steps": 1} | kwargs)
    run.fit(model, sequences(4), sequences(1))
    return model, gradients.seen[0], run


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "64-true"},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"scale": 1024.0},
        {"gradient_clip_val": 1e-3},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_what_is_added(cell: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the loss is divided by or scaled with, and before gradients are clipped."""

    def make() -> Inputs:
        return Inputs(cell, num_layers=2, dropout=0.0, growth=0.0)

    if "scale" in settings:
        cell = {"lstm": "gru"}.get(cell, cell)  # torch has no LSTM in half precision on every CPU
        settings = {"plugins": [half(init_scale=settings["scale"])]}
    ours = TruncationPenaltyCallback(WINDOW, 3.0, seed=7)
    _, without, _ = first_gradients(tmp_path, make=make, **settings)
    model, found, run = first_gradients(tmp_path, ours, make=make, **settings)

    same = make().to(next(model.parameters()).dtype)
    difference = restart_difference(stacks_of(same.core), model.inputs, None, WINDOW, 8, generator_of(ours, 0))
    added = torch.autograd.grad(3.0 * difference, list(same.core.parameters()))
    rounding = {"bf16-mixed": 1e-6, "16-mixed": 1e-6}.get(str(run.precision), 1e-7)
    for (name, _), gradient in zip(same.core.named_parameters(prefix="core"), added, strict=True):
        assert gradient.any()
        torch.testing.assert_close(found[name] - without[name], gradient, rtol=1e-4, atol=rounding)
    for name in ("head.weight", "head.bias"):
        assert torch.equal(found[name], without[name])
    assert run.callback_metrics["penalty/core/loss"] == pytest.approx(difference.item(), rel=1e-5)


def test_clipping_comes_after_it(tmp_path: Path) -> None:
    def make() -> Recurrent:
        return Recurrent("rnn", growth=0.0, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))

    before = weights(make())
    model, _, _ = first_gradients(tmp_path, TruncationPenaltyCallback(WINDOW, 1e3), make=make, gradient_clip_val=0.01)
    moved = torch.cat([(p - before[name]).flatten() for name, p in model.named_parameters()])
    torch.testing.assert_close(torch.linalg.vector_norm(moved), torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("optimizer", [adam, fused])
def test_a_gradient_scaler_changes_nothing(optimizer: Any, tmp_path: Path) -> None:
    """Also where the optimizer itself divides by the scale, after the callback."""

    def run(scale: float) -> dict[str, Tensor]:
        model = Recurrent("gru", growth=0.0, optimizer=optimizer)
        fit(model, tmp_path, TruncationPenaltyCallback(1, 10.0), plugins=[half(init_scale=scale)], max_epochs=1)
        return weights(model)

    one, other = run(1.0), run(256.0)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-2, atol=2e-3)


def test_a_difference_that_overflows_is_left_out(tmp_path: Path) -> None:
    def make() -> Recurrent:
        model = Recurrent("rnn", nonlinearity="relu", growth=0.0)
        with torch.no_grad():
            model.core.weight_hh_l0.fill_(1e18)
            model.core.weight_ih_l0.fill_(1.0)
            model.head.weight.zero_()
        return model

    _, without, _ = first_gradients(tmp_path, make=make)
    _, found, _ = first_gradients(tmp_path, TruncationPenaltyCallback(WINDOW), make=make)
    assert equal(without, found)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_run_is_otherwise_untouched(weight: float, tmp_path: Path) -> None:
    def run(*callbacks: L.Callback) -> Any:
        model, probe = Noisy(), AfterBatch()
        metrics = fit(model, tmp_path, *callbacks, probe).callback_metrics
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        return probe.model, metrics, torch.get_rng_state(), model

    alone, alone_metrics, generator, _ = run()
    beside, metrics, other_generator, model = run(TruncationPenaltyCallback(1, weight))
    assert torch.equal(generator, other_generator)
    assert all(map(equal, alone, beside)) == (weight == 0)
    assert ("penalty/core/loss" in metrics) == (weight > 0)
    assert alone_metrics.keys() == {name for name in metrics if not name.startswith("penalty")}
    assert model.training
    assert model.core.dropout == 0.2


@pytest.mark.parametrize(
    "setting",
    [
        "dropout",
        "gru, both directions",
        "bf16-mixed, clip norm",
        "64-true, clip value",
        "bf16-true, own clipping",
        "lbfgs",
        "none, accumulate",
        "rnn projection",
        pytest.param("compiled in place", marks=takes_stand_ins),  # older compilers know no dataclass
        "by step",
        "16-mixed, clip norm",
        "16-mixed, fused",
        "16-mixed, accumulate",
    ],
)
def test_the_twin_gets_the_same(setting: str, tmp_path: Path) -> None:
    make, settings, others = SETTINGS[setting]

    def run(*callbacks: L.Callback) -> AfterBatch:
        options, probe = dict(settings), AfterBatch(*(c for c in callbacks if isinstance(c, FeedForwardShadowCallback)))
        if options.pop("half", False):
            options["plugins"] = [half(init_scale=2.0, growth_interval=4)]
        run = fit(make(), tmp_path, *callbacks, *others(), probe, **options)
        assert not any("penalty" in name and "shadow" in name for name in run.callback_metrics)
        return probe

    plain, alone = run(), run(TruncationPenaltyCallback(1, 3.0))
    shadow = FeedForwardShadowCallback(WHOLE)
    beside = run(shadow, TruncationPenaltyCallback(1, 3.0))
    assert not all(map(equal, plain.model, alone.model))
    assert all(map(equal, alone.model, beside.model))
    for ours, (twin,) in zip(beside.model, beside.twins, strict=True):
        assert equal(ours, twin)
    # A twin made beside a projection carries hooks of it that do nothing.
    assert others() or not any(m._forward_hooks or m._forward_pre_hooks for m in shadow.twin.modules())


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("shadowed", [False, True])
def test_resumed_equals_uninterrupted(accumulated: int, shadowed: bool, tmp_path: Path) -> None:
    """Bit for bit, from the middle of an epoch."""
    if accumulated > 1 and not resumes_inside_an_epoch:
        pytest.skip("needs Lightning 2.6")

    def run(ckpt_path: Any = None) -> tuple[Any, ModelCheckpoint]:
        save = ModelCheckpoint(tmp_path / str(ckpt_path is None), "{step}", save_top_k=-1, every_n_train_steps=2)
        shadows = [FeedForwardShadowCallback(WHOLE)] if shadowed else []
        seed()
        model = Recurrent("lstm", num_layers=2, optimizer=adam, growth=0.0)
        run = trainer(
            tmp_path, TruncationPenaltyCallback(1), *shadows, save, max_epochs=2, accumulate_grad_batches=accumulated
        )
        run.fit(model, Loader(8), sequences(1), ckpt_path=ckpt_path)
        return state(model) | {f"twin.{k}": v for s in shadows for k, v in state(s.twin).items()}, save

    whole, _ = run()
    resumed, _ = run(tmp_path / "True" / "step=2.ckpt")
    assert equal(whole, resumed)


def test_beside_a_projection(tmp_path: Path) -> None:
    model = Recurrent("lstm", growth=0.3)
    steps = AfterStep(lambda module: certify(module).rate)
    run = fit(model, tmp_path, TruncationPenaltyCallback(1), projection(), steps)
    assert max(steps.results) <= 0.9
    assert {"penalty/core/loss", "stability/rate"} <= run.callback_metrics.keys()


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        packed = pack_padded_sequence(x, [3, 2][: len(x)], batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.inner(packed)[0], batch_first=True, total_length=x.size(1))[0], None


class Stepping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTMCell(FEATURES, UNITS)

    def forward(self, x: Tensor) -> Any:
        outputs, state = [], None
        for step in x.unbind(1):
            state = self.inner(step, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1), state


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.RNN(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("core", [Packing, Stepping, Recomputing])
def test_other_ways_to_call_a_layer(core: Any, tmp_path: Path) -> None:
    def make() -> Recurrent:
        torch.manual_seed(0)
        return Recurrent(core(), growth=0.0)

    _, without, _ = first_gradients(tmp_path, make=make)
    _, found, run = first_gradients(tmp_path, TruncationPenaltyCallback(1, 5.0), make=make)
    assert run.callback_metrics["penalty/core.inner/loss"] > 0
    for name, gradient in without.items():
        assert torch.equal(gradient, found[name]) == ("head" in name)


def test_only_what_the_optimizer_trains(tmp_path: Path) -> None:
    class Frozen(Recurrent):
        def configure_optimizers(self) -> Any:
            self.core.weight_hh_l0.requires_grad_(False)
            held = [p for name, p in self.named_parameters() if name != "core.bias_hh_l0"]
            return torch.optim.SGD(held, lr=0.1)

    def make() -> Frozen:
        return Frozen("rnn", growth=0.0)

    _, without, _ = first_gradients(tmp_path, make=make)
    _, found, _ = first_gradients(tmp_path, TruncationPenaltyCallback(1, 5.0), make=make)
    changed = {name for name in found if not torch.equal(found[name], without[name])}
    assert changed == {"core.weight_ih_l0", "core.bias_ih_l0"}
    assert "core.weight_hh_l0" not in found


def test_several_callbacks_for_several_modules(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.GRU(n, UNITS, batch_first=True) for n in (FEATURES, UNITS))

        def forward(self, x: Tensor) -> Any:
            return self.second(self.first(x)[0])

    ours = [TruncationPenaltyCallback(1, modules="core.first"), TruncationPenaltyCallback(2, modules="core.second")]
    metrics = fit(Recurrent(Two()), tmp_path, *ours).callback_metrics
    assert {name for name in metrics if name.startswith("penalty")} == {
        "penalty/core.first/loss",
        "penalty/core.second/loss",
    }


def test_logs_where_lightning_does(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "log")
    fit(Recurrent("gru"), tmp_path, TruncationPenaltyCallback(1), logger=logger, log_every_n_steps=3)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("penalty/core/loss")
    assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 7  # of 21 steps


@pytest.mark.parametrize(
    ("window", "bidirectional", "does"),
    [(TIME - 2, False, True), (TIME - 1, False, False), (1, True, True), (2, True, False)],
)
def test_calls_without_a_place_to_restart(window: int, bidirectional: bool, does: bool, tmp_path: Path) -> None:
    def make() -> Recurrent:
        return Recurrent("lstm", bidirectional=bidirectional)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, found, run = first_gradients(tmp_path, TruncationPenaltyCallback(window), make=make, max_steps=2)
    _, without, _ = first_gradients(tmp_path, make=make)
    assert equal(found, without) == (not does)
    messages = [str(w.message) for w in caught if "did nothing for ['core']" in str(w.message)]
    assert len(messages) == (not does)
    assert ("penalty/core/loss" in run.callback_metrics) == does


def test_what_does_not_fit(tmp_path: Path) -> None:
    def fails(message: str, model: L.LightningModule, *callbacks: L.Callback, **kwargs: Any) -> None:
        with pytest.raises(MisconfigurationException, match=message):
            trainer(tmp_path, *callbacks, **kwargs).fit(model, *data())

    fails("needs automatic optimization.*Got `automatic_optimization=False`", Manual(), TruncationPenaltyCallback(1))
    fails("No recurrence found", Recurrent(Linear()), TruncationPenaltyCallback(1))
    fails("matches no recurrent module. Got 'coer'", Recurrent(), TruncationPenaltyCallback(1, modules="coer"))
    strategy = {"strategy": "fsdp", "accelerator": "cpu"}
    if torch.cuda.is_available():
        fails("TruncationPenaltyCallback needs whole", Recurrent(), TruncationPenaltyCallback(1), **strategy)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, UNITS)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x), None


def test_an_exception_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    class Failing(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise RuntimeError("on purpose")

    model = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, tmp_path, TruncationPenaltyCallback(1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_shortens_the_window(tmp_path: Path) -> None:
    """A GRU that has to recall its first input from some steps before, and may not."""

    class Recall(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.core, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return (self.head(self.core(batch)[0])[:, 8:] - batch[:, :-8]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.02)

    batches = torch.randn(60, 16, 20, 1, generator=torch.Generator().manual_seed(0))

    def error(*callbacks: L.Callback) -> float:
        model = Recall()
        trainer(tmp_path, *callbacks).fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
        profile = truncation_profile(model.core, batches[0], 4)
        return profile.mean_error[-1].item() / profile.output_norm

    assert error(TruncationPenaltyCallback(4, 10.0)) < 0.5 * error()
