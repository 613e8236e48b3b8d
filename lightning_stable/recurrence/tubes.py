"""One step of a run and of all runs around it, cell by cell: ``phi`` in the arithmetic of :mod:`around`.

Every class is the formula of its cell once more. The intervals hold what the cell makes of *any* state and input in the
intervals before the step. Where a gate is nearly open or closed at the run's own input they are far smaller than what
holds for all inputs; this is what a bound for given inputs gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable.cells.input_gated import normalized_leak
from lightning_stable.recurrence.around import ROUNDING, Affine, Around, Ball, euclidean, mix

State = tuple[Tensor, ...]
Arounds = tuple[Around, ...]


class Metric(NamedTuple):
    """A quadratic norm in which the recurrent weights contract, as numbers that can be part of a program.

    Attributes:
        rate: ``||D W e|| <= rate ||e||`` for all diagonal ``D`` between 0 and 1.
        scale: ``||e|| <= stretch ||e / scale||_2``, shape ``(units,)``.
        entries: ``|e_j| <= entries_j ||e||``, shape ``(units,)``.
        reach: ``|w_j e| <= reach_j ||e||`` for the rows of ``W``, shape ``(units,)``.
        stretch: See ``scale``.
        gain: ``||e||_2 <= gain ||e||``.
    """

    rate: float
    scale: tuple[float, ...]
    entries: tuple[float, ...]
    reach: tuple[float, ...]
    stretch: float
    gain: float


class Tube:
    """A step of a cell on enclosures of its state; the base of those below, and of a user's own.

    Args:
        weights: Weights by role; ``weight_x`` comes with ``bias_x`` or without.
        metric: A norm in which the recurrent weights contract, where the adapter's ``tube_norm`` names one.
    """

    def __init__(self, weights: Mapping[str, Tensor], metric: Metric | None = None) -> None:
        self.maps = {
            role: Affine.of(weight, weights.get(role.replace("weight", "bias")))
            for role, weight in weights.items()
            if role.startswith("weight")
        }
        self.metric = metric

    def drive(self, inputs: Around | Tensor) -> Ball:
        """Return what inputs, ``(..., input_size)``, add to the gates; a tensor is the same input for all runs."""
        return self.maps["weight_ih"](inputs)

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """Return the state after a step, in the parts of the adapter's ``step``.

        Args:
            driven: From :meth:`drive`.
            state: The state before the step, shapes ``(..., units)``.
        """
        raise NotImplementedError

    def begin(self, state: Arounds) -> State:
        """Return what is carried from step to step: the values first, in the parts of the adapter's ``step``."""
        return packed(state)

    def step(self, driven: Ball, state: State) -> State:
        """Step what is carried."""
        return packed(self(driven, self.arounds(state)))

    def arounds(self, state: State) -> Arounds:
        """Return the enclosures of the cell's own parts from what is carried."""
        return unpacked(state)

    def spread(self, output: Around, state: State) -> Tensor:
        """Return a bound on the Euclidean norm of the difference of the outputs, shape ``(...)``."""
        return euclidean(output.radius)


class LSTMTube(Tube):
    """``c' = f c + i g``, ``h' = o tanh(c')``, and ``W_hr h'`` with ``proj_size``."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """The intervals of ``f c`` and ``i g`` have their ends at ends of those of the factors."""
        hidden, cell = state
        i, f, g, o = (driven + self.maps["weight_hh"](hidden)).chunk(4)
        kept = cell.gated(f.map(torch.sigmoid))
        after = (kept + g.tanh().gated(i.map(torch.sigmoid))).widened(cell.magnitude + 2)
        shown = after.tanh().gated(o.map(torch.sigmoid)).widened(2.0)
        return self.maps["weight_hr"](shown).around if "weight_hr" in self.maps else shown, after


class GRUTube(Tube):
    """``n = tanh(U_n x + b + r (W_n h + b_hn))``, ``h' = (1 - z) n + z h``."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """The interval of ``r (W_n h + b_hn)`` has its ends at ends of those of the factors."""
        (hidden,) = state
        r_in, z_in, n_in = driven.chunk(3)
        r_h, z_h, n_h = self.maps["weight_hh"](hidden).chunk(3)
        reset, multiplied = (r_in + r_h).map(torch.sigmoid), n_h.around
        pre = (n_in.around + multiplied.gated(reset)).widened(n_in.value.abs() + multiplied.magnitude)
        return (mix((z_in + z_h).map(torch.sigmoid), hidden, pre.tanh()),)


