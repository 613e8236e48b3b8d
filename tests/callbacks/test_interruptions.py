"""Signals in the middle of a step wait for its end, and whoever looks at a run does not change it."""

import copy
import os
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor

from lightning_stable import certify
from lightning_stable.callbacks import FeedForwardShadowCallback
from lightning_stable.stability import Box
from lightning_stable.truncation import Windowed
from tests.callbacks.projections import rate
from tests.callbacks.shadows import WHOLE, Loader, Noisy, fit, projection, seed, state
from tests.helpers import Recurrent, equal, sequences, trainer, weights

posix = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs POSIX signals")


class Signalled(Noisy):
    """Gets a signal in the middle of a step, of its own or of its twin's."""

    def __init__(self, where: str, number: int = signal.SIGTERM) -> None:
        super().__init__(growth=0.1)
        self.where, self.number = where, number

    def at(self, place: str) -> None:
        who = "twin" if isinstance(self.core, Windowed) else "model"
        if f"{who} {place}" == self.where and self.trainer.global_step == 3:
            os.kill(os.getpid(), self.number)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        self.at("training_step")
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.at("optimizer_step")


@posix
@pytest.mark.parametrize("where", ["model training_step", "twin training_step", "twin optimizer_step"])
def test_a_handler_sees_model_and_twin_at_one_step(where: str, tmp_path: Path) -> None:
    """And the generators are the model's: what a handler saves, such as Lightning's for SLURM, resumes exactly."""
    seen: list[Any] = []
    model, ours = Signalled(where, signal.SIGUSR1), FeedForwardShadowCallback(WHOLE)
    followed: list[Any] = []

    class Generator(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            followed.append((torch.get_rng_state(), random.getstate()))

    def saved(shadow: FeedForwardShadowCallback) -> dict[str, Tensor]:
        return copy.deepcopy(shadow.state_dict()["checkpoint"]["state_dict"])

    def handle(*_: Any) -> None:
        progress = run[0].fit_loop.epoch_loop.batch_progress.current
        seen.append((state(model), state(ours.twin), progress.processed - progress.completed, saved(ours)))
        seen.append((torch.get_rng_state(), random.getstate()))

    class Run(L.Callback):
        def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
            run.append(trainer)

    run: list[L.Trainer] = []
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        fit(model, tmp_path, Run(), Generator(), projection(), ours)
        assert signal.getsignal(signal.SIGUSR1) is handle
    finally:
        signal.signal(signal.SIGUSR1, before)
    (first, twin, finished, in_checkpoint), generators = seen
    assert finished == 1  # at the end of the batch, where Lightning's own callback saves
    assert equal(first, twin)
    assert equal(in_checkpoint, twin)
    assert any(torch.equal(generators[0], other[0]) and generators[1] == other[1] for other in followed)


@posix
def test_a_signal_waits_for_accumulated_gradients(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    run: list[L.Trainer] = []

    class Sends(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            run[:] = [trainer]
            if batch_idx == 3:
                os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(
        signal.SIGUSR1, lambda *_: steps.append((run[0].fit_loop.epoch_loop.batch_idx, run[0].global_step))
    )
    try:
        trainer(tmp_path, Sends(), projection(), accumulate_grad_batches=3).fit(Recurrent(), sequences(7))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert steps == [(5, 2)]


def test_a_twin_that_was_cut_off_is_not_resumed(tmp_path: Path) -> None:
    class Fails(Noisy):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            if batch_idx == 2 and isinstance(self.core, Windowed):
                raise RuntimeError("as planned")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="as planned"):
        fit(Fails(), tmp_path, FeedForwardShadowCallback(2), OnExceptionCheckpoint(tmp_path, "cut"))
    with pytest.raises(MisconfigurationException, match=r"a step of its twin was under way.* Got .* in batch 2\."):
        trainer(tmp_path, FeedForwardShadowCallback(2), max_epochs=3).fit(
            Noisy(), sequences(7), ckpt_path=tmp_path / "cut.ckpt"
        )


class Looks(L.Callback):
    """Saves in the middle of steps, between the forward and the backward pass, and reads the weights there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, 0

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        pl_module.state_dict()
        trainer.save_checkpoint(self.folder / f"{self.saved}.ckpt", weights_only=bool(self.saved % 2))
        self.saved += 1

    on_train_batch_end = on_train_epoch_end = lambda self, run, model, *_: self.on_before_backward(run, model, None)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize(("every", "accumulated"), [(1, 3), (3, 1), (2, 2)])
def test_looking_changes_nothing(cell: str, every: int, accumulated: int, tmp_path: Path) -> None:
    """Nor do validations: the weights, the twin and the certificates are those of a run without."""

    def train(*looks: L.Callback, **settings: Any) -> tuple[Any, ...]:
        seed()
        model = Noisy(cell, bounded=False, growth=0.3)
        ours, shadow = projection(every_n_steps=every), FeedForwardShadowCallback(2)
        # Torch's own loader draws a seed for every validation.
        data = (sequences(7, scale=1.5), *([Loader(2, scale=9.0)] if looks else []))
        run = trainer(
            tmp_path,
            *looks,
            ours,
            shadow,
            max_epochs=2,
            accumulate_grad_batches=accumulated,
            num_sanity_val_steps=0,
            **settings,
        )
        run.fit(model, *data)
        return weights(model), state(shadow.twin), ours.state_dict()

    looks = (Looks(tmp_path), ModelCheckpoint(tmp_path / "own", every_n_train_steps=1, save_top_k=-1))
    plain, looked = train(), train(*looks, val_check_interval=1)
    assert equal(plain[0], looked[0])
    assert equal(plain[1], looked[1])
    assert str(plain[2]["input_ranges"]) == str(looked[2]["input_ranges"])
    for key in ("steps", "num_projections", "projector", "left_premises"):
        assert str(plain[2][key]) == str(looked[2][key])


def test_checkpoints_are_stable_for_all_inputs_seen(tmp_path: Path) -> None:
    """In the middle of an accumulation, too, when the weights are still those for a smaller range."""

    class Wider(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index == 4:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                live.append(rate(pl_module, input_bound=30.0))

    live: list[float] = []
    data = sequences(6)
    data.dataset.data[8:10] = 30.0  # the fifth batch
    model = Recurrent("lstm", bounded=False)
    trainer(tmp_path, Wider(), projection(), accumulate_grad_batches=3).fit(model, data)
    content = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    saved = content["callbacks"]["StabilityProjectionCallback(modules=None)"]
    model.load_state_dict(content["state_dict"])
    low, high = saved["input_ranges"]["core"]
    assert high.max() == 30.0
    report = certify(model, input_bound=Box(-low, high))
    assert report.rate <= 0.9
    assert saved["report"]["rate"] == pytest.approx(report.rate)
    assert saved["unprojected"]
    assert live[0] > 0.9


def test_a_checkpoint_made_in_a_validation_holds_the_trained_weights(tmp_path: Path) -> None:
    """A callback before ours saves while projected weights are in place."""

    class Saves(L.Callback):
        def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / "validation.ckpt")

        on_validation_end = on_validation_batch_start

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            self.trained = weights(pl_module)

    saves = Saves()
    trainer(tmp_path, saves, projection(every_n_steps=1000)).fit(Recurrent(), sequences(), sequences())
    content = torch.load(tmp_path / "validation.ckpt", weights_only=True)
    saved = content["callbacks"]["StabilityProjectionCallback(modules=None)"]["unprojected"]
    assert torch.equal(saved["core.l0/weight_hh"], saves.trained["core.weight_hh_l0"])
    assert not torch.equal(saved["core.l0/weight_hh"], content["state_dict"]["core.weight_hh_l0"])


def test_a_checkpoint_forgets_no_broken_premise(tmp_path: Path) -> None:
    """What was found for the certificate of a checkpoint is found again for the next one."""

    class Replaces(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            if batch_idx == 0:  # something else in place of a parameter, for one forward
                stored = self.core.weight_hh_l0
                self.core.weight_hh_l0 = torch.nn.Parameter(stored.detach().clone())
                self(batch)
                self.core.weight_hh_l0 = stored
            return super().training_step(batch, batch_idx)

    class Saves(L.Callback):
        def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    for looks in ([], [Saves()]):
        ours = projection()
        trainer(tmp_path, *looks, ours).fit(Replaces(), sequences())
        assert ours.report.guarantee == "none"
