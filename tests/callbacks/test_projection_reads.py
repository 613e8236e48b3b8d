"""Between two logging steps nothing of ours reads a value of a tensor: an accelerator would have to be waited for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_stable
from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from lightning_stable.stability.projection import clip_subspace
from lightning_stable.stability.projection.every_step import FastProjection
from tests.helpers import Recurrent, sequences, trainer

FETCHES = ("item", "cpu", "tolist", "numpy", "__array__")
READS = (*FETCHES, "__bool__", "__int__", "__float__", "__index__")
OURS = [str(Path(lightning_stable.__file__).parent), str(Path(lightning_stable.callbacks.__file__).resolve().parent)]


@contextmanager
def recorded(names: tuple[str, ...], found: list[str]) -> Iterator[None]:
    """Calls of methods of tensors with one of our files on the stack."""

    def spy(name: str) -> Any:
        original = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            frame, lines = sys._getframe(1), []
            while frame is not None:
                lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                frame = frame.f_back
            ours = [line for line in lines if any(line.startswith(folder) for folder in OURS)]
            if ours:
                found.append(f"{name} from {ours[0]}")
            return original(self, *args, **kwargs)

        return mock.patch.object(Tensor, name, method)

    patches = [spy(name) for name in names]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


class Watch(L.Callback):
    """Records during all batches after the first one."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.found, self.batches = names, [], 0  # type: ignore[var-annotated]
        self._block: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:
            self._block = recorded(self.names, self.found)
            self._block.__enter__()
            self.batches += 1

    def on_train_batch_end(self, *_: Any) -> None:
        if self._block is not None:
            self._block.__exit__(None, None, None)
            self._block = None


class AsOnAnAccelerator(L.Callback):
    def __init__(self, projection: StabilityProjectionCallback) -> None:
        self._projection = projection

    def on_train_start(self, *_: Any) -> None:
        self._projection._attached._on_cpu = False
        self._projection._attached._after_steps = FastProjection(reading=False)


class Words(nn.Module):
    """A table, or a matrix large enough for a subspace."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 4)
        units = clip_subspace.MIN_UNITS if cell == "rnn" else 8
        self.core = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](4, units, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.core(self.table(x.sum(2).long() % len(self.table.weight)))


@pytest.mark.parametrize(
    ("cell", "words", "shadow"),
    [
        ("rnn", True, False),
        ("rnn", False, True),
        ("lstm", True, True),
        ("lstm", False, False),
        ("gru", True, False),
        ("gru", False, True),
    ],
)
def test_no_value_is_fetched(cell: str, words: bool, shadow: bool, tmp_path: Path) -> None:
    watch, ours = Watch(FETCHES), StabilityProjectionCallback(0.9)
    others = [FeedForwardShadowCallback(2)] if shadow else []
    model = Recurrent(Words(cell), growth=0.01) if words else Recurrent(cell, bounded=False)
    trainer(tmp_path, ours, *others, watch, log_every_n_steps=1000).fit(model, sequences(5))
    assert watch.batches == 4
    assert ours.num_projections == 5
    assert watch.found == []


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_no_value_is_looked_at_as_on_an_accelerator(cell: str, words: bool, tmp_path: Path) -> None:
    ours = StabilityProjectionCallback(0.9)
    watch = Watch(READS)
    model = Recurrent(Words(cell), growth=0.01) if words else Recurrent(cell, bounded=False)
    trainer(tmp_path, ours, AsOnAnAccelerator(ours), watch, log_every_n_steps=1000).fit(model, sequences(5))
    assert watch.batches == 4
    assert [call for call in watch.found if "/stability" in call] == []
    assert ours.report is not None
    assert ours.report.rate <= 0.9


def test_reading_would_be_noticed() -> None:
    found: list[str] = []
    with recorded(FETCHES, found):
        lightning_stable.certify(Recurrent("rnn"))
    assert any(call.startswith("item from ") for call in found)


def test_the_subspace_is_in_the_checkpoint(tmp_path: Path) -> None:
    ours = StabilityProjectionCallback(0.9)
    run = trainer(tmp_path, ours)
    run.fit(Recurrent(Words("rnn"), growth=0.01), sequences(3))
    run.save_checkpoint(tmp_path / "model.ckpt")
    (state,) = torch.load(tmp_path / "model.ckpt", weights_only=True)["callbacks"].values()
    assert state["projector"]["core.core.l0"]["vectors"].shape[2] == clip_subspace.MIN_UNITS
