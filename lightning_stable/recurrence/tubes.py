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

from lightning_stable.cells.input_gated import normalized_leak
from lightning_stable.recurrence.around import ROUNDING, Affine, Around, Ball, euclidean, mix
from lightning_stable.recurrence.intervals import Interval, tanh_slope

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
        """Return the state after a step, in the parts of the adapter's ``step`` and those that :meth:`begin` adds.

        Args:
            driven: From :meth:`drive`.
            state: The state before the step, shapes ``(..., units)``.
        """
        raise NotImplementedError

    def begin(self, state: Arounds) -> Arounds:
        """Return the first state from enclosures of the cell's own parts; a tube may add parts behind them."""
        return state

    def spread(self, output: Around, state: Arounds) -> Tensor:
        """Return a bound on the Euclidean norm of the difference of the outputs, shape ``(...)``."""
        return euclidean(output.radius)


class LSTMTube(Tube):
    """``c' = f c + i g``, ``h' = o tanh(c')``, and ``W_hr h'`` with ``proj_size``."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """The intervals of ``f c`` and ``i g`` have their ends at ends of those of the factors."""
        hidden, cell = state
        i, f, g, o = (driven + self.maps["weight_hh"](hidden)).chunk(4)
        kept = cell.gated(f.map(torch.sigmoid))
        after = (kept + g.map(torch.tanh).gated(i.map(torch.sigmoid))).widened(cell.magnitude + 2)
        shown = after.map(torch.tanh).gated(o.map(torch.sigmoid)).widened(2.0)
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
        return (mix((z_in + z_h).map(torch.sigmoid), hidden, pre.map(torch.tanh)),)


class UGRNNTube(Tube):
    """``c = tanh(W_c h + U_c x + b)``, ``h' = g h + (1 - g) c``."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """Gate and candidate have intervals of their own."""
        gate, candidate = (driven + self.maps["weight_hh"](state[0])).chunk(2)
        return (mix(gate.map(torch.sigmoid), state[0], candidate.map(torch.tanh)),)


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


class RNNTube(Tube):
    """``h' = phi(W h + U x + b)`` with ``phi`` = tanh or relu.

    Entry by entry ``|W| u`` grows where ``W`` does not, by up to the root of the number of units. So the tube carries
    the distance ``d`` of the states in the norm of a certificate as well, as a second part of the state, and each cuts
    the other back. With ``s`` the largest slope of ``phi`` on the intervals of the units, and ``q`` what differences of
    the inputs and rounding add::

        |w_j (h' - h)| <= reach_j d
        d' = s (rate d + ||q||)

    The slopes of a step are ``s`` times some between 0 and 1, for which the rate is certified.
    """

    def __init__(self, weights: Mapping[str, Tensor], metric: Metric | None = None, *, relu: bool = False) -> None:
        super().__init__(weights, metric)
        assert metric is not None
        self.relu, hidden = relu, weights["weight_hh"]
        self.rate, self.stretch, self.gain = metric.rate, metric.stretch, metric.gain
        self.scale, self.entries = hidden.new_tensor(metric.scale), hidden.new_tensor(metric.entries)
        self.reach = hidden.new_tensor(metric.reach)

    def begin(self, state: Arounds) -> Arounds:
        """Add the distance."""
        return *state, Around.exactly(self._size(state[0].radius))

    def _pre(self, driven: Ball, state: Arounds) -> tuple[Ball, Tensor, Tensor]:
        """Return the pre-activations, ``rate d``, and ``q``."""
        hidden, distance, recurrent = state[0], state[1].value, self.maps["weight_hh"]
        own, rounding = recurrent(hidden), recurrent.rounding(hidden.value)
        reached = (1 + 2 * recurrent.gamma) * self.reach * distance + rounding
        pre = driven + Ball(own.value, torch.minimum(own.radius, reached))
        # Rounding has one radius for all units.
        return pre, (1 + recurrent.gamma) * self.rate * distance, (driven.radius + rounding).expand_as(reached)

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """The formulas above; ``gamma`` and ``eps`` cover what rounding does to them."""
        recurrent = self.maps["weight_hh"]
        pre, far, pushed = self._pre(driven, state)
        far = far + self._size(pushed)
        if self.relu:
            after = pre.map(torch.relu).widened(0.0)
            far = far * (after.high > 0).to(far).amax(-1, keepdim=True)
        else:
            slack = ROUNDING * torch.finfo(far.dtype).eps
            slopes = tanh_slope(Interval(pre.around.low, pre.around.high))
            after = pre.map(torch.tanh).widened(1.0)
            far = far * (slopes.amax(-1, keepdim=True) + slack).clamp(max=1)
            far = far + self._size(torch.full_like(pushed, slack))
        after = after.within((1 + recurrent.gamma) * far * self.entries)
        return after, Around.exactly(torch.minimum(far, self._size(after.radius)))

    def spread(self, output: Around, state: Arounds) -> Tensor:
        """Return the smaller of the norm of the entries and ``gain d``."""
        gain = (1 + self.maps["weight_hh"].gamma) * self.gain
        return torch.minimum(super().spread(output, state), gain * state[1].value[..., 0])

    def _size(self, radius: Tensor) -> Tensor:
        return self.stretch * euclidean(radius / self.scale)[..., None]


class LeakyRNNTube(RNNTube):
    """``h' = a h + (1 - a) tanh(W h + U x + b)``, with ``d' = rate d + ||(1 - a) q||``."""

    def __init__(self, weights: Mapping[str, Tensor], metric: Metric | None = None) -> None:
        super().__init__(weights, metric)
        self.leak, self.enters = torch.sigmoid(weights["leak"]), torch.sigmoid(-weights["leak"])

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """A mean with a leak that all runs share."""
        pre, far, pushed = self._pre(driven, state)
        slack = ROUNDING * torch.finfo(far.dtype).eps * (state[0].magnitude + 2)
        far = far + self._size(self.enters * pushed + slack)
        after = mix(Around.exactly(self.leak), state[0], pre.map(torch.tanh))
        after = after.within((1 + self.maps["weight_hh"].gamma) * far * self.entries)
        return after, Around.exactly(torch.minimum(far, self._size(after.radius)))


class MinGRUTube(Tube):
    """``h' = (1 - z) h + z tanh(U_n x + b)``: gate and candidate are shared by all runs up to the inputs."""

    def __call__(self, driven: Ball, state: Arounds) -> Arounds:
        """A mean with independent intervals."""
        gate, candidate = driven.chunk(2)
        return (mix(gate.map(torch.sigmoid), candidate.map(torch.tanh), state[0]),)


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
        return (mix(leak.map(torch.sigmoid), state[0], candidate.map(torch.tanh)),)
