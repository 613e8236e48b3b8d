"""Keeping one model in a stable set while it trains: input sets, projection and certificates in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.recurrence import Recurrence, find_recurrences
from lightning_stable.stability.certify import certify_recurrences, check_finite
from lightning_stable.stability.inputs import Sources, resolve_sources
from lightning_stable.stability.monitor import InputMonitor
from lightning_stable.stability.project import Constraint, Update, apply_updates, propose_updates
from lightning_stable.stability.report import StabilityReport

# Inputs may leave their set by rounding.
_EXCESS_TOLERANCE = 1e-5


class Projector:
    """The recurrences of a model, what is known about their inputs, and the set they are kept in.

    Args:
        module: The model.
        constraint: The stable set.
        input_bound: As in :func:`lightning_stable.certify`; recurrences of which nothing is known get the range of
            the inputs seen while the projector is attached.
        modules: Name patterns, None for all recurrent modules.
        training: Whether dropout counts as active.
        margin: Smallest relative margin of the fast projection.
        ranges: Input ranges seen in an earlier run, by module name.
        reduce_max: Elementwise maximum over all processes; needed so that all of them make the same weights.
    """

    def __init__(
        self,
        module: nn.Module,
        constraint: Constraint,
        *,
        input_bound: Any = None,
        modules: Iterable[str] | None = None,
        training: bool = True,
        margin: float = 0.0,
        ranges: Mapping[str, Tensor] | None = None,
        reduce_max: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.recurrences = find_recurrences(module, modules)
        self.constraint = constraint
        self._sources = resolve_sources(module, self.recurrences, input_bound, training)
        self._training, self._margin, self._reduce_max = training, margin, reduce_max
        self._device = self._first_parameter().device
        # An accelerator would have to be waited for; a CPU can be asked at every step.
        self._on_cpu = self._device.type == "cpu"
        self.monitor = InputMonitor(self.recurrences, self._sources, on_first=self._project_before_first_use)
        self.monitor.ranges.update({name: seen.to(self._device) for name, seen in (ranges or {}).items()})

    def attach(self) -> None:
        """Start watching the inputs."""
        self.monitor.attach()

    def detach(self) -> None:
        """Stop watching."""
        self.monitor.detach()

    def project(self, *, strict: bool, measure: bool = False) -> Tensor | None:
        """Project every recurrence whose inputs are known by now.

        Args:
            strict: See :func:`lightning_stable.project_`.
            measure: Return the Euclidean distance the weights moved (a tensor on the device).

        Raises:
            ValueError: If weights are NaN or infinite; on an accelerator only with ``strict``, the fast form keeps
                the weights as they are instead and the next certificate raises.
        """
        ready = [r for r in self.recurrences if self._is_ready(r)]
        if not ready:
            return None
        asking = strict or self._on_cpu
        if asking:
            check_finite(ready)
        updates = propose_updates(
            ready, self.input_sets(), self.constraint, strict=strict, margin=self._margin, training=self._training
        )
        if not asking:
            updates = _keep_finite(updates)
        distance = _distance(updates) if measure else None
        apply_updates(updates)
        return distance

    def certify(self, *, leading_only: bool = False) -> StabilityReport:
        """Certificate of the stored weights; see :func:`~lightning_stable.stability.certify.certify_recurrences`."""
        return certify_recurrences(
            self.recurrences,
            self.input_sets(),
            self.constraint.norm,
            self.constraint.state_bound,
            training=self._training,
            leading_only=leading_only,
        )

    def input_sets(self) -> Sources:
        """Input sets given, derived, or recorded so far."""
        if self._reduce_max is not None:
            for name, seen in self.monitor.ranges.items():
                self.monitor.ranges[name] = self._reduce_max(seen)
        return self.monitor.recorded() | self._sources

    def uncovered_inputs(self) -> dict[str, str]:
        """Recurrent modules that were fed inputs outside their input set, and a sentence about each."""
        found = {name: excess.item() for name, excess in self.monitor.excess.items()}
        return {
            name: f"Inputs of {name!r} lie outside its input set ({self._sources[name].describe()}) by {excess:.4g}; "
            "the certificate does not cover them. Pass a larger `input_bound`, or clamp the inputs in the model."
            for name, excess in found.items()
            if excess > _EXCESS_TOLERANCE
        }

    def recurrent_norms(self) -> dict[str, float]:
        """Frobenius norm of the recurrent weights, by recurrence."""
        return {
            r.name: sum(block.norm().item() ** 2 for block in r.recurrent_blocks(r.weights()).values()) ** 0.5
            for r in self.recurrences
        }

    def _is_ready(self, recurrence: Recurrence) -> bool:
        known = self._sources.keys() | self.monitor.ranges.keys()
        return not recurrence.needs_drive or recurrence.name in known or recurrence.module_name in known

    def _project_before_first_use(self, name: str) -> None:
        # Nothing was known about these inputs until now, and after this the module uses its weights.
        if self._training:
            self.project(strict=True)

    def _first_parameter(self) -> nn.Parameter:
        return next(iter(self.recurrences[0].parameters().values()))


def _keep_finite(updates: list[Update]) -> list[Update]:
    """The old values of all parameters if any new one is not finite, decided on the device."""
    if not updates:
        return updates
    intact = torch.stack([torch.isfinite(value).all() for _, value in updates]).all()
    return [(parameter, torch.where(intact, value, parameter.detach())) for parameter, value in updates]


def _distance(updates: list[Update]) -> Tensor:
    squares = [(value.float() - parameter.detach().float()).square().sum() for parameter, value in updates]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
