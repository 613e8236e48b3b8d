"""The model's run beside twins to the bit, and the twin that sees everything, under every option of a Trainer."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_stable.callbacks import FeedForwardShadowCallback
from tests.callbacks.shadows import (
    WHOLE,
    AfterBatch,
    BySteps,
    Noisy,
    Scheduled,
    adam,
    fit,
    half,
    nothing,
    one_cycle,
    plain,
    plateau,
    projection,
    shadowed,
    state,
    two_schedulers,
)
from tests.helpers import equal, fused_adam, on_gpu, weights


def fused(parameters: Any) -> torch.optim.Optimizer:
    return fused_adam(parameters, 0.05)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)


class Sometimes(Noisy):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return None if batch_idx in (1, 4) else super().training_step(batch, batch_idx)


class Overflow(Noisy):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 2 else 1.0)


class OwnClipping(Noisy):
    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        assert gradient_clip_algorithm == "value"
        nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val / 2)


class Compiled(Noisy):
    """Two of its modules, and itself, compiled by ``module.compile()``."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.core, self.head, self):
            module.compile(backend="eager")


def every_second_step(optimizer: Any, run: Any) -> Any:
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]


def chained(optimizer: Any, run: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.7)]
    return {"optimizer": optimizer, "lr_scheduler": lr_scheduler.ChainedScheduler(parts)}


Setting = tuple[Callable[[], L.LightningModule], dict[str, Any], Callable[[], list[L.Callback]]]


# Each setting combines what does not interact, so that every option of a Trainer is in one of them.
SETTINGS: dict[str, Setting] = {
    "dropout": (Noisy, {}, nothing),
    "gru, both directions": (lambda: Noisy("gru", bidirectional=True, optimizer=adam), {}, nothing),
    "bf16-mixed, clip norm": (
        lambda: Noisy(optimizer=adam),
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
        nothing,
    ),
    "64-true, clip value": (
        Noisy,
        {"precision": "64-true", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        nothing,
    ),
    "bf16-true, own clipping": (
        OwnClipping,
        {"precision": "bf16-true", "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        nothing,
    ),
    "lbfgs": (lambda: Noisy(optimizer=lbfgs, growth=0.0), {}, nothing),
    "none": (lambda: Sometimes(optimizer=adam), {}, nothing),
    "none, accumulate": (lambda: Sometimes(optimizer=adam), {"accumulate_grad_batches": 3}, nothing),
    "one cycle": (lambda: Scheduled(one_cycle), {}, nothing),
    "frequency": (lambda: Scheduled(every_second_step), {}, nothing),
    "two, accumulate": (lambda: Scheduled(two_schedulers), {"accumulate_grad_batches": 2}, nothing),
    "chained": (lambda: Scheduled(chained), {}, nothing),
    "plateau": (lambda: Scheduled(plateau("val_loss")), {}, nothing),
    "plateau train": (lambda: Scheduled(plateau("train_loss_epoch")), {}, nothing),
    "rnn projection": (lambda: Noisy("rnn", growth=1.0), {}, lambda: [projection(every_n_steps=3)]),
    "recorded": (lambda: Noisy(growth=1.0, bounded=False), {"precision": "bf16-mixed"}, lambda: [projection()]),
    "rarely": (lambda: Noisy(growth=1.0, bounded=False), {}, lambda: [projection(every_n_steps=3)]),
    "compiled in place": (Compiled, {"accumulate_grad_batches": 3}, nothing),
    "by step": (lambda: BySteps(optimizer=adam), {"accumulate_grad_batches": 2}, nothing),
    "16-mixed, clip norm": (lambda: Overflow("gru", optimizer=adam), {"half": True, "gradient_clip_val": 0.1}, nothing),
    "16-mixed, fused": (lambda: Overflow("gru", optimizer=fused), {"half": True}, lambda: [projection()]),
    "16-mixed, accumulate": (
        lambda: Overflow("gru", optimizer=adam),
        {"half": True, "accumulate_grad_batches": 3},
        nothing,
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_does_not_notice_and_a_twin_that_sees_everything_is_the_model(setting: str, tmp_path: Path) -> None:
    """Weights after every batch, what is logged, and all random generators."""
    make, settings, others = SETTINGS[setting]

    def run(*shadows: FeedForwardShadowCallback) -> tuple[AfterBatch, dict[str, Tensor], tuple[Any, ...], Any]:
        model, probe, options = make(), AfterBatch(*shadows), dict(settings)
        if options.pop("half", False):
            options["plugins"] = [half(init_scale=2.0, growth_interval=4)]
        metrics = fit(model, tmp_path, *shadows[:1], *others(), *shadows[1:], probe, **options).callback_metrics
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return probe, metrics, (torch.get_rng_state().tolist(), random.getstate(), numpy), model

    start = state(make())
    alone, alone_metrics, alone_generators, _ = run()
    # To make another module draws numbers, too; with a short window it is something else with the same masks.
    whole, short = FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1, twin=make)
    beside, metrics, generators, model = run(whole, short)

    assert len(alone.model) == 21
    assert all(map(equal, alone.model, beside.model))
    assert equal(alone_metrics, plain(metrics))
    assert alone_generators == generators
    assert "log" not in vars(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    for ours, (twin, other) in zip(beside.model, beside.twins, strict=True):
        assert equal(ours, twin)
        assert not equal(ours, other) or equal(ours, start)
    assert equal(state(model), state(whole.twin))
    assert not equal(start, state(model))
    exact = {name: value for name, value in shadowed(metrics).items() if f"k={WHOLE}/" in name}
    assert {name for name, value in exact.items() if value != 0} <= {
        f"shadow/k={WHOLE}/{name}" for name in ("loss", "val_loss", "step_time_ratio")
    }
    assert f"shadow/k={WHOLE}/val_loss_gap" in exact


def test_a_shadow_before_and_after_other_callbacks(tmp_path: Path) -> None:
    results = []
    for first in (True, False):
        ours, other = FeedForwardShadowCallback(1), projection(every_n_steps=3)
        model = Noisy(growth=1.0, bounded=False)
        fit(model, tmp_path, *((ours, other) if first else (other, ours)))
        results.append((weights(model), weights(ours.twin)))
    assert all(map(equal, *results))


@on_gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_on_a_gpu(precision: str, tmp_path: Path) -> None:
    """Dropout masks come from the device's generator; the ratio from its events."""

    def run(*callbacks: L.Callback) -> tuple[dict[str, Tensor], dict[str, float]]:
        model = Noisy(optimizer=adam)
        fitted = fit(model, tmp_path, *callbacks, projection(), accelerator="gpu", precision=precision)
        return weights(model), shadowed(fitted.callback_metrics)

    whole, short = FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    (alone, _), (beside, metrics) = run(), run(whole, short)
    assert equal(alone, beside)
    assert equal(beside, weights(whole.twin))
    assert not equal(beside, weights(short.twin))
    assert metrics["shadow/k=1/step_time_ratio"] > 1
