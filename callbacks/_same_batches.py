"""Processes with different numbers of batches: an error says so, where collective operations would wait for ever."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor


class SameBatches:
    """Watches that all processes come to the last batch of an epoch together; to be made by all of them.

    Where loaders have lengths, and these are equal, there is nothing to watch. Else the processes tell each other after
    every batch whether it was the last one, on the host.

    Args:
        trainer: The trainer, as training starts.
    """

    def __init__(self, trainer: Trainer) -> None:
        own = torch.tensor([float(trainer.num_training_batches)], device=trainer.strategy.root_device)
        counts: Tensor = trainer.strategy.all_gather(own)
        lengths = set(counts.flatten().tolist())
        self._group = None
        self._watches = len(lengths) > 1 or lengths == {float("inf")}
        if self._watches and torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo")

    def end_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Compare the processes at the end of a batch, which all of them have come to.

        Raises:
            MisconfigurationException: If it is the last one of some processes only.
        """
        if not self._watches:
            return
        is_last = torch.tensor([float(trainer.is_last_batch)])
        every = [torch.empty(1) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(every, is_last, group=self._group)
        ended = [rank for rank, value in enumerate(every) if value]
        if 0 < len(ended) < trainer.world_size:
            raise MisconfigurationException(
                "All processes must have the same number of training batches: one that has more waits for the others "
                "in its next step, and these wait at the end of the epoch. Give all of them as many, with a "
                f"DistributedSampler or `limit_train_batches`. Got {batch_idx + 1} batches in the processes {ended} of "
                f"{trainer.world_size}, and more in the others."
            )
