"""What the models of whole sequences share."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_stable.metrics import MicroAverage
from lightning_stable.models.core_model import CoreModel
from lightning_stable.models.cores import evaluate, output_size


class SequenceModel(CoreModel):
    """A base class: a core that reads a sequence, dropout, and a linear head at every step.

    A subclass calls :meth:`build` in its constructor. Arguments: see :class:`~lightning_stable.models.CoreModel`.
    """

    def build(self, input_size: int, head_size: int, *, bidirectional: bool = False) -> None:
        """Make the core and the head.

        Args:
            input_size: Features per time step that the core reads.
            head_size: Features per time step that the head returns.
            bidirectional: Let an output depend on later inputs as well.
        """
        self.core = self.build_core(input_size, bidirectional=bidirectional)
        self.head = nn.Linear(output_size(self.core), head_size)

    def read(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the head's answer at every step, ``(batch, time, head_size)``, to inputs of the core."""
        answer: Tensor = self.head(self.dropout(evaluate(self.core, inputs, lengths)))
        return answer

    def log_average(self, name: str, total: Tensor, count: int | Tensor, dataloader_idx: int = 0) -> Tensor:
        """Log the average over the epoch of what ``total`` is the sum of, over ``count`` items; return the batch's."""
        self.log_over_split(name, MicroAverage, dataloader_idx, total, count)
        return total / count