class UGRNNTube(Tube):
    """``c = tanh(W_c h + U_c x + b)``, ``h' = g h + (1 - g) c``."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """Gate and candidate have intervals of their own."""
        gate, candidate = (driven + self.maps["weight_hh"](state[0])).chunk(2)
        return (mix(gate.map(torch.sigmoid), state[0], candidate.tanh()),)


class IntersectionTube(UGRNNTube):
    """``h`` as a UGRNN, ``y = g_y p + (1 - g_y) relu(a)`` with what passes, ``p``, and ``h`` before the step."""

    def drive(self, inputs: Around | Tensor) -> Ball:
        """Return what drives the state, what drives the output, and what passes, one behind the other."""
        parts = [super().drive(inputs), self.maps["weight_iy"](inputs)]
        if "weight_ix" in self.maps:
            parts.append(self.maps["weight_ix"](inputs))
        elif isinstance(inputs, Around):
            parts.append(Ball(inputs.value, inputs.radius))
        else:
            parts.append(Ball(inputs, torch.zeros_like(inputs[..., :1])))
        joined = torch.cat([part.value for part in parts], dim=-1)
        radii = torch.cat([part.radius for part in parts], dim=-1)
        return Ball(joined, radii if isinstance(inputs, Around) else radii.amax(-1, keepdim=True))

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """``y`` is a mean as ``h`` is."""
        units = state[0].value.shape[-1]
        of_state, of_output, passed = driven.split((2 * units, 2 * units, units))
        gate, candidate = (of_output + self.maps["weight_hy"](state[0])).chunk(2)
        output = mix(gate.map(torch.sigmoid), passed.around, candidate.map(torch.relu))
        return *super().__call__(of_state, state), output


class NormTube(Tube):
    """A tube that carries the distance of the states in the norm of a certificate as well, as a part of the state.

    Entry by entry ``|W| u`` grows where ``W`` does not, by up to the root of the number of units. With the distance
    ``d`` the two cut each other back: ``|w_j (h' - h)| <= reach_j d``.
    """

    def __init__(self, weights: Mapping[str, Tensor], metric: Metric | None = None) -> None:
        super().__init__(weights, metric)
        assert metric is not None
        hidden, self.hidden = weights["weight_hh"], self.maps["weight_hh"]
        self.grown = 1 + 2 * self.hidden.gamma  # what is rounded on the way
        self.rate, self.gain = self.grown * metric.rate, self.grown * metric.gain
        self.reach = self.grown * hidden.new_tensor(metric.reach)
        self.slack = ROUNDING * torch.finfo(hidden.dtype).eps
        self.shrink = metric.stretch / hidden.new_tensor(metric.scale)
        self.one = euclidean(self.shrink)
        self.pushed = self.slack * self.one

    def pre(self, driven: Ball, hidden: Around | Ball, distance: Tensor) -> tuple[Ball, Tensor]:
        """Return the pre-activations, and what inputs and rounding add to any of them."""
        own, pushed = self.hidden, driven.radius + self.hidden.rounding(hidden.value)
        radius = torch.minimum(F.linear(hidden.radius, own.growth), distance * self.reach)
        return Ball(driven.value + F.linear(hidden.value, own.weight, own.bias), radius + pushed), pushed

    def size(self, radius: Tensor) -> Tensor:
        """Return a bound on the norm of differences up to this radius, which may be one for all units."""
        return radius * self.one if radius.shape[-1] == 1 else euclidean(radius * self.shrink)[..., None]


class RNNTube(NormTube):
    """``h' = phi(W h + U x + b)`` with ``phi`` = tanh or relu; of ``h'`` only the radius is read, and carried.

    With ``s`` the largest slope of ``phi`` on the intervals of the units, and ``q`` what differences of the inputs and
    rounding add, the distance of :class:`NormTube` is ``d' = s (rate d + ||q||)``. The slopes of a step are ``s`` times
    some between 0 and 1, for which the rate is certified. As ``reach_j <= rate entries_j``, radii are at most
    ``entries_j d'`` already.
    """

    def __init__(self, weights: Mapping[str, Tensor], metric: Metric | None = None, *, relu: bool = False) -> None:
        super().__init__(weights, metric)
        self.relu = relu

    def begin(self, state: Arounds) -> State:
        """Return the values, radii and the distance."""
        radius = state[0].radius
        return state[0].value, radius, self.size(radius)

    def step(self, driven: Ball, state: State) -> State:
        """The formulas above; between the run and what is nearer to 0, tanh changes most."""
        pre, pushed = self.pre(driven, Ball(*state[:2]), state[2])
        far = self.rate * state[2] + self.size(pushed)
        if self.relu:
            value, radius = torch.relu(pre.value), torch.relu(pre.radius + pre.value.clamp(max=0))
        else:
            # Four functions are rounded, by 20 eps: of the run, at the end, of the other run, of the run once more.
            value, size, slack = torch.tanh(pre.value), pre.value.abs(), 1.5 * self.slack
            near = torch.sigmoid(2 * (pre.radius - size))  # tanh(size - radius) = 1 - 2 near
            radius = torch.add(value.abs() + (slack - 1), near, alpha=2)
            steepest = near.amax(-1, keepdim=True).clamp(max=0.5)
            far = far * (steepest * (4 - 4 * steepest) + slack).clamp(max=1) + self.pushed
        return value, radius, torch.minimum(far, self.size(radius))

    def arounds(self, state: State) -> Arounds:
        """Return the values and their intervals."""
        return (Ball(*state[:2]).around.widened(state[0].abs()),)

    def spread(self, output: Around, state: State) -> Tensor:
        """Return the smaller of the norm of the entries and ``gain d``."""
        return torch.minimum(euclidean(state[1]), self.gain * state[2][..., 0])


class LeakyRNNTube(NormTube):
    """``h' = a h + (1 - a) tanh(W h + U x + b)``, with ``d' = rate d + ||(1 - a) q||``."""

    def __init__(self, weights: Mapping[str, Tensor], metric: Metric | None = None) -> None:
        super().__init__(weights, metric)
        assert metric is not None
        self.leak, self.enters = torch.sigmoid(weights["leak"]), torch.sigmoid(-weights["leak"])
        self.entries = self.grown * self.leak.new_tensor(metric.entries)

    def begin(self, state: Arounds) -> State:
        """Add the distance."""
        return *packed(state), self.size(state[0].radius)

    def step(self, driven: Ball, state: State) -> State:
        """A mean with a leak that all runs share."""
        (hidden,), distance = self.arounds(state), state[-1]
        pre, pushed = self.pre(driven, hidden, distance)
        far = self.rate * distance + self.size(self.enters * pushed + self.slack * (hidden.magnitude + 2))
        after = mix(Around.exactly(self.leak), hidden, pre.tanh()).within(far * self.entries)
        return *packed((after,)), torch.minimum(far, self.size(after.radius))

    def arounds(self, state: State) -> Arounds:
        """Return all but the distance."""
        return unpacked(state[:-1])

    def spread(self, output: Around, state: State) -> Tensor:
        """Return the smaller of the norm of the entries and ``gain d``."""
        return torch.minimum(super().spread(output, state), self.gain * state[-1][..., 0])


class MinGRUTube(Tube):
    """``h' = (1 - z) h + z tanh(U_n x + b)``: gate and candidate are shared by all runs up to the inputs."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """A mean with independent intervals."""
        gate, candidate = driven.chunk(2)
        return (mix(gate.map(torch.sigmoid), candidate.tanh(), state[0]),)


class MinLSTMTube(Tube):
    """``h' = f / (f + i) h + i / (f + i) tanh(U_n x + b)``."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """The leak rises with the pre-activation of ``f`` and falls with that of ``i``."""
        forget, enter, candidate = (part.around for part in driven.chunk(3))
        leak = Around(
            normalized_leak(forget.value, enter.value),
            normalized_leak(forget.low, enter.high),
            normalized_leak(forget.high, enter.low),
        ).widened(forget.magnitude.abs() + enter.magnitude.abs() + 2)
        return (mix(leak.map(torch.sigmoid), state[0], candidate.tanh()),)


def packed(parts: Arounds) -> State:
    """Return the values, then the low ends, then the high ends."""
    return (*(part.value for part in parts), *(part.low for part in parts), *(part.high for part in parts))


def unpacked(state: State) -> Arounds:
    """Undo :func:`packed`."""
    count = len(state) // 3
    return tuple(map(Around, state[:count], state[count : 2 * count], state[2 * count :]))
