"""The watch over the inputs of recurrences: it records their range and checks that they stay in their sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_stable.hooks import Hook
from lightning_stable.precision import full_precision
from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.registry import find_recurrences
from lightning_stable.stability.inputs.sets import InputSet, Recorded


class InputMonitor:
    """Forward hooks on recurrent modules; everything stays on the device until it is asked for.

    Args:
        recurrences: Their modules are watched.
        sources: Input sets known already, by the name of a module or of one of its first layers: for these the
            largest excess over the set is kept. Of modules with a first layer without one the range is recorded.
        on_first: Called with the module's name when the first inputs of a recorded module have arrived, before the
            module uses its weights.

    Attributes:
        ranges: Maxima of ``-x`` and ``x``, shape ``(2, features)``, by module name.
        excess: Largest excess over an input set, by the name the set is given for.
        recording: Whether ranges are recorded now.
        checking: Whether inputs are compared with their sets now.
    """

    def __init__(
        self,
        recurrences: Sequence[Recurrence],
        sources: Mapping[str, InputSet] | None = None,
        on_first: Callable[[str], None] | None = None,
    ) -> None:
        self.modules = {r.module_name: r.module for r in recurrences}
        self.known: dict[str, dict[str, InputSet]] = {name: {} for name in self.modules}
        self.unknown: set[str] = set()
        for r in recurrences:
            if r.layer == 0:
                key = r.name if r.name in (sources or {}) else r.module_name
                if sources and key in sources:
                    self.known[r.module_name][key] = sources[key]
                else:
                    self.unknown.add(r.module_name)
        self.ranges: dict[str, Tensor] = {}
        self.excess: dict[str, Tensor] = {}
        self.recording = True
        self.checking = True
        self._on_first = on_first
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks."""
        for name, module in self.modules.items():
            hook = Hook(partial(self._watch, name))
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks and keep what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def recorded(self) -> dict[str, InputSet]:
        """Return the boxes of the inputs seen, by module name."""
        return {name: Recorded(-seen[0], seen[1], checked=False) for name, seen in self.ranges.items()}

    @torch.no_grad()
    def _watch(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else kwargs.get("input")
        inputs = inputs.data if isinstance(inputs, PackedSequence) else inputs
        if not isinstance(inputs, Tensor) or inputs.numel() == 0:
            return
        if self.checking and self.known[name]:
            with full_precision(inputs.device):
                for key, allowed in self.known[name].items():
                    excess = (allowed.excess(inputs) - _rounding(inputs)).nan_to_num(0.0, 0.0)
                    self.excess[key] = torch.maximum(self.excess[key], excess) if key in self.excess else excess
        if self.recording and name in self.unknown:
            self._record(name, inputs)

    def _record(self, name: str, inputs: Tensor) -> None:
        # A step with inputs that are not finite is lost, or skipped by a gradient scaler; they are no range.
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).float().nan_to_num(0.0, 0.0, 0.0)
        # Stored as the maxima of -x and x, so that processes can be reduced with one maximum.
        seen = torch.stack((-flat.amin(0), flat.amax(0)))
        first = name not in self.ranges
        self.ranges[name] = seen if first else torch.maximum(self.ranges[name].to(seen.device), seen)
        if first and self._on_first is not None:
            self._on_first(name)


def _rounding(inputs: Tensor) -> Tensor:
    """Return by how much inputs may leave their set: they were rounded to their dtype after every operation."""
    if not inputs.is_floating_point():
        return torch.zeros((), device=inputs.device)
    return 8 * torch.finfo(inputs.dtype).eps * inputs.abs().amax()


@contextmanager
def record_inputs(module: nn.Module) -> Iterator[dict[str, InputSet]]:
    """Record the range of the inputs of every recurrent module while the model runs on data.

    Yields:
        A mapping that is filled when the block ends, to be given as ``input_bound``. Certificates that rest on it
        carry the guarantee ``"data"``: they hold for these inputs and promise nothing for others.

    Example:
        >>> with record_inputs(model) as seen:
        ...     for batch in loader:
        ...         model(batch)
        >>> certify(model, input_bound=seen)
    """
    monitor, seen = InputMonitor(find_recurrences(module)), {}  # type: tuple[InputMonitor, dict[str, InputSet]]
    monitor.attach()
    try:
        yield seen
    finally:
        monitor.detach()
        seen.update(monitor.recorded())
