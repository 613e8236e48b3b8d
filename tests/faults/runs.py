"""Small runs in processes of their own, which a fault ends or interrupts, and what is left of them."""

import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor, nn

from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from lightning_stable.truncation import Windowed
from tests.callbacks.shadows import Loader
from tests.helpers import Recurrent, sequences, trainer

BATCHES, EPOCHS, ACCUMULATED = 6, 2, 2
# What a callback of the trainer is called for while a run trains.
HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_save_checkpoint",
    "on_train_epoch_end",
    "on_train_end",
)
# Of the model and of the twin, inside their steps; and while a checkpoint is written.
INSIDE = ("training_step", "validation_step", "optimizer_step", "lr_scheduler_step")
PLACES = (*HOOKS, *INSIDE, *(f"twin {name}" for name in INSIDE), "transfer_batch_to_device", "checkpoint write")
SIGNALS = ("SIGUSR1", "SIGTERM", "SIGINT", "SIGKILL")
FULL = "full disk"
# What a validation leaves behind, which a run resumed from the last batch of its last epoch misses.
VALIDATED = ("logged in validations", "random states")


@dataclass(frozen=True)
class Fault:
    """A signal that a run sends itself at the n-th visit of a place, from 0 on; or its disk is full from then on."""

    signal: str
    place: str
    visit: int = 0


