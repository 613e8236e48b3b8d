"""The projector keeps one model in a stable set while it trains: input sets, projection and certificates together."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from lightning_stable import linalg
from lightning_stable.precision import full_precision
from lightning_stable.recurrence import Recurrence, find_recurrences
from lightning_stable.recurrence.registry import gathered_model
from lightning_stable.stability.certify import certify_recurrences, check_finite
from lightning_stable.stability.inputs.resolve import Sources, gathered_sets, resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import InputBound, InputSet
from lightning_stable.stability.inputs.watch import InputMonitor
from lightning_stable.stability.projection.every_step import FastProjection, State
from lightning_stable.stability.projection.project import (
    Constraint,
    Update,
    apply_updates,
    check_writable,
    is_frozen,
    not_finite,
    propose_updates,
)
from lightning_stable.stability.projection.remembered import Remembered, Result
from lightning_stable.stability.report import StabilityReport
from lightning_stable.stability.spectra import layer_spectra

# States of float32 runs may leave their box by rounding.
_TOLERANCE = 1e-5

# Reasons and excess by layer, and the layers that lose nothing but their windows.
Left = dict[str, dict[str, Any]]


class Projector:
    """The recurrences of a model, what is known about their inputs, and the set they are kept in.

    Of a sharded model every process projects whole weights, gathered for the moment, and keeps its shards of them.

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
        input_bound: InputBound = None,
        modules: Iterable[str] | None = None,
        training: bool = True,
        margin: float = 0.0,
        ranges: Mapping[str, Tensor] | None = None,
        reduce_max: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        with gathered_model(module) as shards:
            self.recurrences = find_recurrences(module, modules)
            self.constraint = constraint
            if training:  # what does not fit shows now, not when the first inputs arrive
                check_writable(self.recurrences)
                for recurrence in self.recurrences:
                    if not is_frozen(recurrence):
                        constraint.target(recurrence, 0.0, exact=True)
            sources = resolve_sources(module, self.recurrences, input_bound, training, constraint.state_bound)
        self._shards = shards.of([r.module for r in self.recurrences])
        self._training, self._margin, self._reduce_max = training, margin, reduce_max
        self._device = next(iter(self.recurrences[0].parameters().values())).device
        self._sources = {name: _on_device(inputs, self._device) for name, inputs in sources.items()}
        # An accelerator would have to be waited for; a CPU can be asked at every step.
        self._on_cpu = self._device.type == "cpu"
        self._after_steps = FastProjection(reading=self._on_cpu)
        self._verdicts = Remembered()
        first_use = torch.compiler.disable(self._project_before_first_use)  # type: ignore[no-untyped-call]
        indifferent = {r.module_name for r in self.recurrences} - {
            r.module_name for r in self.recurrences if r.needs_drive
        }
        self.monitor = InputMonitor(self.recurrences, self._sources, on_first=first_use, indifferent=indifferent)
        self._present = self._sources
        self._versions = self.versions()
        # What the run has left of the premises stays left: weights that come back inside have been trained outside.
        self._left: Left = {"reasons": {}, "excess": {}, "windows": {}}
        self._boxes: dict[str, tuple[Tensor, ...]] = {}  # of the states, at the report before
        self.expects_forwards = False  # once a batch went through the model, all recurrences should have been called
        self.follow_sources()
        self.remember(ranges or {})

    def attach(self) -> None:
        """Start watching the inputs."""
        self.monitor.attach()

    def detach(self) -> None:
        """Stop watching."""
        self.monitor.detach()

    def remember(self, ranges: Mapping[str, Tensor]) -> None:
        """Take over input ranges seen in an earlier run."""
        recorded = {name: seen.to(self._device) for name, seen in ranges.items() if name in self.monitor.unknown}
        self.monitor.ranges.update(recorded)

    def state_dict(self) -> State:
        """Return what the projection after the next step depends on, besides the weights."""
        return self._after_steps.state_dict()

    @property
    def left_premises(self) -> Left:
        """What the run has left of the premises so far, for :meth:`remember_left`."""
        return {key: dict(value) for key, value in self._left.items()}

    def remember_left(self, left: Left) -> None:
        """Take over what an earlier part of the run has left."""
        for key, value in left.items():
            self._left[key].update(value)

    def load_state_dict(self, state: State) -> None:
        """Take over the state of a projector of the same model."""
        self._after_steps.load_state_dict(state, self._device)

    @torch.no_grad()
    def project(self, *, strict: bool, measure: bool = False, module_name: str | None = None) -> Tensor | None:
        """Project every recurrence whose inputs are known by now.

        Args:
            strict: See :func:`lightning_stable.project_`.
            measure: Return the Euclidean distance the weights moved (a tensor on the device).
            module_name: Project the recurrences of this module only.

        Raises:
            ValueError: If weights are NaN or infinite; on an accelerator only with ``strict``, the fast form keeps
                the weights as they are instead and the next certificate raises.
        """
        sources = self.input_sets()
        ready = [r for r in self._ready(sources) if module_name in (None, r.module_name)]
        if not ready:
            self._versions = self.versions() if module_name is None else self._versions
            return None
        with self._shards.of([r.module for r in ready]).gathered():
            distance = self._project(ready, sources, strict, measure)
        self._versions = self.versions()
        return distance

    def _project(self, ready: list[Recurrence], sources: Sources, strict: bool, measure: bool) -> Tensor | None:
        if strict:
            check_finite(ready)
        with full_precision(self._device):
            try:
                propose: Callable[..., list[Update]] = self._after_steps.propose_updates
                if strict:
                    propose = partial(propose_updates, strict=True, known=self._known(ready, sources))
                proposed = partial(
                    propose, ready, sources, self.constraint, margin=self._margin, training=self._training
                )
                updates = self._remembered("updates", ready, sources, proposed) if strict else proposed()
            except RuntimeError:  # a decomposition that failed
                check_finite(ready)  # the likely cause, with a name
                raise
            if not strict:
                updates = self._keep_finite(ready, updates)
            distance = _distance(updates) if measure else None
        apply_updates(updates)
        return distance

    @contextmanager
    def projected(self) -> Iterator[None]:
        """Project, verified in float64, inside the block alone: whoever only looks at a run must not change it."""
        versions = self._versions
        with self._shards.stored(), torch.no_grad():
            before = [(value, value.clone()) for value in self._parameters()]
        with ExitStack() as stack:
            if not self._shards:
                # The values come back, so that a graph that needs them does not have to know.
                for value, _ in before:
                    stack.enter_context(_unsafe_preserve_version_counter(value))
            self.project(strict=True)
            try:
                yield
            finally:
                with self._shards.stored(), torch.no_grad():
                    for value, old in before:
                        value.copy_(old)
        self._versions = self.versions() if self._shards else versions

    @contextmanager
    def premises_kept(self) -> Iterator[None]:
        """Certify inside the block, and leave what the next certificate rests on as it was."""
        left, boxes, starts = self.left_premises, dict(self._boxes), dict(self.monitor.starts)
        replaced = dict(self.monitor.replaced)
        try:
            yield
        finally:
            self._left, self._boxes, self.monitor.starts, self.monitor.replaced = left, boxes, starts, replaced

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the recurrent weights, by recurrence and role; of sharded ones there are none."""
        if self._shards:
            return {}
        return {name: value.detach().clone() for name, value in self._named().items()}

    def differing(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of :meth:`weights` that differ from the present ones, on the CPU."""
        present = self._named() if weights else {}
        return {name: value.cpu() for name, value in weights.items() if not torch.equal(value, present[name])}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Write back what :meth:`weights` or :meth:`differing` returned."""
        present = self._named() if weights else {}
        for name, value in weights.items():
            if name in present:
                present[name].copy_(value)

    def copy_out(self, state: dict[str, Any]) -> None:
        """Replace the entries of a ``state_dict`` that are recurrent weights by copies; those of sharded ones stay."""
        storages = {value.untyped_storage().data_ptr() for value in self._parameters()}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in storages:
                state[name] = value.detach().clone()

    def _parameters(self) -> list[Tensor]:
        return list({id(value): value for r in self.recurrences for value in r.parameters().values()}.values())

    def _named(self) -> dict[str, Tensor]:
        return {f"{r.name}/{role}": value for r in self.recurrences for role, value in r.parameters().items()}

    @property
    def refines(self) -> bool:
        """Whether a recurrence is projected in a norm that has to be looked for."""
        norm, projected = self.constraint.norm, (r for r in self.recurrences if not is_frozen(r))
        return any(r.checked_norm(norm) in ("full", "tight") for r in projected)

    @torch.no_grad()
    def refine(self, *, missing_only: bool = False) -> None:
        """Look for the norms in which steps are projected from now on, where the certificate has one to look for.

        It takes longer than a step, and changes what steps lead to: at validations, not whenever a checkpoint is made.

        Args:
            missing_only: Leave those alone that were found before, by this projector or in the run that is resumed.
        """
        if missing_only and self._after_steps.witnesses:
            return
        sources = self.input_sets()
        with self._shards.gathered():
            self._after_steps.refine(
                self._ready(sources), sources, self.constraint, margin=self._margin, training=self._training
            )

    @property
    def has_moved(self) -> bool:
        """Whether recurrent weights were written to since the last projection; torch counts writes on the host."""
        return self._versions != self.versions()

    def versions(self) -> list[tuple[int, int]]:
        """Return which parameters the recurrences hold, and how often each was written to."""
        with self._shards.stored():
            return [(id(value), value._version) for r in self.recurrences for value in r.parameters().values()]

    def certify(self, *, leading_only: bool = False) -> StabilityReport:
        """Certify the stored weights; see :func:`~lightning_stable.stability.certify.certify_recurrences`.

        What a run that was watched has left of the premises takes the guarantee back.

        Raises:
            ValueError: If weights, or the weights input sets are derived from, are NaN or infinite.
        """
        sources = self.input_sets()
        with self._shards.gathered():
            certified = partial(
                certify_recurrences,
                self.recurrences,
                sources,
                self.constraint.norm,
                self.constraint.state_bound,
                training=self._training,
                leading_only=leading_only,
                witnesses=self._after_steps.witnesses if leading_only else None,
                known=None if leading_only else self._known(self.recurrences, sources),
            )
            report = certified() if leading_only else self._remembered("report", self.recurrences, sources, certified)
            for certificate in report.layers:
                if math.isnan(certificate.rate):
                    raise ValueError(not_finite(certificate.name))
            report = self.without_broken_premises(report, sources, leading_only=leading_only)
        with self._shards.stored():
            self.monitor.accept_weights()
        return report

    def without_broken_premises(
        self, report: StabilityReport, sources: Sources | None = None, *, leading_only: bool = False
    ) -> StabilityReport:
        """Take back what a report claims and the run that was watched does not bear out.

        Args:
            report: Of the same recurrences, from this projector or another one.
            sources: The input sets, where they are at hand; asking for them is a collective operation.
            leading_only: As in :meth:`certify`.
        """
        sources = self.input_sets() if sources is None else sources
        with self._shards.gathered():
            unseen = self._collect(sources, leading_only)
        return report.revoked(self._left["reasons"] | unseen, self._left["excess"], self._left["windows"])

    def spectra(self) -> dict[str, Tensor]:
        """Return the spectra of the stored weights; see :func:`~lightning_stable.stability.spectra.layer_spectra`."""
        state_bound, sources = self.constraint.state_bound, self.input_sets()
        with self._shards.gathered():
            return layer_spectra(self.recurrences, sources, state_bound, training=self._training)

    def input_sets(self) -> Sources:
        """Return the input sets declared, derived, or recorded so far by all processes."""
        self._merge_ranges()
        self.follow_sources()
        return self.monitor.recorded() | self._present

    def follow_sources(self) -> None:
        """Read derived sets anew whose tensors are sharded, as a forward must not; a collective operation then."""
        self._present = gathered_sets(self._sources)
        self.monitor.know(self._present)

    @property
    def has_shards(self) -> bool:
        """Whether recurrent weights are sharded."""
        return bool(self._shards)

    def known_inputs(self, module_name: str) -> InputSet | None:
        """Return the input set of a module that is declared or derived; None if it was at most observed."""
        return self._sources.get(module_name)

    def _collect(self, sources: Sources, leading_only: bool) -> dict[str, str]:
        """Add what was left since the last report; return what could not be checked, which later calls may mend."""
        reasons, excess, windows = self._left["reasons"], self._left["excess"], self._left["windows"]
        inputs, starts, replaced, called = self._largest_excess(sources, leading_only)
        for r in self.recurrences:
            if replaced.get(r.module_name, 0.0) > 0:
                reasons[r.name] = _other_weights(r.module_name, self.monitor.replaced.get(r.module_name))
            if starts.get(r.name, 0.0) > _TOLERANCE:
                # Without inputs a rate holds in every state; windows start from the bounded ones all the same.
                (reasons if r.needs_drive else windows)[r.name] = (
                    f"A start state of {r.name!r} exceeds what is certified by {starts[r.name]:.4g}. Pass a larger "
                    "`state_bound`, or bound the start states in the model."
                )
            key = r.name if r.name in inputs else r.module_name
            if r.layer == 0 and inputs.get(key, 0.0) > 0:
                excess[r.name] = max(excess.get(r.name, 0.0), inputs[key])
                if r.needs_drive:
                    reasons[r.name] = (
                        f"Inputs of {key!r} lie outside its input set ({self._sources[key].describe()}) by "
                        f"{excess[r.name]:.4g}. Pass a larger `input_bound`, or clamp the inputs in the model."
                    )
        if not self.expects_forwards:
            return {}
        unseen = [r for r in self.recurrences if r.needs_drive and called[r.module_name] == 0]
        return {r.name: _unseen(r.module_name) for r in unseen}

    def _largest_excess(self, sources: Sources, leading_only: bool) -> tuple[dict[str, float], ...]:
        """Excess of inputs by the name of their set, of start states by layer; by module replaced weights, and calls.

        All of them are read on the host at once, and reduced in one shape, whatever each process has seen.
        """
        zero = torch.zeros((), device=self._device)
        starts = self._start_excess(sources, leading_only) if self.monitor.starts else {}
        self.monitor.starts = {}
        keys = (
            sorted(key for known in self.monitor.known.values() for key in known),
            [r.name for r in self.recurrences],
            list(self.monitor.modules),
            list(self.monitor.modules),
        )
        replaced, called = (
            {name: torch.ones_like(zero) for name in names} for names in (self.monitor.replaced, self.monitor.called)
        )
        found = [
            values.get(key, zero).to(zero)
            for names, values in zip(keys, (self.monitor.excess, starts, replaced, called), strict=True)
            for key in names
        ]
        largest = torch.stack(found)
        if self._reduce_max is not None:
            largest = self._reduce_max(largest)
        values = iter(largest.tolist())
        return tuple({key: next(values) for key in names} for names in keys)

    def _start_excess(self, sources: Sources, leading_only: bool) -> dict[str, Tensor]:
        """How far start states lie outside the states that the certificates admit, by layer.

        A state that is carried on was made with earlier weights: the boxes of the report before count too.
        """
        state_bound, found = self.constraint.state_bound, {}
        boxes_before, self._boxes = self._boxes, {}
        positions: dict[str, int] = {}
        known = None if leading_only else self._known(self.recurrences, sources)
        for layer in walk_layers(
            self.recurrences, sources, state_bound, self._training, leading_only=leading_only, known=known
        ):
            recurrence = layer.recurrence
            position = positions[recurrence.module_name] = positions.get(recurrence.module_name, -1) + 1
            parts = self.monitor.starts.get(recurrence.module_name)
            if parts is None or any(position >= len(part) for part in parts):
                continue
            boxes = recurrence.state_box(layer.weights, layer.drive, state_bound)
            if boxes is None:  # nothing is certified that a start state could leave
                continue
            if len(boxes[0]) != parts[0].shape[-1]:  # with `proj_size` the module is given outputs
                output = recurrence.output_bound(layer.weights, layer.drive, state_bound)
                boxes = (boxes[1].new_ones(()) if output is None else output.clamp(min=state_bound), *boxes[1:])
            self._boxes[recurrence.name] = boxes
            admitted = boxes_before.get(recurrence.name, boxes)
            excess = [
                (part[position] - torch.maximum(box, before).to(part)).amax()
                for part, box, before in zip(parts, boxes, admitted, strict=False)
            ]
            found[recurrence.name] = torch.stack(excess).amax().clamp(min=0)
        return found

    def unseen_inputs(self) -> list[str]:
        """Return the names of the recurrences that cannot be projected, because nothing is known about their inputs."""
        ready = self._ready(self.input_sets())
        return [r.name for r in self.recurrences if r not in ready]

    def recurrent_norms(self) -> dict[str, float]:
        """``||W||_F`` of the recurrent weights, by recurrence."""
        with self._shards.gathered():
            return {
                r.name: sum(block.norm().item() ** 2 for block in r.recurrent_blocks(r.weights()).values()) ** 0.5
                for r in self.recurrences
            }

    def _ready(self, sources: Sources) -> list[Recurrence]:
        """Return the recurrences that need no inputs, or whose inputs, or those of the first layer below, are known."""
        first = [r for r in self.recurrences if r.layer == 0]
        waiting = {r.module_name for r in first if not {r.name, r.module_name} & sources.keys()}
        return [r for r in self.recurrences if not r.needs_drive or r.name in sources or r.module_name not in waiting]

    def _merge_ranges(self) -> None:
        """Give all processes the same ranges: one collective, of the same shape whatever each of them has seen."""
        if self._reduce_max is None or not self.monitor.unknown:
            return
        ranges = self.monitor.ranges
        sizes = {r.module_name: r.input_size for r in self.recurrences if r.layer == 0}
        names = sorted(self.monitor.unknown)
        nothing = {name: torch.full((2, sizes[name]), -torch.inf, device=self._device) for name in names}
        merged = self._reduce_max(torch.cat([ranges.get(name, nothing[name]) for name in names], dim=1))
        for name, seen in zip(names, torch.split(merged, [sizes[name] for name in names], dim=1), strict=True):
            if name in ranges or seen.isfinite().all():  # elsewhere it may have been in use already
                ranges[name] = seen

    def _project_before_first_use(self, name: str) -> None:
        # Nothing was known about these inputs until now, and after this the module uses its weights. Other modules
        # may have used theirs: autograd would not forgive a change.
        if self._training:
            self.project(strict=True, module_name=name)

    def _known(self, recurrences: list[Recurrence], sources: Sources) -> dict[str, dict[str, Any]]:
        """Return the drives and contractions found so far for the present values."""
        return self._remembered("known", recurrences, sources, dict)

    def _remembered(
        self, name: str, recurrences: list[Recurrence], sources: Sources, compute: Callable[[], Result]
    ) -> Result:
        """Return what a verdict on the present weights is; whole weights of sharded ones are there for a moment."""
        return compute() if self._shards else self._verdicts(name, recurrences, sources, compute)

    def _keep_finite(self, ready: list[Recurrence], updates: list[Update]) -> list[Update]:
        """Return the old values of all parameters if any value, old or new, is not finite, decided on the device."""
        if not updates:
            return updates
        # What is stored shows more than what is new: a projection may change a part of the rows only.
        replaced = {id(parameter) for parameter, _ in updates}
        stored = [v.detach() for r in ready for v in r.parameters().values() if id(v) not in replaced]
        finite = linalg.all_finite(*(value for _, value in updates), *stored)
        if self._on_cpu:
            if finite.all():
                return updates
            check_finite(ready)  # with the name of a parameter, if it is one
            broken = updates[int(finite.to(torch.uint8).argmin())][0]
            whole = broken if broken._base is None else broken._base
            owner = next(r for r in self.recurrences if any(p is whole for p in r.parameters().values()))
            raise ValueError(not_finite(owner.name))
        return [(parameter, torch.where(finite.all(), value, parameter.detach())) for parameter, value in updates]


def _on_device(inputs: InputSet, device: torch.device) -> InputSet:
    """Return the set with its tensors on the device, so that no step waits for a copy; parameters stay."""
    moved = copy.copy(inputs)
    for name, value in vars(inputs).items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            setattr(moved, name, value.to(device))
    return moved


def _unseen(name: str) -> str:
    return (
        f"Nothing was compared with what the certificate of {name or 'the model'!r} rests on: no forward of it was "
        "seen in this run. Call the module instead of its functions. If the model was compiled and called before the "
        "fit, compile it anew."
    )


def _other_weights(name: str, parameter: str | None) -> str:
    what = "a parameter" if parameter is None else f"its parameter {parameter!r}"  # of another process
    return (
        f"A forward of {name or 'the model'!r} used something else in place of {what}, as "
        "torch.func.functional_call does, layers that compute their weights at every call, and a MixedPrecisionPolicy "
        "of fully_shard that rounds them. Certify the weights that are used."
    )


def _distance(updates: list[Update]) -> Tensor:
    squares = [(value.float() - parameter.detach().float()).square().sum() for parameter, value in updates]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
