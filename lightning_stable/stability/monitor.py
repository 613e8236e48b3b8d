"""Watching the inputs of recurrences: recording their range, and checking that they stay in their input sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.registry import find_recurrences
from lightning_stable.stability.input_sets import InputSet, Recorded


class InputMonitor:
    """Forward hooks on recurrent modules; everything stays on the device until it is asked for.

    Args:
        recurrences: Their modules are watched.
        sources: Input sets known already: for these the largest excess over the set is kept. The range of the
            inputs of all other modules is recorded.
        on_first: Called with the module's name when the first inputs of a recorded module have arrived, before the
            module uses its weights.
    """

    def __init__(
        self,
        recurrences: Sequence[Recurrence],
        sources: Mapping[str, InputSet] | None = None,
        on_first: Callable[[str], None] | None = None,
    ) -> None:
        self.modules = {r.module_name: r.module for r in recurrences}
        self.sources = {name: known for name, known in (sources or {}).items() if name in self.modules}
        self.ranges: dict[str, Tensor] = {}
        self.excess: dict[str, Tensor] = {}
        self.checking = True
        self._on_first = on_first
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks."""
        for name, module in self.modules.items():
            hook = self._hook(name)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks; what was seen is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def recorded(self) -> dict[str, InputSet]:
        """The boxes of the inputs seen, by module name."""
        return {name: Recorded(-seen[0], seen[1], checked=False) for name, seen in self.ranges.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        @torch.no_grad()
        def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else kwargs.get("input")
            inputs = inputs.data if isinstance(inputs, PackedSequence) else inputs
            if not isinstance(inputs, Tensor) or inputs.numel() == 0:
                return
            if name not in self.sources:
                self._record(name, inputs)
            elif self.checking:
                excess = self.sources[name].excess(inputs)
                self.excess[name] = torch.maximum(self.excess[name], excess) if name in self.excess else excess

        return watch

    def _record(self, name: str, inputs: Tensor) -> None:
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        # Stored as the maxima of -x and x, so that processes can be reduced with one maximum.
        seen = torch.stack((-flat.amin(0), flat.amax(0)))
        first = name not in self.ranges
        self.ranges[name] = seen if first else torch.maximum(self.ranges[name].to(seen.device), seen)
        if first and self._on_first is not None:
            self._on_first(name)


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
