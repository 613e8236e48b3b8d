"""Models and data for the tests of the shadow callback, in one process and in two."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from tests.helpers import Recurrent, Sequences, sequences, trainer

WHOLE = 1000  # a window no sequence is longer than: the twin is the model


class Noisy(Recurrent):
    """Draws from every global generator, in its dropout, its hooks and its loss."""

    def __init__(self, core: Any = "lstm", *, growth: float = 0.1, **kwargs: Any) -> None:
        if isinstance(core, str):
            kwargs = {"num_layers": 2, "dropout": 0.2, **kwargs}
        super().__init__(core, growth=growth, **kwargs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.scale = 1 + 0.1 * random.random()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = self.loss(batch) * self.scale * (1 + 0.1 * np.random.rand())  # noqa: NPY002
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=2)
        return loss


class Loader:
    """Goes on where a checkpoint was made."""

    def __init__(self, batches: int, **kwargs: Any) -> None:
        self.data = Sequences(2 * batches, **kwargs).data.split(2)
        self.given = self.start = 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        self.given, self.start = self.start, 0
        for batch in self.data[self.given :]:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"]


class AfterBatch(L.Callback):
    """Copies the weights of the model and of the twins after every batch."""

    def __init__(self, *shadows: FeedForwardShadowCallback) -> None:
        self.shadows: tuple[FeedForwardShadowCallback, ...] = shadows
        self.model: list[dict[str, Tensor]] = []
        self.twins: list[list[dict[str, Tensor]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.model.append(state(pl_module))
        self.twins.append([state(shadow.twin) for shadow in self.shadows])


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: value.detach().clone() for name, value in tensors}


def seed() -> None:
    L.seed_everything(1, verbose=False)


RATE = 0.9


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def half(**kwargs: Any) -> MixedPrecision:
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", **kwargs))


class BySteps(Noisy):
    """Its loss and learning rate follow ``global_step``, which its hooks write down."""

    def note(self, hook: str) -> int:
        assert self.global_step == self.trainer.global_step
        self.notes = [*getattr(self, "notes", []), (hook, self.global_step)]
        return self.global_step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx) * (1 + self.note("step"))

    def configure_gradient_clipping(self, optimizer: Any, **_: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1 / (1 + self.note("clip")))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + self.note("before"))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.param_groups[0]["weight_decay"] = 0.01 * self.note("after")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.note("start")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("end")


class Scheduled(Noisy):
    """Its schedulers, made from an optimizer and the trainer, in one of the forms Lightning takes."""

    def __init__(self, make: Callable[[Any, Any], Any], **kwargs: Any) -> None:
        super().__init__(optimizer=adam, **kwargs)
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(adam(self.parameters()), self.trainer)


def one_cycle(optimizer: Any, run: Any) -> Any:
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=run.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def every_epoch(optimizer: Any, run: Any) -> Any:
    return [optimizer], [lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def two_schedulers(optimizer: Any, run: Any) -> Any:
    step = {"scheduler": lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}
    return [optimizer], [step, lr_scheduler.CosineAnnealingLR(optimizer, 3)]


def plateau(monitor: str) -> Callable[[Any, Any], Any]:
    def make(optimizer: Any, run: Any) -> Any:
        # No value is good enough: the rate falls at every epoch after the first.
        scheduler = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e6, threshold_mode="abs"
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": monitor}

    return make


def projection(**kwargs: Any) -> StabilityProjectionCallback:
    return StabilityProjectionCallback(**{"rate": RATE, **kwargs})


def nothing() -> list[L.Callback]:
    return []


def data() -> tuple[Any, Any]:
    return sequences(7), sequences(3, seed=1, scale=2.0)


def fit(model: L.LightningModule, path: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """Three epochs of seven batches, validated in the middle of each."""
    seed()
    defaults = {"max_epochs": 3, "val_check_interval": 4, "log_every_n_steps": 2}
    run = trainer(path, *callbacks, **(defaults | kwargs))
    run.fit(model, *data())
    return run


@contextmanager
def warned(about: str) -> Iterator[list[str]]:
    """Every warning, also those that are repeated."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages.extend(str(warning.message) for warning in caught if about in str(warning.message))


def plain(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in metrics.items() if not name.startswith("shadow")}


def shadowed(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items() if name.startswith("shadow")}
