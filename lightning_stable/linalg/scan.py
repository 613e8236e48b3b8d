"""Whole sequences of ``h_t = a_t h_(t-1) + b_t``, where the coefficients do not depend on the states.

The maps ``h -> a h + b`` are closed under composition, so a sequence is evaluated in pieces side by side: first the map
of every piece, then the states between the pieces, then all states. With about ``sqrt(3 time)`` pieces that makes
about ``2 sqrt(3 time)`` steps in place of ``time``. There is no division: products of small ``a`` may underflow to 0,
where they no longer matter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Shorter sequences are run step by step.
_SHORTEST = 8


def linear_scan(factors: Tensor, terms: Tensor, start: Tensor, *, reverse: bool = False) -> Tensor:
    """``h_t = a_t h_(t-1) + b_t``: return all states.

    Args:
        factors: ``a``, shape ``(time, ...)``.
        terms: ``b``, of the same shape.
        start: ``h`` before the first step, shape ``(...)``.
        reverse: Whether to run from the last position to the first.

    Returns:
        The states after every step, at the position of the step, shape ``(time, ...)``.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # a program has no autograd functions
        return _steps(factors, terms, start, reverse)
    states: Tensor = _Scan.apply(factors, terms, start, reverse)  # type: ignore[no-untyped-call]
    return states


def composed(factors: Tensor, terms: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """Return the maps of all steps up to a position together, ``h -> A_t h + B_t``, shapes ``(time, ...)``.

    Args:
        factors: As in :func:`linear_scan`.
        terms: As in :func:`linear_scan`.
        reverse: As in :func:`linear_scan`.
    """
    zero = torch.zeros_like(terms[0])
    scales = linear_scan(factors, torch.zeros_like(terms), zero + 1, reverse=reverse)
    return scales, linear_scan(factors, terms, zero, reverse=reverse)


def _steps(factors: Tensor, terms: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """Run step by step."""
    states, state = [], start
    order = range(len(factors))
    for position in reversed(order) if reverse else order:
        state = torch.addcmul(terms[position], factors[position], state)
        states.append(state)
    return torch.stack(states[::-1] if reverse else states)


class _Scan(torch.autograd.Function):
    """The gradients of the states obey the reverse recurrence ``g_t = dL/dh_t + a_(t+1) g_(t+1)``."""

    @staticmethod
    def forward(factors: Tensor, terms: Tensor, start: Tensor, reverse: bool) -> Tensor:
        return _pieces(factors, terms, start, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        factors, _, start, ctx.reverse = inputs
        ctx.save_for_backward(factors, start, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factors, start, states = ctx.saved_tensors
        if ctx.reverse:
            later = linear_scan(factors[:-1], grad[1:], grad[0])
            grad = torch.cat((grad[:1], later))
            before, first = torch.cat((states[1:], start[None])), -1
        else:
            later = linear_scan(factors[1:], grad[:-1], grad[-1], reverse=True)
            grad = torch.cat((later, grad[-1:]))
            before, first = torch.cat((start[None], states[:-1])), 0
        of_start = grad[first] * factors[first] if ctx.needs_input_grad[2] else None
        return grad * before, grad, of_start, None


def _pieces(factors: Tensor, terms: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """Run the pieces side by side, then what is left of the sequence."""
    time = len(factors)
    states = torch.empty_like(terms, memory_format=torch.contiguous_format)
    count = math.isqrt(3 * time)
    length = time // count if time >= _SHORTEST else 0
    whole = count * length
    rest = range(whole, time)
    if whole:
        pieces = slice(time - whole, time) if reverse else slice(whole)
        shape = (count, length, *terms.shape[1:])
        a, b, h = (value[pieces].view(shape).unbind(1) for value in (factors, terms, states))
        order = range(length - 1, -1, -1) if reverse else range(length)
        # The map of every piece.
        scale, shift = a[order[0]].clone(), b[order[0]].clone()
        for step in order[1:]:
            scale.mul_(a[step])
            torch.addcmul(b[step], a[step], shift, out=shift)
        # The states before the pieces take the place of the maps.
        state = start
        scales, shifts, befores = scale.unbind(0), shift.unbind(0), torch.empty_like(shift)
        for piece, before in list(enumerate(befores.unbind(0)))[:: -1 if reverse else 1]:
            before.copy_(state)
            state = torch.addcmul(shifts[piece], scales[piece], state)
        state = befores
        for step in order:
            torch.addcmul(b[step], a[step], state, out=h[step])
            state = h[step]
        start = state[0] if reverse else state[-1]
        rest = range(time - whole - 1, -1, -1) if reverse else rest
    elif reverse:
        rest = range(time - 1, -1, -1)
    for position in rest:
        torch.addcmul(terms[position], factors[position], start, out=states[position])
        start = states[position]
    return states
