"""Runs on two processes, with whole and with sharded parameters: ``python -m tests.callbacks.sharded_runs KIND FOLDER``.

KIND is ``ddp``, or the package whose ModelParallelStrategy is used.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.callbacks import StabilityProjectionCallback, StableModelCheckpoint
from tests.callbacks.two_processes import BATCHES, Lopsided
from tests.helpers import UNITS, AfterStep

RATE, BOUND, WORDS = 0.9, 0.5, 7


class Core(nn.Module):
    """Recurrences with a recorded, a derived and a given input set, and one that needs none; rows do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, UNITS)
        self.derived = nn.GRU(UNITS, UNITS, batch_first=True)
        self.recorded = nn.LSTM(3, UNITS, batch_first=True)
        self.given = nn.GRU(3, UNITS, num_layers=2, batch_first=True)
        self.free = nn.RNN(UNITS, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding((x.abs().sum(-1) * 10).long() % WORDS)
        inputs = self.derived(words)[0] + self.recorded(x)[0] + self.given(x.clamp(-BOUND, BOUND))[0]
        output: Tensor = self.head(self.free(inputs)[0])
        return output


def shard(core: Core, mesh: Any = None) -> None:
    from torch.distributed.fsdp import fully_shard

    for part in core.derived, core.given:
        fully_shard(part, mesh=mesh)
    fully_shard(core, mesh=mesh)


def module_of(package: Any, *, sharded: bool) -> Any:
    """A LightningModule of one of the two packages, whose loss pulls the weights out of every stable set."""

    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.core = Core()

        def configure_model(self) -> None:
            if sharded and not hasattr(self.core, "reshard"):
                shard(self.core, self.device_mesh["data_parallel"])

        def forward(self, x: Tensor) -> Any:
            return self.core(x)

        def loss(self, batch: Tensor) -> Tensor:
            loss: Tensor = (self(batch[:, :-1]) - batch[:, 1:]).square().mean()
            return loss

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.loss(batch)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), sync_dist=True)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.3)

    return Module()


def full_weights(module: Any) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in module.named_parameters()
    }


def data(**kwargs: Any) -> Any:
    return torch.utils.data.DataLoader(Lopsided(2 * 2 * BATCHES, **kwargs), batch_size=2)


def run(kind: str, folder: Path, name: str, *, every_n_steps: int, ckpt_path: Path | None = None, **strategy: Any) -> None:
    package: Any = pl if kind == "ddp" else import_module(kind)
    ours = StabilityProjectionCallback(RATE, input_bound={"core.given": BOUND}, every_n_steps=every_n_steps)
    best = StableModelCheckpoint(dirpath=folder, filename=f"{name}-best")
    middle = package.callbacks.ModelCheckpoint(folder, f"{name}-middle", every_n_train_steps=3, monitor="stability/rate")
    probe = AfterStep(full_weights)
    whole = {"strategy": "ddp"} if kind == "ddp" else {
        "strategy": package.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **strategy)
    }
    trainer = package.Trainer(
        default_root_dir=folder, callbacks=[ours, probe, best, middle], accelerator="cpu", devices=2, max_epochs=1 + (ckpt_path is not None),
        logger=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2, **whole,
    )  # fmt: skip
    module = module_of(package, sharded=kind != "ddp")
    trainer.fit(module, data(), data(seed=1, scale=0.1), ckpt_path=ckpt_path)
    fitted = certify(module, input_bound={"core.given": BOUND, "core.recorded": 1.0})
    seen = {
        "steps": probe.results,
        "weights": full_weights(module),
        "report": ours.report.to_dict(),
        "best": best.report.to_dict(),
        "best_path": best.best_model_path,
        "ranges": dict(ours.input_ranges),
        "metrics": dict(trainer.callback_metrics),
        "certified": fitted.to_dict(),
    }
    torch.save(seen, folder / f"{name}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    for every in (1, 2):
        run(kind, folder, f"every{every}", every_n_steps=every)
    run(kind, folder, "resumed", every_n_steps=2, ckpt_path=folder / "every2-middle.ckpt")
    if kind != "ddp":
        run(kind, folder, "single", every_n_steps=2, save_distributed_checkpoint=False)