class Visits:
    """Counts visits, and sends the signal when it is due."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault, self.counts = fault, dict.fromkeys(PLACES, 0)

    def __deepcopy__(self, memo: Any) -> "Visits":
        return self  # the twin counts with its model

    def __call__(self, place: str) -> None:
        count = self.counts[place]
        self.counts[place] += 1
        if self.fault is not None and (self.fault.place, self.fault.visit) == (place, count):
            if self.fault.signal == FULL:  # no file grows beyond a few bytes any more
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            else:
                os.kill(os.getpid(), getattr(signal, self.fault.signal))


class Places(L.Callback):
    """Visits the hooks of a callback."""


def _visiting(name: str) -> Callable[..., None]:
    def hook(self: Any, *_: Any, **__: Any) -> None:
        self.visit(name)

    return hook


for _name in HOOKS:
    setattr(Places, _name, _visiting(_name))


class Generators(L.Callback):
    """Saves the random generators, which Lightning does not."""

    state: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()[1].tolist()}  # noqa: NPY002

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state

    def on_fit_start(self, *_: Any) -> None:
        if self.state is not None:
            torch.set_rng_state(self.state["torch"])

    on_train_start = on_fit_start  # what is set up in between may draw, and a run that is at its end does not start


class Trained(Recurrent):
    """A network with dropout, inputs of which nothing is known, a scheduler, and places to be interrupted at."""

    def __init__(self, core: type[nn.RNNBase], interval: str, visit: Callable[[str], None]) -> None:
        super().__init__(core(3, 5, num_layers=2, dropout=0.3, batch_first=True), bounded=False, growth=0.3)
        self.interval = interval
        self.visit = visit

    def at(self, name: str) -> None:
        self.visit(f"twin {name}" if isinstance(self.core, Windowed) else name)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.at("training_step")
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.at("validation_step")

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        if self.trainer.training:
            self.visit("transfer_batch_to_device")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.at("optimizer_step")

    def lr_scheduler_step(self, *args: Any, **kwargs: Any) -> None:
        super().lr_scheduler_step(*args, **kwargs)
        self.at("lr_scheduler_step")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class _Visited:
    """Visits a place when it is pickled."""

    def __init__(self, visit: Callable[[str], None]) -> None:
        self.visit = visit

    def __reduce__(self) -> Any:
        self.visit("checkpoint write")
        return (int, ())


class Writing(TorchCheckpointIO):
    """Is interrupted in the middle of a write."""

    def __init__(self, visit: Callable[[str], None]) -> None:
        super().__init__()
        self.visit = visit

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint({**checkpoint, "visited": _Visited(self.visit)}, path, storage_options)


def fit(folder: Path, fault: Fault | None = None, ckpt: Path | None = None, **settings: Any) -> dict[str, Any]:
    """Train in this process, and return all that two runs must have in common, and the visits."""
    L.seed_everything(1, verbose=False)
    visit = Visits(fault)
    model = Trained(settings.pop("core", nn.GRU), settings.pop("interval", "step"), visit)
    projection = StabilityProjectionCallback(0.9, every_n_steps=settings.pop("every_n_steps", 2))
    shadow = FeedForwardShadowCallback(2)
    places = Places()
    places.visit = visit
    run = trainer(
        folder,
        places,
        projection,
        shadow,
        Generators(),
        ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False),
        OnExceptionCheckpoint(folder, "exception"),
        plugins=[SLURMEnvironment(auto_requeue=True), Writing(visit)],
        **{"max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATED, "val_check_interval": 3} | settings,
    )
    run.fit(model, Loader(BATCHES), sequences(2, scale=2.0, seed=1), ckpt_path=ckpt, weights_only=False)
    ours, twin = projection.state_dict(), shadow.state_dict()
    logged = twin.pop("values")
    return {
        "weights": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "twin": twin,
        "logged in training": {name: value for name, value in logged.items() if not name.startswith("val_")},
        "logged in validations": {name: value for name, value in logged.items() if name.startswith("val_")},
        "optimizer": run.optimizers[0].state_dict(),
        "ranges": ours["input_ranges"],
        "counts": (run.global_step, run.current_epoch, ours["steps"], ours["num_projections"]),
        "random states": Generators().state_dict(),
        "visits": visit.counts,
    }


def same(first: Any, second: Any) -> bool:
    """Whether two structures are equal, tensors bit for bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The names of what two runs do not have in common."""
    return [name for name in first if name != "visits" and not same(first[name], second[name])]


def forked(
    folder: Path,
    fault: Fault | None = None,
    ckpt: Path | None = None,
    *,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
    limit: float = 120.0,
    **settings: Any,
) -> tuple[int, dict[str, Any] | None]:
    """Train in a fork of this process; return how it ended, negative for a signal, and what it returned if it did.

    Args:
        folder: For its files.
        fault: What it does to itself.
        ckpt: What it goes on from.
        kill_after: Send it a signal this many seconds after its start.
        number: That signal.
        limit: It hangs if it takes longer than this many seconds.
        settings: Of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for each in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(each, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(SLURM_JOB_ID="1", SLURM_NTASKS="1", TMPDIR=str(folder))
            log = os.open(folder / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            import tempfile

            tempfile.tempdir = str(folder)
            result = fit(folder, fault, ckpt, **settings)
            torch.save(result, folder / "result.tmp")
            os.replace(folder / "result.tmp", folder / "result.pt")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    begun, sent = time.monotonic(), False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - begun
        if done:
            break
        if kill_after is not None and not sent and passed > kill_after:
            os.kill(child, number)
            sent = True
        if passed > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"A run hangs. Got {fault} in {folder}.")
        time.sleep(0.01)
    result = folder / "result.pt"
    return os.waitstatus_to_exitcode(status), torch.load(result, weights_only=False) if result.exists() else None


def misses_validation(checkpoint: Path | None) -> bool:
    """Whether it was made between the last batch of a run and the validation after it, which nothing makes up for."""
    if checkpoint is None:
        return False
    loops = torch.load(checkpoint, weights_only=False)["loops"]["fit_loop"]
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    in_batch = batches["current"]["completed"] < batches["current"]["processed"]
    return batches["is_last_batch"] and in_batch and epochs["current"]["started"] == EPOCHS


def left_by(folder: Path) -> Path | None:
    """The checkpoint that a run leaves to go on from: the requeued job's, that of its exception, or its last one."""
    for name in ("hpc_ckpt_1.ckpt", "exception.ckpt"):
        if (folder / name).exists():
            return folder / name
    files = sorted(folder.glob("step=*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return files[-1] if files else None
