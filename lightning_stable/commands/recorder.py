"""The inputs that reach every recurrent module while a model runs on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from typing_extensions import override

from lightning_stable.recurrence import Recurrence, find_recurrences


def record(model: LightningModule, sources: Sequence[Tensor | LightningDataModule], batches: int) -> dict[str, Any]:
    """Run a model in evaluation mode on a few batches and keep what its recurrent modules are given.

    Args:
        model: Made float32 where it is less precise.
        sources: Tensors, which its ``forward`` takes, and data modules, of which it validates the first batches.
        batches: How many.

    Returns:
        By the name of the recurrent module, all sequences joined: packed, or for cells a tensor of shape
        ``(time, batch, features)``. Modules that no inputs reached are left out.
    """
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    model.to(dtype)
    recurrences = {recurrence.module_name: recurrence for recurrence in find_recurrences(model)}
    recorder = _Recorder(recurrences)
    with recorder.attached(), torch.no_grad():
        for source in sources:
            if isinstance(source, Tensor):
                model(source.to(dtype) if source.is_floating_point() else source)
                recorder.end_batch()
            else:
                _trainer(recorder, batches, dtype).validate(model, datamodule=source, verbose=False)
    return {name: _joined(recurrences[name], calls) for name, calls in recorder.batches.items()}


class _Recorder(Callback):
    """Keeps of every batch the longest call of a module; the steps of a cell make one sequence."""

    def __init__(self, recurrences: dict[str, Recurrence]) -> None:
        self.batches: dict[str, list[Any]] = {}
        self._recurrences = recurrences
        self._calls: dict[str, list[Any]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            recurrence.module.register_forward_pre_hook(partial(self._keep, name), with_kwargs=True)
            for name, recurrence in self._recurrences.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def end_batch(self) -> None:
        for name, calls in self._calls.items():
            whole = max(calls, key=_size) if self._recurrences[name].takes_sequences else _steps(calls)
            self.batches.setdefault(name, []).append(whole)
        self._calls = {}

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.end_batch()

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.setdefault(name, []).append(args[0] if args else kwargs["input"])


def _trainer(recorder: Callback, batches: int, dtype: torch.dtype) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true" if dtype == torch.float64 else "32-true",
        callbacks=[recorder],
        limit_val_batches=batches,
        inference_mode=False,  # what is recorded is used after it
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _steps(calls: list[Tensor]) -> Tensor:
    """The steps of a cell as ``(time, batch, features)``."""
    steps = torch.stack(calls)
    return steps.unsqueeze(1) if steps.dim() == 2 else steps


def _joined(recurrence: Recurrence, calls: list[Any]) -> Any:
    if not recurrence.takes_sequences:
        # The beginning of a run is a run: all are cut to the length of the shortest.
        shortest = min(len(call) for call in calls)
        return torch.cat([call[:shortest] for call in calls], dim=1)
    batch_first = bool(recurrence.module.batch_first)
    return pack_sequence([row for call in calls for row in _rows(call, batch_first)], enforce_sorted=False)


def _rows(call: Tensor | PackedSequence, batch_first: bool) -> list[Tensor]:
    """The sequences of one call, ``(time, features)`` each."""
    if isinstance(call, PackedSequence):
        padded, lengths = pad_packed_sequence(call, batch_first=True)
        return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]
    if call.dim() == 2:
        return [call]
    return list(call if batch_first else call.transpose(0, 1))


def _size(call: Tensor | PackedSequence) -> int:
    return call.data.numel() if isinstance(call, PackedSequence) else call.numel()
