"""What callbacks with a state beside the model's share: saved with it at one moment, and in all processes alike."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from lightning_stable.bases import Callback
from lightning_stable.callbacks._same_batches import SameBatches
from lightning_stable.callbacks._same_signals import SameSignals
from lightning_stable.signals import HeldSignals
from lightning_stable.trainers import callbacks_of


class Interruptible(Callback):
    """A callback with a state beside the model's, which a checkpoint must hold as it was at the same step.

    Lightning resumes exactly from what was saved at the end of a batch that made a step. In the middle of a batch the
    data loader is ahead of the weights, accumulated gradients are not saved, and a validation begins anew. So the last
    of these callbacks on a trainer holds signals back until such a moment, or until the epoch ends.
    """

    _signals: HeldSignals | None = None  # of the one that holds them, while a fit trains
    _same_batches: SameBatches | None = None  # of the first one, where there are several processes
    _same_signals: SameSignals | None = None  # of the one that holds signals, where there are several processes
    _step_before = 0  # the trainer's ``global_step`` as the batch began

    def _begin_training(self, trainer: Trainer) -> None:
        vars(self).pop("_same_batches", None)
        if trainer.world_size > 1 and callbacks_of(trainer, Interruptible)[0] is self:
            self._same_batches = SameBatches(trainer)
        self._hold_signals(trainer)
        if trainer.world_size > 1 and self._signals is not None:
            self._same_signals = SameSignals()

    def _compare_processes(self, trainer: Trainer, batch_idx: int) -> None:
        """End a run whose processes part here; to be called before any collective operation of the batch's end."""
        if self._same_batches is not None:
            self._same_batches.end_batch(trainer, batch_idx)

    def _hold_signals(self, trainer: Trainer) -> None:
        if self._signals is None and callbacks_of(trainer, Interruptible)[-1] is self:
            self._signals = HeldSignals()
            self._signals.attach()
            self._signals.close()

    def _begin_batch(self, trainer: Trainer) -> None:
        self._step_before = trainer.global_step

    def _end_batch(self, trainer: Trainer, module: LightningModule) -> None:
        accumulates = module.automatic_optimization and trainer.accumulate_grad_batches > 1
        stepped = trainer.global_step > self._step_before or not accumulates
        # Resumed from the last batch of an epoch, Lightning leaves out the validation after it.
        if stepped and not trainer.is_last_batch:
            self._let_signals_pass()

    def _forget_training(self) -> None:
        """Leave a copy without what belongs to the run."""
        for name in ("_signals", "_same_batches", "_same_signals"):
            vars(self).pop(name, None)

    def _let_signals_pass(self) -> None:
        """Run the handlers that wait, in all processes; to be called at the same moment by all of them."""
        if self._signals is not None:
            self._signals.open(self._same_signals)
            self._signals.close()

    def _end_training(self) -> None:
        """Give signals back to their handlers; for every end of a run."""
        for name in ("_same_batches", "_same_signals"):
            vars(self).pop(name, None)
        if self._signals is not None:
            signals = self._signals
            del self._signals
            signals.detach()
