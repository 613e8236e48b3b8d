"""A projection after every real optimizer step, and what it leaves alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.stability import Box
from tests.callbacks.projections import RATE, Manual, Nest, adam, momentum, projection, rate
from tests.helpers import (
    CELLS,
    FEATURES,
    UNITS,
    AfterStep,
    Recurrent,
    equal,
    fused_adam,
    on_gpu,
    sequences,
    sgd,
    trainer,
    weights,
)


class Sometimes(Recurrent):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("model", "settings", "batches", "steps"),
    [
        (Recurrent, {}, 3, 3),
        (Recurrent, {"gradient_clip_val": 0.1, "precision": "bf16-mixed"}, 3, 3),
        (Recurrent, {"precision": "bf16-true"}, 3, 3),
        (Recurrent, {"precision": "64-true"}, 3, 3),
        (Recurrent, {"max_steps": 2}, 3, 2),
        (Recurrent, {"accumulate_grad_batches": 3, "max_epochs": 2}, 7, 6),
        (lambda: Recurrent(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4)), {}, 3, 3),
        (lambda: Recurrent(optimizer=momentum), {}, 3, 3),
        (lambda: Recurrent(optimizer=lambda p: fused_adam(p, 0.3)), {}, 3, 3),
        (Sometimes, {}, 3, 3),
        (Manual, {}, 3, 4),
        (lambda: Manual(raw=True), {}, 3, 4),
        (Manual, {"precision": "bf16-mixed"}, 3, 4),
    ],
)
def test_projects_after_every_optimizer_step(
    model: Callable[[], Recurrent], settings: dict[str, Any], batches: int, steps: int, tmp_path: Path
) -> None:
    ours, probe = projection(), AfterStep(rate)
    trainer(tmp_path, ours, probe, **settings).fit(model(), sequences(batches))
    assert ours.num_projections == len(probe.results) == steps
    assert max(probe.results) <= RATE
    assert min(probe.results) > 0.97 * RATE  # pulled out by each step, moved back no further than needed


def test_without_the_callback_weights_leave_the_set(tmp_path: Path) -> None:
    probe = AfterStep(rate)
    trainer(tmp_path, probe).fit(Recurrent(), sequences())
    assert probe.results == sorted(probe.results)
    assert probe.results[-1] > 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_by_the_gradient_scaler(fused: bool, tmp_path: Path) -> None:
    class Overflow(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)

    ours, probe = projection(), AfterStep(rate)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    model = Overflow(optimizer=lambda p: fused_adam(p, 0.3) if fused else torch.optim.Adam(p, lr=0.3))
    run = trainer(tmp_path, ours, probe, plugins=[plugin])
    run.fit(model, sequences())
    assert run.global_step == 3
    assert ours.num_projections == len(probe.results) == (3 if fused else 2)  # fused ones skip inside the step
    assert max(probe.results) <= RATE


@on_gpu
@pytest.mark.parametrize("cell", CELLS)
def test_mixed_precision_on_a_gpu(cell: str, tmp_path: Path) -> None:
    class Overflow(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)

    ours, probe = projection(), AfterStep(rate)
    run = trainer(tmp_path, ours, probe, accelerator="gpu", precision="16-mixed")
    run.fit(Overflow(cell, num_layers=2, bidirectional=True), sequences())
    assert ours.num_projections == len(probe.results) == 2
    assert max(probe.results) <= RATE


@pytest.mark.parametrize("cell", CELLS)
def test_weights_rounded_by_autocast_are_stable_too(cell: str, tmp_path: Path) -> None:
    def rounded_rate(model: L.LightningModule) -> float:
        return rate(copy.deepcopy(model).bfloat16().double())

    probe = AfterStep(rounded_rate)
    trainer(tmp_path, projection(), probe, precision="bf16-mixed").fit(Recurrent(cell), sequences())
    assert max(probe.results) <= RATE


@pytest.mark.parametrize(("every", "expected"), [(1, 7), (2, 3), (3, 2), (1000, 0)])
def test_every_n_steps(every: int, expected: int, tmp_path: Path) -> None:
    ours, probe = projection(every_n_steps=every), AfterStep(rate)
    model = Recurrent()
    trainer(tmp_path, ours, probe, accumulate_grad_batches=3, max_epochs=1).fit(model, sequences(21))
    assert ours.num_projections == expected
    assert [r <= RATE for r in probe.results] == [step % every == 0 for step in range(1, 8)]
    assert rate(model) == ours.report.rate <= RATE


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_logging_changes_nothing(every: int, tmp_path: Path) -> None:
    def fit(interval: int) -> dict[str, Tensor]:
        model = Recurrent("lstm")
        trainer(tmp_path, projection(every_n_steps=every), log_every_n_steps=interval).fit(model, sequences(7))
        return weights(model)

    assert equal(fit(0), fit(2))


@pytest.mark.parametrize(
    ("cell", "optimizer"),
    [("rnn", sgd), ("rnn", adam), ("gru", momentum), ("gru", sgd), ("lstm", adam), ("lstm", momentum), ("ugrnn", adam)],
)
def test_stable_after_every_step(cell: str, optimizer: Any, tmp_path: Path) -> None:
    model = Recurrent(Nest(cell), optimizer=optimizer)
    ours, probe, start = projection(), AfterStep(rate), weights(model)
    trainer(tmp_path, ours, probe).fit(model, sequences(4))
    assert len(probe.results) == 4
    assert max(probe.results) <= RATE
    names = [certificate.name for certificate in ours.report.layers]
    assert names == [
        "core.encoder.core.l0",
        *(f"core.decoder.l{layer}{side}" for layer in (0, 1) for side in ("", "_reverse")),
    ]
    assert ours.report.layers[0].guarantee == ("guaranteed" if cell == "rnn" else "derived")
    assert all(not torch.equal(start[name], value) for name, value in weights(model).items())


@pytest.mark.parametrize(
    ("cell", "patterns"),
    [
        ("rnn", "core.encoder.*"),
        ("gru", ["core.dec*"]),
        ("lstm", ["*.core", "core.decoder"]),
        ("ugrnn", "core.encoder.*"),
        ("intersection", ["core.dec*"]),
    ],
)
def test_patterns_choose_and_leave_the_others_alone(cell: str, patterns: Any, tmp_path: Path) -> None:
    """What one projection changes: weights before it and after it, at every step."""
    before, ours, after = AfterStep(weights), projection(modules=patterns), AfterStep(weights)
    trainer(tmp_path, before, ours, after).fit(Recurrent(Nest(cell)), sequences(4))
    changed = {
        name
        for old, new in zip(before.results, after.results, strict=True)
        for name in old
        if not torch.equal(old[name], new[name])
    }
    chosen = {certificate.name.rpartition(".")[0] for certificate in ours.report.layers}
    assert {name.rpartition(".")[0] for name in changed} == chosen
    assert chosen <= {"core.encoder.core", "core.decoder"}
    assert len(chosen) == (2 if len(patterns) == 2 else 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_range_of_training_inputs_where_nothing_else_is_known(cell: str, tmp_path: Path) -> None:
    """Stable for all batches seen, from the first forward on; validation inputs are no part of it."""
    seen: list[Tensor] = []
    rates: list[float] = []

    class Watched(Recurrent):
        def loss(self, batch: Tensor) -> Tensor:
            loss = super().loss(batch)
            if self.trainer.training:
                seen.append(batch[:, :-1])
                rates.append(current_rate(self))
            return loss

    def current_rate(model: nn.Module) -> float:
        data = torch.cat(seen)
        return rate(model, input_bound=Box(data.amin((0, 1)), data.amax((0, 1))))

    def fit(**kwargs: Any) -> tuple[StabilityProjectionCallback, Recurrent]:
        seen.clear(), rates.clear()
        ours, probe = projection(), AfterStep(current_rate)
        model = Watched(cell, bounded=False)
        trainer(tmp_path, ours, probe, max_epochs=2, **kwargs).fit(model, sequences(), sequences(scale=50.0, seed=1))
        assert max(probe.results) <= RATE
        return ours, model

    ours, model = fit()
    # The first forward already used projected weights, later ones may meet wider inputs than the weights were made for.
    assert rates[0] <= RATE
    layer = ours.report.layers[0]
    assert layer.guarantee == "data"
    assert layer.rate == current_rate(model)
    assert equal(weights(model), weights(fit(num_sanity_val_steps=0, limit_val_batches=0)[1]))


def test_first_inputs_of_one_module_leave_modules_in_use_alone(tmp_path: Path) -> None:
    """The encoder sees wider inputs at its second call; projecting it then would break its gradient."""

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.LSTM(FEATURES, UNITS, batch_first=True)
            self.other = nn.LSTM(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.encoder(x)[0] + self.encoder(9 * x)[0] + self.other(x)[0], None

    probe = AfterStep(lambda model: model.trainer.callbacks[0].report)
    ours = projection()
    trainer(tmp_path, ours, probe).fit(Recurrent(Siamese(), bounded=False), sequences())
    assert ours.num_projections == 3
    assert ours.report.rate <= RATE


def test_recurrences_of_several_kinds_and_shared_ones(tmp_path: Path) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.RNN(FEATURES, FEATURES, batch_first=True)
            self.again = self.first
            self.cell = nn.LSTMCell(FEATURES, FEATURES)
            self.last = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            x = self.again(self.first(x)[0])[0]
            states = [(x[:, 0], x[:, 0])]
            for inputs in x.unbind(1):
                states.append(self.cell(inputs, states[-1]))
            return self.last(torch.stack([hidden for hidden, _ in states], 1)[:, 1:])

    probe = AfterStep(lambda model: rate(model, input_bound=1.0))
    ours = projection(input_bound=1.0)
    model = Recurrent(Several(), growth=3.0)
    trainer(tmp_path, ours, probe).fit(model, sequences(5))
    assert [layer.name for layer in ours.report.layers] == ["core.first.l0", "core.cell", "core.last.l0"]
    assert all(0.9 * RATE < layer.rate <= RATE for layer in ours.report.layers)
    assert max(probe.results) <= RATE
