"""Watching recurrences while they run: the range of their inputs, and whether the premises of a certificate hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from lightning_stable.recurrence.calls import input_and_state
from lightning_stable.recurrence.registry import find_recurrences, gathered_model
from lightning_stable.recurrence.stored_weights import is_used
from lightning_stable.sharded import is_gathered_from, whole
from lightning_stable.stability.inputs.sets import InputSet, Recorded

# Rows of the weights whose products with the inputs are compared at a time: all of them would cost a third of a step.
_ROWS = 32


class InputMonitor:
    """Forward hooks on recurrent modules; everything stays on the device until it is asked for.

    At every forward the inputs are compared with their set, the start state is measured, and the weights in use are
    compared with the stored ones, the latter on the host and by identity.

    Args:
        recurrences: Their modules are watched.
        sources: Input sets known already, by the name of a module or of one of its first layers: for these the
            largest excess over the set is kept. Of modules with a first layer without one the range is recorded.
        on_first: Called with the module's name when the first inputs of a recorded module have arrived, before the
            module uses its weights.
        indifferent: Names of modules whose certificates rest on no inputs: of these no range is recorded.

    Attributes:
        ranges: Maxima of ``-x`` and ``x``, shape ``(2, features)``, by module name.
        excess: Largest excess over an input set, by the name the set is given for; infinite after a NaN.
        starts: Largest entries of the start states, by module name: per part of the state a tensor of shape
            ``(layers, units)``, infinite after a NaN.
        called: Names of the modules whose forwards were seen.
        replaced: Names of parameters in whose place a module used something else, by module name.
        recording: Whether ranges are recorded now.
        checking: Whether premises are checked now.
        exact: Whether products of inputs and weights are compared as well: some rows, at each forward others.
    """

    def __init__(
        self,
        recurrences: Sequence[Recurrence],
        sources: Mapping[str, InputSet] | None = None,
        on_first: Callable[[str], None] | None = None,
        indifferent: Collection[str] = (),
    ) -> None:
        self.modules = {r.module_name: r.module for r in recurrences}
        self.known: dict[str, dict[str, InputSet]] = {name: {} for name in self.modules}
        self.unknown: set[str] = set()
        for r in recurrences:
            if r.layer == 0:
                key = r.name if r.name in (sources or {}) else r.module_name
                if sources and key in sources:
                    self.known[r.module_name][key] = sources[key]
                elif r.module_name not in indifferent:
                    self.unknown.add(r.module_name)
        self.ranges: dict[str, Tensor] = {}
        self.excess: dict[str, Tensor] = {}
        self.starts: dict[str, tuple[Tensor, ...]] = {}
        self.replaced: dict[str, str] = {}
        self.called: set[str] = set()
        self.recording = True
        self.checking = True
        self.exact = False
        self._comparisons = 0  # with products, which choose the rows
        self._recurrences = {name: [r for r in recurrences if r.module_name == name] for name in self.modules}
        self._stored: dict[str, dict[str, Tensor]] = {}
        self._gathered: dict[int, Tensor] = {}  # what was found to be gathered from a sharded parameter, by its id
        self.accept_weights()
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

    def accept_weights(self) -> None:
        """Take the parameters that the modules hold now for the stored ones, as they are projected or certified."""
        self.replaced = {}
        self._stored = {
            name: {part.parameter_names()[role]: value for part in parts for role, value in part.parameters().items()}
            for name, parts in self._recurrences.items()
        }

    def know(self, sources: Mapping[str, InputSet]) -> None:
        """Take other sets for those that were known: the same ones, read anew."""
        for known in self.known.values():
            known.update({key: sources[key] for key in known})

    def recorded(self) -> dict[str, InputSet]:
        """Return the boxes of the inputs seen, by module name."""
        return {name: Recorded(-seen[0], seen[1], checked=False) for name, seen in self.ranges.items()}

    @torch.no_grad()
    def _watch(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.called.add(name)
        inputs, start = input_and_state(module, args, kwargs)
        if self.checking:
            self._check_weights(name, module)
            self._check_start(name, start)
        inputs = inputs.data if isinstance(inputs, PackedSequence) else inputs
        if not isinstance(inputs, Tensor) or inputs.numel() == 0:
            return
        if self.checking and self.known[name]:
            with full_precision(inputs.device):
                for key, known in self.known[name].items():
                    excess = known.excess(inputs)
                    if self.exact:
                        rows = self._next_rows(name, key)
                        excess = torch.maximum(excess, known.drive_excess(inputs.to(rows.dtype), rows).to(excess))
                    excess = excess.nan_to_num(torch.inf)
                    self.excess[key] = torch.maximum(self.excess[key], excess) if key in self.excess else excess
        if self.recording and name in self.unknown:
            self._record(name, inputs)

    def _next_rows(self, name: str, key: str) -> Tensor:
        first = next(r for r in self._recurrences[name] if r.layer == 0 and key in (name, r.name))
        weight = whole(first.parameters()["weight_ih"])
        stride = max(1, len(weight) // _ROWS)
        self._comparisons += 1
        return weight[self._comparisons % stride :: stride]

    def _check_weights(self, name: str, module: nn.Module) -> None:
        for key, stored in self._stored[name].items():
            used: Any = getattr(module, key, None)
            if not (self._is_stored(used, stored) and is_used(module, key, used)):
                self.replaced[name] = key

    def _is_stored(self, used: Any, stored: Tensor) -> bool:
        if used is stored:
            return True
        # A forward of a sharded module gathers its parameters, into tensors that stay the same: compared once.
        if self._gathered.get(id(stored)) is not used and is_gathered_from(used, stored):
            self._gathered[id(stored)] = used
        return used is not None and self._gathered.get(id(stored)) is used

    def _check_start(self, name: str, state: Any) -> None:
        parts = state if isinstance(state, (tuple, list)) else (state,)
        if not all(isinstance(part, Tensor) and part.numel() and part.is_floating_point() for part in parts):
            return
        # (layers, batch, units), unbatched (layers, units); of a cell (batch, units) or (units,).
        layered = self._recurrences[name][0].takes_sequences
        tops = tuple(
            part.detach().abs().reshape(len(part) if layered else 1, -1, part.shape[-1]).amax(1) for part in parts
        )
        tops = tuple(top.nan_to_num(torch.inf) for top in tops)
        seen = self.starts.get(name)
        self.starts[name] = tops if seen is None else tuple(map(torch.maximum, seen, tops))

    def _record(self, name: str, inputs: Tensor) -> None:
        # A step with inputs that are not finite is lost, or skipped by a gradient scaler; they are no range.
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).float().nan_to_num(0.0, 0.0, 0.0)
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
    seen: dict[str, InputSet] = {}
    with gathered_model(module):
        recurrences = find_recurrences(module)
    monitor = InputMonitor(recurrences)
    monitor.attach()
    try:
        yield seen
    finally:
        monitor.detach()
        seen.update(monitor.recorded())
