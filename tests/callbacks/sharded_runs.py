"""Runs on two processes with whole and sharded parameters: ``python -m tests.callbacks.sharded_runs KIND FOLDER``.

KIND is ``ddp``, the package whose ModelParallelStrategy is used, or ``plain``, under torchrun.
"""

import copy
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lightning_stable import certify, project_, truncate, truncation_profile
from lightning_stable.callbacks import StabilityProjectionCallback, StableModelCheckpoint
from lightning_stable.diagnostics import measure_state_gradients
from lightning_stable.export import export
from lightning_stable.sharded import is_sharded
from lightning_stable.stability import record_inputs
from tests.callbacks.two_processes import BATCHES, Lopsided
from tests.helpers import UNITS, AfterStep, equal

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


def shard(core: Core, **options: Any) -> None:
    for part in core.derived, core.given:  # the others together
        fully_shard(part, **options)
    fully_shard(core, **options)


def module_of(package: Any, sharding: dict[str, Any] | None) -> Any:
    """A LightningModule of one of the two packages, whose loss pulls the weights out of every stable set."""

    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.core = Core()

        def configure_model(self) -> None:
            if sharding is not None:
                options = {key: value for key, value in sharding.items() if key == "mp_policy"}
                shard(self.core, mesh=self.device_mesh["data_parallel"], **options)

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


def run(package: Any, folder: Path, name: str, sharding: dict[str, Any] | None, **kwargs: Any) -> None:
    """Fit, and write down what this process saw.

    Args:
        package: Lightning under one of its two names.
        folder: Where checkpoints and results go.
        name: Of the files.
        sharding: Arguments of ModelParallelStrategy, and of ``fully_shard``; None for DDP.
        kwargs: ``every_n_steps``, and the ``ckpt_path`` to resume from.
    """
    ckpt_path = kwargs.pop("ckpt_path", None)
    ours = StabilityProjectionCallback(RATE, input_bound={"core.given": BOUND}, **kwargs)
    best = StableModelCheckpoint(dirpath=folder, filename=f"{name}-best")
    middle = package.callbacks.ModelCheckpoint(
        folder, f"{name}-middle", every_n_train_steps=3, monitor="stability/rate"
    )
    probe = AfterStep(full_weights)
    strategy: Any = "ddp"
    if sharding is not None:
        options = {key: value for key, value in sharding.items() if key != "mp_policy"}
        strategy = package.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **options)
    trainer = package.Trainer(
        default_root_dir=folder,
        callbacks=[ours, probe, best, middle],
        strategy=strategy,
        accelerator="cpu",
        devices=2,
        max_epochs=1 if ckpt_path is None else 2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
    )
    module = module_of(package, sharding)
    trainer.fit(module, data(), data(seed=1, scale=0.1), ckpt_path=ckpt_path)
    certified = certify(module, input_bound={"core.given": BOUND, "core.recorded": 1.0})
    reports = {"ours": ours.report, "best": best.report, "certified": certified}
    seen = {
        "steps": probe.results,
        "weights": full_weights(module),
        "reports": {key: report.to_dict() for key, report in reports.items() if report is not None},
        "ranges": dict(ours.input_ranges),
        "metrics": dict(trainer.callback_metrics),
        "best_path": best.best_model_path,
        "projections": ours.num_projections,
    }
    torch.save(seen, folder / f"{name}-{trainer.global_rank}.pt")


def plain_loop(folder: Path, rank: int) -> None:
    """A loop of torch's own on a model sharded by rows, and one layer sharded by columns."""
    torch.manual_seed(0)
    core = Core()
    whole = copy.deepcopy(core)
    shard(core)
    stored = dict(core.named_parameters())
    optimizer = torch.optim.SGD(core.parameters(), lr=3.0)
    bounds: Any = {"given": BOUND, "recorded": 2.0}
    for step in range(2):
        core(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(10 * step + rank))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        whole.load_state_dict(full_weights(core))
        report = project_(core, RATE, input_bound=bounds)
        assert report.to_dict() == project_(whole, RATE, input_bound=bounds).to_dict()
        assert report.rate <= RATE
        assert [layer.guarantee for layer in report.layers] == ["derived", *4 * ["guaranteed"]]
        assert equal(full_weights(core), full_weights(whole))
    assert all(value is stored[name] for name, value in core.named_parameters())

    # What is inside stays as it is; what a forward has gathered is given up first.
    versions = [value._version for value in stored.values()]
    with torch.no_grad():
        core(torch.randn(2, 4, 3))
    assert not is_sharded(core.free.weight_hh_l0)
    project_(core, RATE, input_bound=bounds)
    assert versions == [value._version for value in stored.values()]
    with torch.no_grad():
        core(torch.randn(2, 4, 3))
    project_(core, 0.5, modules="free")
    # Weights that a forward has gathered would be given up with what was written to them.
    assert torch.linalg.matrix_norm(stored["free.weight_hh_l0"].full_tensor(), ord=2) <= 0.5  # type: ignore[attr-defined]
    assert certify(core, modules="free").rate <= 0.5

    with record_inputs(core) as seen:
        core(torch.full((2, 4, 3), 3.0 + rank))
    assert seen["recorded"].describe() == f"seen in data: {3 + rank} <= x <= {3 + rank}"

    core.reshard()  # type: ignore[operator]
    for function in refusals(core):
        with pytest.raises(ValueError, match=r"Got a sharded .*\bget_model_state_dict with full_state_dict=True"):
            function()

    columns = nn.GRU(3, UNITS)
    expected = copy.deepcopy(columns)
    for name, value in list(columns.named_parameters()):
        placement = Shard(1) if value.ndim == 2 and "ih" in name else Replicate()
        setattr(columns, name, nn.Parameter(distribute_tensor(value, init_device_mesh("cpu", (2,)), [placement])))
    assert project_(columns, 0.6, input_bound=1.0).to_dict() == project_(expected, 0.6, input_bound=1.0).to_dict()
    assert equal(full_weights(columns), full_weights(expected))
    assert columns.weight_ih_l0.placements == (Shard(1),)
    (folder / f"plain-{rank}").touch()


def refusals(core: Core) -> list[Callable[[], object]]:
    x = torch.zeros(2, 4, 3)
    return [
        lambda: truncate(core, 2),
        lambda: truncation_profile(core.recorded, x, 2),
        lambda: measure_state_gradients(core.recorded, x),
        lambda: export(core, 2, "never-written.onnx", example=x),
    ]


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "plain":
        distributed.init_process_group("gloo")
        plain_loop(folder, distributed.get_rank())
        distributed.barrier()
        # All is written. Threads of gloo that still run when the process group is destroyed can abort the process.
        os._exit(0)
    elif kind == "ddp":
        run(pl, folder, "every1", None, every_n_steps=1)
        run(pl, folder, "every2", None, every_n_steps=2)
        run(pl, folder, "resumed", None, every_n_steps=2, ckpt_path=folder / "every2-middle.ckpt")
    elif kind == "lightning.pytorch":
        run(pl, folder, "every1", {"save_distributed_checkpoint": False}, every_n_steps=1)
        run(pl, folder, "every2", {}, every_n_steps=2)
        run(pl, folder, "resumed", {}, every_n_steps=2, ckpt_path=folder / "every2-middle.ckpt")
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        run(pl, folder, "rounded", {"mp_policy": policy}, every_n_steps=1)
    else:
        run(import_module(kind), folder, "every2", {}, every_n_steps=2)
