"""Windows of torch's own cells in one autograd function: :func:`rows.window_rows`, several times faster.

Rows are evaluated in blocks that fit the caches of a CPU. What the backward pass needs is either kept, or computed once
more for each block; in the second case only the inputs are saved, whatever the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_stable.truncation.exact.kernels import Kernel, KernelWeights, Parts, kernel_of
from lightning_stable.truncation.exact.stack import Stack, States, concatenate

Step = Callable[[int, States], States]
# Rows times batch of a block, whose gates stay in a core's cache. On an accelerator all rows are one block.
_CPU_BLOCK = 512
# The backward pass keeps up to this many bytes, and computes what it needs once more beyond.
KEEP_BYTES = 128 * 2**20


def fused_kernels(stack: Stack) -> tuple[Kernel, ...] | None:
    """Return the kernels of all layers; None if a layer has none."""
    kernels = tuple(kernel for layer in stack.layers if (kernel := kernel_of(layer)) is not None)
    return kernels if len(kernels) == len(stack.layers) else None


def fused_window_rows(
    stack: Stack,
    kernels: tuple[Kernel, ...],
    inputs: Tensor,
    window: int,
    *,
    first: int = 0,
    starts: States | None = None,
    masks: Sequence[Tensor] = (),
    recompute: bool | None = None,
) -> States:
    """Return what :func:`rows.window_rows` does; ``recompute=None`` decides by the size of what would be kept."""
    time, batch, _ = inputs.shape
    weights = [kernel.weights(layer.parameters()) for kernel, layer in zip(kernels, stack.layers, strict=True)]
    if not torch.is_grad_enabled():
        recompute = True
    if recompute is None:
        # The gates, and about half as much for states and what is made of them.
        columns = 1.5 * sum(len(layer_weights.hidden) for layer_weights in weights)
        recompute = (time - first) * batch * min(window, time) * columns * inputs.element_size() > KEEP_BYTES
    plan = _Plan(kernels, window, first, time, batch, recompute, starts is not None, len(masks))
    return _evaluated(plan, inputs, weights, starts, masks)


def fused_advance_rows(
    stack: Stack, kernels: tuple[Kernel, ...], inputs: Tensor, rows: States, masks: Sequence[Tensor] = ()
) -> States:
    """Return what :func:`rows.advance_rows` does; the backward pass, which is seldom needed, evaluates once more."""
    weights = [kernel.weights(layer.parameters()) for kernel, layer in zip(kernels, stack.layers, strict=True)]
    starts = concatenate(stack.zeros(inputs), rows)
    count = len(starts[0][0])
    plan = _Plan(kernels, len(inputs), 0, count, inputs.shape[1], True, True, len(masks), together=True)
    return _evaluated(plan, inputs, weights, starts, masks)


def fused_step(stack: Stack, kernels: tuple[Kernel, ...], inputs: Tensor) -> Step:
    """Return what :func:`evaluate.step_of` does."""
    weights = [kernel.weights(layer.parameters()) for kernel, layer in zip(kernels, stack.layers, strict=True)]
    projected = _projected(inputs, weights[0])

    @torch.no_grad()
    def step(first: int, states: States) -> States:
        pre = projected[first:].flatten(0, 1)
        advanced: list[Parts] = []
        for index, (kernel, own) in enumerate(zip(kernels, weights, strict=True)):
            if index:
                pre = torch.addmm(own.bias, advanced[-1][0], own.inputs.t())
            before = tuple(part.flatten(0, 1) for part in states[index])
            advanced.append(kernel.step(pre, before, own)[0])
        return tuple(tuple(part.view(-1, inputs.shape[1], part.shape[1]) for part in state) for state in advanced)

    return step


def _projected(inputs: Tensor, weights: KernelWeights) -> Tensor:
    """What the lowest layer's gates get from the inputs, shape ``(time, batch, gates * units)``."""
    flat = torch.addmm(weights.bias, inputs.flatten(0, 1), weights.inputs.t())
    return flat.view(*inputs.shape[:2], flat.shape[1])


def _evaluated(
    plan: _Plan, inputs: Tensor, weights: Sequence[KernelWeights], starts: States | None, masks: Sequence[Tensor]
) -> States:
    flat_starts = [part for state in starts or () for part in state]
    flat_weights = [tensor for layer_weights in weights for tensor in layer_weights]
    results = _FusedRows.apply(  # type: ignore[no-untyped-call]
        plan, inputs, *flat_weights, *flat_starts, *masks
    )
    return _by_layer(plan.kernels, list(results))


