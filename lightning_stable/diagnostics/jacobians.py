"""Products with the Jacobians of the steps of a run: gradients of the loss, and growth of perturbations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_stable import checks
from lightning_stable.diagnostics.finite import check_run, checked_inputs
from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.registry import recurrences_of
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate, stacks_of, take
from lightning_stable.truncation.windowed import Windowed

# The power method stops when no exponent grows by more than this, or by more than rounding.
_CONVERGED = 1e-10


@torch.no_grad()
def gradient_norms(
    recurrent: nn.Module,
    inputs: Any,
    output_gradients: Any = None,
    max_lag: int = 32,
    *,
    state: Any = None,
    state_gradients: Any = None,
    seed: int = 0,
) -> Tensor:
    """``||d loss_t / d h_{t - lag}||`` where ``loss_t`` is the loss as it depends on output ``t`` alone.

    The vector ``d loss_t / d h_t`` is pulled back through the Jacobians ``J_t, J_{t-1}, ...`` of the steps, at all
    ``t`` together: one pass over the sequence for every lag.

    Args:
        recurrent: As in :func:`~lightning_stable.diagnostics.measure_state_gradients`.
        inputs: As in :func:`~lightning_stable.diagnostics.measure_state_gradients`.
        output_gradients: ``d loss / d output``, laid out as the module's output (a tensor or a PackedSequence); None
            takes random unit directions in the state at every ``t`` instead, unless ``state_gradients`` are given.
        max_lag: Largest lag, at least 1. Lags that no sequence is long enough for are left out.
        state: The state before the first input, as the module takes it; zeros if None.
        state_gradients: ``d loss / d final state``, as the module returns that state, where the loss reads it.
        seed: Seeds the random directions; the global random state is not used.

    Returns:
        Norms of shape ``(max_lag + 1, time, batch)``, by ``t``, packed sequences in sorted order; NaN for ``t < lag``.
        ``max_lag`` is at most ``time - 1`` there.

    Raises:
        TypeError: If ``max_lag`` is no integer or ``recurrent`` no module.
        ValueError: If ``max_lag`` is not positive, the module is not recurrent, or is bidirectional or windowed,
            inputs, states or gradients do not fit it, or weights, inputs or states are NaN, infinite or complex.
    """
    max_lag, seed = checks.integer("max_lag", max_lag), checks.seed("seed", seed)
    run = _Run.of(recurrent, inputs, state)
    if output_gradients is None and state_gradients is None:
        cotangent = _normed(_random(run.after, seed))[0]
        cotangent = _masked(run.valid, cotangent, _zeros(cotangent))
    else:
        cotangent = run.cotangent(output_gradients, state_gradients)
    _, pull = _pulled_back(lambda states: run.stack.step(run.inputs, states), run.before)
    time = len(run.inputs)
    lags = min(max_lag + 1, time)
    norms = run.inputs.new_full((lags, *run.inputs.shape[:2]), torch.nan)
    none = _zeros(take(run.after, slice(0, 1)))
    for lag in range(lags):
        if lag:  # what belongs to the state before a step belongs to the step before
            cotangent = concatenate(take(pull(cotangent)[0], slice(1, None)), none)
        norms[lag, lag:] = _norm(cotangent)[: time - lag]
    return norms


@torch.no_grad()
def lyapunov_exponents(
    recurrent: nn.Module, inputs: Any, *, state: Any = None, max_iterations: int = 100, seed: int = 0
) -> Tensor:
    """``log ||J_T ... J_1|| / T``: the finite-time Lyapunov exponent of the run of every sequence.

    The spectral norm of the product of the steps' Jacobians comes from the power method on ``P^T P``, with products
    renormalised at every step, so that long sequences neither overflow nor vanish. An exponent from a power method that
    was stopped early is too small.

    Args:
        recurrent: As in :func:`~lightning_stable.diagnostics.measure_state_gradients`.
        inputs: As in :func:`~lightning_stable.diagnostics.measure_state_gradients`.
        state: As in :func:`gradient_norms`.
        max_iterations: Largest number of iterations of the power method, which stops by itself when no exponent grows.
        seed: Seeds its first vectors; the global random state is not used.

    Returns:
        Exponents of shape ``(batch,)``, packed sequences in sorted order; minus infinity where nothing is left of any
        perturbation.

    Raises:
        TypeError: If ``max_iterations`` is no integer or ``recurrent`` no module.
        ValueError: If ``max_iterations`` is not positive, or as :func:`gradient_norms`.
    """
    max_iterations, seed = checks.integer("max_iterations", max_iterations), checks.seed("seed", seed)
    run = _Run.of(recurrent, inputs, state)
    steps = [run.linear_step(position) for position in range(len(run.inputs))]
    lengths = run.valid.sum(0)
    vector, before = _normed(_random(take(run.before, slice(0, 1)), seed))[0], None
    tolerance = max(_CONVERGED, 64 * torch.finfo(run.inputs.dtype).eps)
    for _ in range(max_iterations):
        vector, _ = _through([push for push, _ in steps], vector)
        vector, growth = _through([pull for _, pull in reversed(steps)], vector)
        exponents = growth / lengths
        if before is not None and not ((exponents - before).abs() > tolerance).any():
            return exponents
        before = exponents
    assert before is not None
    return before


@dataclass(frozen=True)
class _Run:
    """A run of a module, in shapes ``(time, batch, ...)``; ``valid`` says which positions are no padding."""

    stack: Stack
    layout: Layout
    cell: bool
    inputs: Tensor
    before: States
    after: States
    valid: Tensor

    @classmethod
    def of(cls, recurrent: nn.Module, values: Any, state: Any) -> _Run:
        stack = _stack_of(recurrent)
        checked_inputs(values)
        parts = state if isinstance(state, (tuple, list)) else () if state is None else (state,)
        check_run(recurrences_of(recurrent), values.data, *(checks.real_tensor("state", part) for part in parts))
        dtype = next(recurrent.parameters()).dtype
        layout = Layout.of(recurrent, values.to(dtype), "inputs")
        inputs, cell = layout.inputs, not stack.layers[0].takes_sequences
        if not len(inputs):
            raise ValueError(f"`inputs` must have at least one step. Got shape {tuple(inputs.shape)}.")
        state = _to(state, dtype)
        if cell:
            start = stack.zeros(inputs[:1]) if state is None else (_cell_state(state),)
        else:
            layout.check(recurrent, None, "inputs")
            try:
                layout.check(recurrent, state)
                (start,) = layout.starts((stack,), state)
            except (AttributeError, IndexError, RuntimeError, TypeError) as error:  # torch's own, of many kinds
                raise ValueError(f"`state` must be one that the module takes. Got {error}.") from error
        wanted = [part.shape for layer in stack.zeros(inputs[:1]) for part in layer]
        shapes = [part.shape for layer in start for part in layer]
        if shapes != wanted:
            raise ValueError(
                f"`state` must have parts of shapes {[tuple(shape[1:]) for shape in wanted]}. "
                f"Got {[tuple(shape[1:]) for shape in shapes]}."
            )
        after = head_rows(stack, inputs, start)
        before = concatenate(start, take(after, slice(0, -1)))
        return cls(stack, layout, cell, inputs, before, after, layout.valid)

    def cotangent(self, output_gradients: Any, state_gradients: Any) -> States:
        """``d loss_t / d h_t`` at every position, from the gradients of what the module returns."""
        cotangent = _zeros(self.after)
        dtype = self.inputs.dtype
        if output_gradients is not None:
            gradients = self._as_inputs(output_gradients).to(dtype)
            output, pull = _pulled_back(self.stack.output, self.after)
            if gradients.shape != output.shape:
                raise ValueError(
                    f"`output_gradients` must have the shape of the output, {tuple(output.shape)} in time-first order. "
                    f"Got {tuple(gradients.shape)}."
                )
            (cotangent,) = pull(gradients)
        if state_gradients is not None:
            last = self._as_state(state_gradients)
            lanes = torch.arange(self.inputs.shape[1], device=self.inputs.device)
            for layer, gradients_of_layer in zip(cotangent, last, strict=True):
                for part, gradient in zip(layer, gradients_of_layer, strict=True):
                    part[self.valid.sum(0) - 1, lanes] += gradient[0]
        return cotangent

    def _as_state(self, values: Any) -> Any:
        for part in values if isinstance(values, (tuple, list)) else (values,):
            checks.real_tensor("state_gradients", part)
        try:
            (last,) = self.layout.starts((self.stack,), _to(values, self.inputs.dtype))
            shapes = [part.shape for layer in last for part in layer]
        except (IndexError, RuntimeError, ValueError):
            shapes = []
        wanted = [part[:1].shape for layer in self.before for part in layer]
        if shapes != wanted:
            raise ValueError("`state_gradients` must have the shape of the final state. Got others.")
        return last

    def _as_inputs(self, values: Any) -> Tensor:
        is_packed = isinstance(values, PackedSequence)
        if not (is_packed or isinstance(values, Tensor)) or (is_packed and self.layout.packed is None):
            raise TypeError(f"`output_gradients` must be laid out as the output. Got {checks.shown(values)}.")
        if self.layout.packed is not None:
            return self.layout.padded(values.data)
        gradients = checks.real_tensor("output_gradients", values)
        if not self.layout.batched:
            return gradients.unsqueeze(1)
        return gradients.transpose(0, 1) if self.layout.batch_first else gradients

    def linear_step(self, position: int) -> tuple[Callable[[States], States], Callable[[States], States]]:
        """``J v`` and ``J^T v`` for the Jacobian of one step; sequences that are over stand still."""
        now = slice(position, position + 1)
        inputs, before, valid = self.inputs[now], take(self.before, now), self.valid[now]

        def step(states: States) -> States:
            return self.stack.step(inputs, states)

        _, pull = _pulled_back(step, before)

        def push(tangent: States) -> States:
            return _masked(valid, torch.func.jvp(step, (before,), (tangent,))[1], tangent)

        return push, lambda cotangent: _masked(valid, pull(cotangent)[0], cotangent)


def _pulled_back(function: Callable[[States], Any], states: States) -> tuple[Any, Callable[[Any], tuple[States]]]:
    """The value of a function and the product with its transposed Jacobian."""
    value_and_pull: Any = torch.func.vjp(function, states)
    value, pull = value_and_pull
    return value, pull


def _stack_of(recurrent: nn.Module) -> Stack:
    checks.module("recurrent", recurrent)
    recurrences = recurrences_of(recurrent)
    if reason := unmeasured(recurrences):
        raise ValueError(f"State gradients are measured on recurrent modules with one direction. Got {reason}.")
    return stacks_of(recurrent)[0]


def unmeasured(recurrences: Sequence[Recurrence]) -> str:
    """Return why a recurrent module with these recurrences cannot be measured; empty if it can."""
    kind = type(recurrences[0].module).__name__
    if isinstance(recurrences[0].module, Windowed):
        return f"{kind}, whose states reach back to the beginning of a window and no further"
    if len({recurrence.direction for recurrence in recurrences}) > 1:
        return f"a bidirectional {kind}, whose layers have no common direction of time"
    return ""


def _through(maps: Sequence[Callable[[States], States]], vector: States) -> tuple[States, Tensor]:
    """The normed image of a normed vector under all maps, and the logarithm of the factor taken out, ``(batch,)``."""
    growth = torch.zeros((), dtype=torch.float64, device=vector[0][0].device)
    if vector[0][0].device.type == "mps":  # has no float64
        growth = growth.float()
    for apply in maps:
        vector, size = _normed(apply(vector))
        growth = growth + size.log()
    return vector, growth[0]


def _normed(states: States) -> tuple[States, Tensor]:
    size = _norm(states)
    divisor = size.where(size > 0, 1.0)[..., None]
    return tuple(tuple(part / divisor for part in layer) for layer in states), size


def _norm(states: States) -> Tensor:
    """The norm over all layers and parts, shape ``(rows, batch)``."""
    parts = [torch.linalg.vector_norm(part, dim=-1) for layer in states for part in layer]
    size: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return size


def _masked(where: Tensor, states: States, others: States) -> States:
    pairs = [zip(*layers, strict=True) for layers in zip(states, others, strict=True)]
    return tuple(tuple(part.where(where[..., None], other) for part, other in pair) for pair in pairs)


def _zeros(states: States) -> States:
    return tuple(tuple(torch.zeros_like(part) for part in layer) for layer in states)


def _random(states: States, seed: int) -> States:
    generator = torch.Generator().manual_seed(seed)
    return tuple(tuple(torch.randn(part.shape, generator=generator).to(part) for part in layer) for layer in states)


def _to(state: Any, dtype: torch.dtype) -> Any:
    """A state in this dtype, without history."""
    if isinstance(state, (tuple, list)):
        return tuple(part.detach().to(dtype) for part in state)
    return None if state is None else state.detach().to(dtype)


def _cell_state(state: Any) -> tuple[Tensor, ...]:
    """As one row of a stack with a single layer."""
    return tuple(part.reshape(1, -1, part.shape[-1]) for part in (state if isinstance(state, tuple) else (state,)))
