"""Running a model on the data that a command was given, to record what its recurrent modules see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_stable.diagnostics.recorded_calls import RecordedCalls
from lightning_stable.recurrence import find_recurrences


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
    recorder = RecordedCalls(recurrences)
    with recorder.attached(), torch.no_grad():
        for source in sources:
            if isinstance(source, Tensor):
                model(source.to(dtype) if source.is_floating_point() else source)
                recorder.end_batch()
            else:
                _trainer(_EndOfBatch(recorder), batches, dtype).validate(model, datamodule=source, verbose=False)
    return recorder.joined()


class _EndOfBatch(Callback):
    def __init__(self, recorder: RecordedCalls) -> None:
        self._recorder = recorder

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._recorder.end_batch()


def _trainer(callback: Callback, batches: int, dtype: torch.dtype) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true" if dtype == torch.float64 else "32-true",
        callbacks=[callback],
        limit_val_batches=batches,
        inference_mode=False,  # what is recorded is used after it
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