@dataclass(frozen=True)
class _Plan:
    kernels: tuple[Kernel, ...]
    window: int
    first: int
    time: int
    batch: int
    recompute: bool
    started: bool
    masks: int
    together: bool = False  # All rows take the same input at a step; otherwise each that of its own window.

    @property
    def parts(self) -> int:
        return sum(kernel.parts for kernel in self.kernels)

    def blocks(self, device: torch.device) -> list[tuple[int, int]]:
        size = max(1, _CPU_BLOCK // max(1, self.batch) if device.type == "cpu" else self.time - self.first)
        return [(low, min(low + size, self.time)) for low in range(self.first, self.time, size)]

    def joined(self, low: int, high: int) -> int:
        """The lowest row of a block that is there from its first step on without a start of its own."""
        return high if self.together else max(low, min(self.window, high))

    def steps(self, low: int, high: int) -> list[tuple[int, slice]]:
        """For every step of a block: its lowest row that has begun, and the positions of its rows."""
        # A window longer than the sequence has steps in which no row has begun.
        begun = [max(low, self.window - step) for step in range(max(1, self.window - high + 1), self.window + 1)]
        skipped = self.window - len(begun)
        return [
            (
                row,
                slice(step - 1, step) if self.together else slice(row - self.window + step, high - self.window + step),
            )
            for step, row in enumerate(begun, start=skipped + 1)
        ]


def _by_layer(kernels: tuple[Kernel, ...], flat: list[Tensor]) -> States:
    taken = iter(flat)
    return tuple(tuple(next(taken) for _ in range(kernel.parts)) for kernel in kernels)


@dataclass
class _Step:
    """What one layer leaves of one step."""

    saved: Parts
    before: Parts | None
    after: Parts
    inputs: Tensor | None  # of upper layers


class _Run:
    """The tensors of one call, and the evaluation of a block of rows."""

    def __init__(self, plan: _Plan, inputs: Tensor, rest: Sequence[Tensor], projected: Tensor | None = None) -> None:
        layers = len(plan.kernels)
        flat, rest = rest[: 4 * layers], rest[4 * layers :]
        self.plan, self.inputs = plan, inputs
        self.weights = [KernelWeights(*flat[4 * layer : 4 * layer + 4]) for layer in range(layers)]
        self.projected = _projected(inputs, self.weights[0]) if projected is None else projected
        self.starts = _by_layer(plan.kernels, list(rest[: plan.parts])) if plan.started else None
        self.masks = rest[len(rest) - plan.masks :]

    def block(self, low: int, high: int, tape: list[list[_Step]] | None) -> list[Parts]:
        """States of the rows ``low .. high - 1``, one tuple of parts per layer; steps are written to the tape."""
        plan, batch = self.plan, self.plan.batch
        states: list[Parts | None] = [None] * len(plan.kernels)
        joined = plan.joined(low, high)
        for row, now in plan.steps(low, high):
            if row < joined:
                states = [self._join(layer, states[layer], low, row, joined, high) for layer in range(len(states))]
                joined = row
            pre, inputs = self.at(self.projected, now, high - row), None
            entries = []
            for layer, (kernel, weights) in enumerate(zip(plan.kernels, self.weights, strict=True)):
                if inputs is not None:
                    pre = torch.addmm(weights.bias, inputs, weights.inputs.t())
                before = states[layer]
                after, saved = kernel.step(pre, before, weights)
                states[layer] = after
                entries.append(_Step(saved, before, after, inputs))
                inputs = after[0]
                if layer < plan.masks:
                    inputs = inputs * self.at(self.masks[layer], now, high - row)
            if tape is not None:
                tape.append(entries)
        return [tuple(part.view(high - low, batch, part.shape[1]) for part in state or ()) for state in states]

    @staticmethod
    def at(values: Tensor, now: slice, rows: int) -> Tensor:
        return values[now].expand(rows, -1, -1).flatten(0, 1)

    def _join(self, layer: int, state: Parts | None, low: int, row: int, joined: int, high: int) -> Parts:
        """Put the rows ``row .. joined - 1``, in the states they start from, in front of those that have begun."""
        assert self.starts is not None
        first = self.plan.first
        begun = tuple(part[row - first : joined - first].flatten(0, 1) for part in self.starts[layer])
        if joined == high:
            return begun
        if state is None:
            count = (high - joined) * self.plan.batch
            state = tuple(part.new_zeros(count, part.shape[1]) for part in begun)
        return tuple(torch.cat(pair) for pair in zip(begun, state, strict=True))


class _FusedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, inputs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        run = _Run(plan, inputs, rest)
        tapes: list[list[list[_Step]]] = []
        results = [
            inputs.new_empty(plan.time - plan.first, plan.batch, weights.hidden.shape[1])
            for kernel, weights in zip(plan.kernels, run.weights, strict=True)
            for _ in range(kernel.parts)
        ]
        for low, high in plan.blocks(inputs.device):
            tape: list[list[_Step]] | None = [] if not plan.recompute else None
            flat = [part for state in run.block(low, high, tape) for part in state]
            for result, part in zip(results, flat, strict=True):
                result[low - plan.first : high - plan.first] = part
            if tape is not None:
                tapes.append(tape)
        ctx.plan, ctx.tapes = plan, tapes
        ctx.save_for_backward(run.projected, inputs, *rest)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # torch would take what is computed here for constants
            raise RuntimeError("There are no gradients of gradients of windowed layers. Got `create_graph=True`.")
        plan: _Plan = ctx.plan
        projected, inputs, *rest = ctx.saved_tensors
        gradients = _Gradients(_Run(plan, inputs, rest, projected))
        for index, (low, high) in enumerate(plan.blocks(inputs.device)):
            rows = slice(low - plan.first, high - plan.first)
            flat = [None if grad is None else grad[rows].flatten(0, 1) for grad in grads]
            tape: list[list[_Step]] = ctx.tapes[index] if ctx.tapes else []
            if not tape:
                gradients.run.block(low, high, tape)
            gradients.block(low, high, tape, flat)
            if ctx.tapes:
                ctx.tapes[index] = []
        return (None, *gradients.flat(needed=ctx.needs_input_grad[1]))


class _Gradients:
    """Gradients of one call, summed over its blocks."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.projected = torch.zeros_like(run.projected)
        # Transposed in memory, as the products below leave their results.
        self.weights = [KernelWeights(*(tensor.new_zeros(tensor.shape[::-1]).t() for tensor in w)) for w in run.weights]
        self.starts = None if run.starts is None else [[torch.zeros_like(p) for p in state] for state in run.starts]
        self.masks = len(run.masks)

    def block(self, low: int, high: int, tape: list[list[_Step]], flat: list[Tensor | None]) -> None:
        """Go through a block's steps backwards; ``flat`` are the gradients of its last states."""
        run, plan, batch = self.run, self.run.plan, self.run.plan.batch
        taken = iter(flat)
        states: list[list[Tensor | None]] = [[next(taken) for _ in range(kernel.parts)] for kernel in plan.kernels]
        steps = plan.steps(low, high)
        for index in range(len(steps) - 1, -1, -1):
            row, now = steps[index]
            below: Tensor | None = None  # gradient of the output of the layer, from the one above
            for layer in range(len(plan.kernels) - 1, -1, -1):
                kernel, weights, entry = plan.kernels[layer], run.weights[layer], tape[index][layer]
                grads = states[layer]
                if below is not None:
                    grads[0] = below if grads[0] is None else grads[0] + below
                    below = None
                if grads[0] is None:
                    if all(grad is None for grad in grads):
                        continue
                    grads[0] = torch.zeros_like(entry.after[0])
                pre, hidden, states[layer] = kernel.backward(entry.saved, entry.before, entry.after, grads, weights)
                own = self.weights[layer]
                if entry.before is not None:
                    own.hidden.t().addmm_(entry.before[0].t(), hidden)
                if len(own.hidden_bias):
                    own.hidden_bias.add_(hidden[:, -len(own.hidden_bias) :].sum(0))
                if layer == 0:
                    own_inputs = self.projected[now]
                    own_inputs += pre.view(high - row, batch, pre.shape[1]).sum_to_size(own_inputs.shape)
                else:
                    assert entry.inputs is not None
                    own.inputs.t().addmm_(entry.inputs.t(), pre)
                    own.bias.add_(pre.sum(0))
                    below = pre @ weights.inputs
                    if layer - 1 < plan.masks:
                        below *= run.at(run.masks[layer - 1], now, high - row)
            self._leave(index, steps, states, low, high)

    def _leave(
        self, index: int, steps: list[tuple[int, slice]], states: list[list[Tensor | None]], low: int, high: int
    ) -> None:
        """Rows that joined with this step hand their gradients to the states they started from."""
        plan, batch, row = self.run.plan, self.run.plan.batch, steps[index][0]
        joined = steps[index - 1][0] if index else plan.joined(low, high)
        if row >= joined or self.starts is None:
            return
        count = (joined - row) * batch
        for layer, grads in enumerate(states):
            for part, grad in enumerate(grads):
                if grad is not None:
                    rows = slice(row - plan.first, joined - plan.first)
                    self.starts[layer][part][rows] = grad[:count].view(joined - row, batch, grad.shape[1])
                    grads[part] = grad[count:]

    def flat(self, *, needed: bool) -> list[Tensor | None]:
        """In the order of the function's arguments; whether those of the inputs are needed."""
        projected, inputs = self.projected.flatten(0, 1), self.run.inputs
        lowest = self.weights[0]
        lowest.inputs.t().addmm_(inputs.flatten(0, 1).t(), projected)
        lowest.bias.add_(projected.sum(0))
        own = (projected @ self.run.weights[0].inputs).view_as(inputs) if needed else None
        weights = [tensor for layer_weights in self.weights for tensor in layer_weights]
        starts = [] if self.starts is None else [part for state in self.starts for part in state]
        return [own, *weights, *starts, *[None] * self.masks]
