"""Small LightningModules and trainers, shared by the tests."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from packaging.version import Version
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM

FEATURES, UNITS, TIME = 3, 5, 4
# After a checkpoint inside an epoch, Lightning 2.4 goes on with another batch, whatever its callbacks.
resumes_inside_an_epoch = Version(L.__version__) >= Version("2.6")
# Before it has this argument, `load_from_checkpoint` reads as safely by default, or hands it to the model.
ONLY_WEIGHTS: dict[str, Any] = {"weights_only": True} if resumes_inside_an_epoch else {}
# Before torch 2.5 a module takes nothing but a tensor as a buffer, and `new_zeros` no traced size: nothing is derived.
takes_stand_ins = pytest.mark.skipif(not hasattr(nn, "Buffer"), reason="needs torch 2.5")
CELLS = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "ugrnn": UGRNN,
    "intersection": IntersectionRNN,
    "leaky": LeakyRNN,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
}


def fused_adam(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """Skip the test where torch has no fused Adam for CPUs: before 2.4."""
    try:
        return torch.optim.Adam(parameters, lr=lr, fused=True)
    except RuntimeError as error:
        pytest.skip(str(error))


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs a CUDA device."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skip(test))


class Sequences(Dataset[Tensor]):
    """Standard normal sequences of shape ``(TIME, FEATURES)``, ``scale`` times as large."""

    def __init__(self, length: int, *, scale: float = 1.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.data = scale * torch.randn(length, TIME, FEATURES, generator=generator)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]


def sequences(batches: int = 3, batch_size: int = 2, **kwargs: Any) -> DataLoader[Tensor]:
    return DataLoader(Sequences(batches * batch_size, **kwargs), batch_size=batch_size)


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.3)


class Recurrent(L.LightningModule):
    """A recurrence whose loss pulls its weights out of every bounded set.

    Args:
        core: The recurrent module, or the name of a cell.
        bounded: Clamp the inputs, so that their set can be derived from the graph.
        optimizer: Makes the optimizer from the parameters.
        growth: Weight of the term that rewards large recurrent weights; 0 for the error alone.
    """

    def __init__(
        self,
        core: nn.Module | str = "rnn",
        *,
        bounded: bool = True,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = sgd,
        growth: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.core = CELLS[core](FEATURES, UNITS, batch_first=True, **kwargs) if isinstance(core, str) else core
        self.head = nn.LazyLinear(FEATURES)
        self.bounded, self.growth = bounded, growth
        self.make_optimizer = optimizer
        with torch.no_grad():
            self(torch.zeros(1, TIME, FEATURES))

    def recurrent_weights(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters() if "weight_hh" in name}

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.core(x.clamp(-2.0, 2.0) if self.bounded else x)
        return self.head(output)

    def loss(self, batch: Tensor) -> Tensor:
        error = (self(batch[:, :-1]) - batch[:, 1:]).square().mean()
        if not self.growth:
            return error
        return error - self.growth * sum(w.square().sum() for w in self.recurrent_weights().values())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class AfterStep(L.Callback):
    """Calls a function after every optimizer step; placed behind a callback, it sees what that one has done."""

    def __init__(self, function: Callable[[L.LightningModule], Any]) -> None:
        self.function, self.results = function, []  # type: ignore[var-annotated]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.results.append(self.function(pl_module)))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trainer(path: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False}
    kwargs.setdefault("enable_checkpointing", any(isinstance(c, Checkpoint) for c in callbacks))
    defaults = quiet | {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 1}
    return L.Trainer(default_root_dir=path, callbacks=list(callbacks), **defaults | kwargs)
