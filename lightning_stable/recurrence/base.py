"""The contract: one directed recurrent layer seen as a state map ``h_t = phi(h_{t-1}, x_t)``.

Everything that differs between cells lives behind this contract, in one adapter per cell family. A new cell needs a
subclass of :class:`Recurrence`, and no more; :class:`GatedRecurrence` adds what the sharper projections use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_stable import linalg
from lightning_stable.recurrence.intervals import Interval, worst
from lightning_stable.recurrence.tubes import Metric, Tube

State = tuple[Tensor, ...]
Weights = Mapping[str, Tensor]
# Bounds |state difference| after a step by |state difference| and |input difference| before it, all entrywise.
Comparison = Callable[[State, Tensor | None], State]
# Bounds |output difference| of a step by |state difference| and |input difference| before it, all entrywise.
OutputComparison = Callable[[State, Tensor | None], Tensor]


# Rounds in which the box of the states and the intervals of the gates narrow each other; each round is valid.
BOX_ROUNDS = 4


class Contraction(NamedTuple):
    """A bound on the Lipschitz constant of a state map, and the norm in which it holds: the witness of the rate.

    The norm of a state difference ``(d_1, d_2, ...)`` is ``max_p || d_p / scales_p ||_order`` over the parts of the
    state (``h`` alone, or ``h`` and ``c``); ``order`` is 1, 2 or infinity. With a ``form`` ``X``, which a state of one
    part and the order 2 may have, it is ``sqrt(z^T X z)`` of ``z = d / scales``.
    """

    rate: Tensor
    scales: tuple[Tensor, ...]
    order: float = torch.inf
    form: Tensor | None = None

    def distance(self, state: State, other: State) -> Tensor:
        """Return the distance of two states, shape ``(...)`` for states of shape ``(..., size)``."""
        differences = [(a - b) / scale.to(a) for a, b, scale in zip(state, other, self.scales, strict=True)]
        if self.form is not None:
            (z,) = differences
            return _form_norm(z, self.form.to(z))
        return torch.stack([torch.linalg.vector_norm(z, ord=self.order, dim=-1) for z in differences]).amax(0)

    def largest(self, bounds: State, stretch: Tensor | None = None) -> Tensor:
        """Return a bound on the norm of all differences with entries up to ``bounds``, shapes ``(..., size)``.

        Args:
            bounds: Nonnegative.
            stretch: ``self.stretch``, where it is known already.
        """
        size = self._replace(form=None).distance(bounds, tuple(torch.zeros_like(part) for part in bounds))
        if self.form is None:
            return size
        crossed = _form_norm(bounds[0] / self.scales[0].to(size), self.form.to(size).abs())
        return crossed.minimum(size * (self.stretch if stretch is None else stretch))

    @property
    def stretch(self) -> Tensor:
        """The largest norm of a difference whose norm without the form would be 1."""
        return torch.ones_like(self.rate) if self.form is None else linalg.form_bounds(self.form)[1]

    @property
    def entries(self) -> tuple[Tensor, ...]:
        """The largest entries of a difference of norm 1, shape ``(size,)`` per part."""
        if self.form is None:
            return self.scales
        return (self.scales[0] * linalg.form_bounds(self.form)[0],)

    def gain(self, readout: Tensor | None = None) -> Tensor:
        """Return the largest Euclidean norm of ``readout @ d`` over differences of norm 1 in the first part.

        In the orders 1 and 2 the norm is at least the Euclidean one; in the maximum norm there is no use for a gain,
        the entries say it all, and infinity is returned.
        """
        scale = self.scales[0]
        if self.order > 2:
            return torch.full_like(scale[0], torch.inf)
        if self.form is None:
            return scale.amax() if readout is None else linalg.spectral_norm(readout * scale)
        return linalg.dual_norm(scale.diag() if readout is None else readout * scale, self.form)

    def cpu(self) -> Contraction:
        """Return it with its tensors on the CPU."""
        form = None if self.form is None else self.form.cpu()
        return Contraction(self.rate.cpu(), tuple(scale.cpu() for scale in self.scales), self.order, form)


def _form_norm(vectors: Tensor, form: Tensor) -> Tensor:
    squares: Tensor = (vectors @ form * vectors).sum(-1)
    return squares.clamp(min=0).sqrt()


class Pairing(NamedTuple):
    """The gates whose drives are taken at the same input, by their positions among the blocks of ``driven_rows``."""

    units: int  # rows of a block
    leak: int
    partner: int


class Recurrence(ABC):
    """One directed recurrent layer of a module.

    Args:
        module: The module that owns the weights. They are looked up by name at every use, so moving or casting the
            module is seen here.
        name: Qualified name of this recurrence, for example ``core.l0_reverse``; the cell's name if empty.
        module_name: Qualified name of the module, ``core``; by default ``name``.
        layer: Depth inside the module, from 0.
        direction: ``"forward"`` or ``"backward"``.
        suffix: Suffix of the parameter names, ``_l0_reverse`` for instance.
        input_dropout: Probability with which the *module itself* drops entries of this layer's input in training.

    A subclass names its parameters in ``roles``, which of them carry the state in ``recurrent_roles``, its
    certificates in ``norms`` (the default first), and implements :meth:`step` and :meth:`contraction`.
    """

    cell: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    recurrent_roles: ClassVar[tuple[str, ...]] = ("weight_hh",)
    norms: ClassVar[tuple[str, ...]] = ("row",)
    methods: ClassVar[tuple[str, ...]] = ("rescale",)
    needs_drive: ClassVar[bool] = True
    # How many parts of the state the module takes and returns, None for all; every step recomputes the others.
    state_parts: ClassVar[int | None] = None
    # The certificate whose norm the tube carries beside the entries of the state.
    tube_norm: ClassVar[str | None] = None

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str = "",
        module_name: str | None = None,
        layer: int = 0,
        direction: str = "forward",
        suffix: str = "",
        input_dropout: float = 0.0,
    ) -> None:
        self.module = module
        self.name = name or self.cell
        self.module_name = name if module_name is None else module_name
        self.layer = layer
        self.direction = direction
        self.suffix = suffix
        self.input_dropout = input_dropout

    def checked_norm(self, norm: str | None) -> str:
        """Return the certificate, the cell's default for None.

        Raises:
            ValueError: If the cell has no such certificate.
        """
        if norm is None:
            return self.norms[0]
        if norm not in self.norms:
            raise ValueError(
                f"`norm` must be one of {self.norms} for the {self.cell} recurrence {self.name!r}. Got {norm!r}."
            )
        return norm

    @property
    def sharpest_norm(self) -> str | None:
        """The certificate that looks for its norm, and takes longer; None for a cell without one."""
        return next((norm for norm in ("full", "tight") if norm in self.norms), None)

    # ----------------------------------------------------------------- weights
    def parameter_names(self) -> dict[str, str]:
        """Return attribute names by role, for the parameters this module has (``bias=False`` leaves some out)."""
        return {role: role + self.suffix for role in self.parameters()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the stored parameters by role."""
        values = {role: getattr(self.module, role + self.suffix, None) for role in self.roles}
        return {role: value for role, value in values.items() if value is not None}

    def weights(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return detached copies of the parameters by role (never views: they may be changed freely)."""
        return {role: value.detach().to(dtype, copy=True) for role, value in self.parameters().items()}

    @property
    def projected_roles(self) -> tuple[str, ...]:
        """Roles a projection may change."""
        return self.recurrent_roles

    def leading_rows(self) -> slice:
        """Return the rows of ``weight_ih`` whose drive matters most; the fast projection does not bound the others."""
        return slice(None)

    def pairing(self, weights: Weights) -> Pairing | None:
        """Return which gates are taken at the same input; None for a cell that is given one interval a row."""
        return None

    def driven_rows(self, weights: Weights) -> Tensor:
        """Return the matrix whose products with inputs are the drive: ``weight_ih``, and more if outputs need it."""
        return weights["weight_ih"]

    def recurrent_blocks(self, weights: Weights) -> dict[str, Tensor]:
        """Return the recurrent weights by gate name, as views; a single block ``h`` for cells without gates."""
        return {"h": weights["weight_hh"]}

    @property
    def input_size(self) -> int:
        """Number of input features of this layer."""
        return int(self.parameters()["weight_ih"].shape[1])

    @property
    def takes_sequences(self) -> bool:
        """Whether the module is called with a sequence, as ``nn.RNN``, or once per step, as ``nn.RNNCell``."""
        return isinstance(self.module, nn.RNNBase)

    # --------------------------------------------------------------- state map
    @abstractmethod
    def step(self, inputs: Tensor, state: State) -> State:
        """``phi(h, x)``: apply the state map once to inputs of shape ``(..., input_size)`` and a state."""

    @abstractmethod
    def initial_state(self, inputs: Tensor) -> State:
        """Return the zero state for inputs of shape ``(..., input_size)``."""

    def full_state(self, parts: State, inputs: Tensor) -> State:
        """Return the whole state from the parts that the module takes; ``inputs`` as in :meth:`initial_state`."""
        return parts if self.state_parts is None else parts + self.initial_state(inputs)[self.state_parts :]

    def affine(self, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """``h' = a(x) h + b(x)``, entry by entry: return ``a`` and ``b``; None for a cell whose state map is another.

        Such maps are composed in closed form: sequences and windows are evaluated in pieces side by side.

        Args:
            inputs: Shape ``(..., input_size)``.
        """
        return None

    def output(self, state: State) -> Tensor:
        """Return what the layer hands to the next one."""
        return state[0]

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor | None:
        """Return a bound on every output entry, shape ``(output_size,)``, or None if the cell is unbounded."""
        return None

    # ------------------------------------------------------------- certificate
    @abstractmethod
    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return the contraction rate of the state map, valid for every admissible state and input.

        Args:
            weights: Weights by role, in the dtype to compute in.
            drive: Interval of ``weight_ih @ x`` (without bias), see :meth:`driven_rows`; None when nothing is known
                about the inputs. It has shape ``(rows,)``, or ``(scenarios, rows)`` as well where the cell has a
                :attr:`pairing`, and the rate is then the largest over the scenarios.
            norm: One of ``norms``.
            state_bound: Runs start from states with entries of at most this size, 0 for runs from zero only. Later
                states may be larger: those of saturating cells reach 1.
        """

    def contraction_in(
        self, weights: Weights, drive: Interval | None, witness: Contraction, *, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return the contraction in the norm of a witness that was found for other weights; its ``rate`` is not read.

        Checking a witness costs a fraction of finding one.

        Args:
            weights: As in :meth:`contraction`.
            drive: As in :meth:`contraction`.
            witness: From :meth:`contraction`.
            state_bound: As in :meth:`contraction`.

        Returns:
            None if the cell has no such check.
        """
        return None

    def projection_witness(
        self, weights: Weights, drive: Interval | None, rate: float, *, norm: str, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return the norm in which these weights are to be kept at ``rate`` while they train.

        Args:
            weights: As in :meth:`contraction`.
            drive: As in :meth:`contraction`.
            rate: The target.
            norm: One of ``norms``.
            state_bound: As in :meth:`contraction`.

        Returns:
            None where the projection for ``norm`` needs no witness.
        """
        return None

    def window_contractions(self, weights: Weights, contraction: Contraction) -> tuple[Contraction, ...]:
        """Return the contractions in which a window may be certified: that of the certificate, and sharper ones.

        Args:
            weights: Weights by role.
            contraction: That of the certificate.
        """
        return (contraction,)

    def input_gain(self, weights: Weights, contraction: Contraction) -> Tensor:
        """Return how far inputs at Euclidean distance 1 can move the next state, in the norm of the contraction.

        It is infinite where only entries are bounded, see :meth:`comparison`.
        """
        return torch.full_like(contraction.rate, torch.inf)

    def unit_rates(self, weights: Weights, drive: Interval | None, *, state_bound: float = 1.0) -> Tensor | None:
        """Return the rates of the units, shape ``(units,)``, whose maximum is the rate of ``row``; None without gates.

        Args:
            weights: Weights by role.
            drive: As in :meth:`contraction`.
            state_bound: As in :meth:`contraction`.
        """
        return None

    # The methods below bound how far a run that restarted from zero is from the whole run. Without them a cell is
    # certified and projected all the same, but no window is certified.
    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """Return an entrywise bound on every state of a run, in the parts of the certificate's state.

        Args:
            weights: Weights by role.
            drive: As in :meth:`contraction`.
            state_bound: As in :meth:`contraction`.

        Returns:
            A tensor of shape ``(units,)`` per part, at least ``state_bound``, or None if nothing is known.
        """
        return None

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> Comparison | None:
        """``|phi(s, x) - phi(s', x')| <= T(|s - s'|, |x - x'|)``: return the monotone map ``T``, entry by entry.

        It holds for all states of :meth:`state_box` and all inputs in ``drive``. Gates are affine in state and input
        together, so what bounds them at two pairs bounds them on the segment in between, and the mean value theorem
        applies.

        Args:
            weights: Weights by role.
            drive: As in :meth:`contraction`.
            state_bound: As in :meth:`state_box`.

        Returns:
            A function of the differences of the states, shapes ``(..., units)``, and of the inputs,
            ``(..., input_size)`` or None for equal inputs; None if there is no such map. A report can be pickled
            only where this function can.
        """
        return None

    def readout(self, weights: Weights) -> Tensor | None:
        """Return the matrix from the first part of the certificate's state to the output; None if they are the same."""
        return None

    def output_comparison(
        self, weights: Weights, drive: Interval | None, state_bound: float
    ) -> OutputComparison | None:
        """Return a bound on the change of an output that is not made of the state after a step, as :meth:`comparison`.

        Returns:
            A function of the differences of the states before the step and of the inputs, which bounds that of the
            outputs; None where :meth:`readout` says it all.
        """
        return None

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the step on enclosures, which bounds truncation at given inputs, see :mod:`tubes`.

        An adapter without one leaves it to :meth:`comparison` to bound truncation at all inputs.

        Args:
            weights: Weights by role, in the dtype to compute in.
            metric: The norm of the certificate ``tube_norm``, if the adapter names one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tube.")

    @property
    def has_tube(self) -> bool:
        """Whether the adapter implements :meth:`tube`."""
        return type(self).tube is not Recurrence.tube


def reach(matrix: Tensor, state_bound: float | Tensor) -> Tensor:
    """``max |matrix @ state|`` over ``|state| <= state_bound``, a number or one bound per entry."""
    magnitude = matrix.abs()
    return magnitude @ state_bound if isinstance(state_bound, Tensor) else magnitude.sum(1) * state_bound


@dataclass(frozen=True)
class Budget:
    """Conditions on the gates' recurrent sizes, convex and frozen, that imply a rate.

    With the demands ``coefficients[q] * size_q`` the sum of :meth:`terms_of` is at most the limit: every term is the
    largest demand of some gates. The demand of a gate in no term is at most the limit by itself.

    The sizes are row l1 norms, with conditions per unit (shapes ``(gates, units)`` and ``(units,)``), or spectral
    norms, with conditions for all (shapes ``(gates, 1)`` and ``(1,)``). Gate maxima are frozen at the weights the
    budget was made from: shrinking recurrent rows only lowers the true coefficients, so weights that meet the frozen
    conditions meet the true ones.
    """

    coefficients: Tensor
    limit: Tensor
    terms: tuple[tuple[int, ...], ...] | None = None  # None: every gate is a term

    def members(self) -> tuple[tuple[int, ...], ...]:
        """Return the gates of every term."""
        return tuple((gate,) for gate in range(len(self.coefficients))) if self.terms is None else self.terms

    def alone(self) -> tuple[int, ...]:
        """Return the gates in no term."""
        members = {gate for term in self.members() for gate in term}
        return tuple(gate for gate in range(len(self.coefficients)) if gate not in members)

    def terms_of(self, demand: Tensor) -> Tensor:
        """Return the largest demand of every term, shape ``(terms, units)``."""
        return torch.stack([torch.stack([demand[gate] for gate in term]).amax(0) for term in self.members()])


class LeakingRecurrence(Recurrence):
    """A recurrence whose units keep their state up to a leak between 0 and 1, which a projection bounds.

    The bound is ``rate ** leak_power`` where the user gives none: what other weights may do to the rate takes what
    the leak leaves.
    """

    leak: ClassVar[str]
    leak_power: ClassVar[int] = 2

    @property
    def can_close(self) -> bool:
        """Whether the leak can be brought below 1/2: without biases a gate cannot, for there may be no input."""
        return "bias_ih" in self.parameter_names()

    @abstractmethod
    def leak_maximum(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor:
        """Return the largest value of the leak, shape ``(units,)``."""


class GatedRecurrence(LeakingRecurrence):
    """A recurrence whose state is kept by a leak gate (LSTM's forget, GRU's and UGRNN's update gate).

    Rows of ``weight_ih`` and ``weight_hh`` are stacked by gate in the order of ``gates``. Row ``j`` of gate ``q``
    has l1 norm ``n_qj``; a certificate in a weighted maximum norm is a condition on these row norms.
    """

    gates: ClassVar[tuple[str, ...]]
    # The gate that costs most where the leak gate is open; None for a cell that takes one interval a row.
    partner: ClassVar[str | None] = None
    shares: ClassVar[tuple[float, ...]]  # of a row's budget, by gate; see stability.projection.sets.share_budget
    norms: ClassVar[tuple[str, ...]] = ("row", "tight", "l2")
    methods: ClassVar[tuple[str, ...]] = ("shares", "euclidean", "rescale")

    @property
    def projected_roles(self) -> tuple[str, ...]:
        """The recurrent weights, and for the leak gate also input weights and biases."""
        return ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

    def pairing(self, weights: Weights) -> Pairing | None:
        """Return the leak gate and its partner."""
        if self.partner is None:
            return None
        units = len(weights["weight_ih"]) // len(self.gates)
        return Pairing(units, self.gates.index(self.leak), self.gates.index(self.partner))

    def leading_rows(self) -> slice:
        """Return the rows of the leak gate: the other gates are bounded by 1 whatever drives them."""
        index, units = self.gates.index(self.leak), self.parameters()["weight_ih"].shape[0] // len(self.gates)
        return slice(index * units, (index + 1) * units)

    def recurrent_matrix(self, weights: Weights) -> Tensor:
        """Return the matrix from the certificate's state to the gates, shape ``(gates * units, units)``."""
        return weights["weight_hh"]

    def recurrent_blocks(self, weights: Weights) -> dict[str, Tensor]:
        """Return the stored recurrent rows by gate name."""
        return dict(zip(self.gates, weights["weight_hh"].chunk(len(self.gates)), strict=True))

    def row_norms(self, weights: Weights) -> Tensor:
        """``n_qj = sum_k |W_qjk|``, shape ``(gates, units)``."""
        return self.recurrent_matrix(weights).abs().sum(1).view(len(self.gates), -1)

    def bias(self, weights: Weights) -> Tensor:
        """``bias_ih + bias_hh`` or zeros, shape ``(gates * units,)``."""
        if "bias_ih" in weights:
            return weights["bias_ih"] + weights["bias_hh"]
        return torch.zeros_like(weights["weight_hh"][:, 0])

    def pre_activation(self, weights: Weights, drive: Interval, state_bound: float | Tensor) -> tuple[Interval, ...]:
        """Intervals of the pre-activations, one per gate.

        Args:
            weights: Weights by role.
            drive: Interval of ``weight_ih @ x``.
            state_bound: A number bounds the start states, and later ones may reach 1; a tensor bounds the states of
                all steps, entry by entry.
        """
        hidden = state_bound if isinstance(state_bound, Tensor) else max(1.0, state_bound)
        radius = reach(self.recurrent_matrix(weights), hidden)
        return drive.shift(self.bias(weights)).widen(radius).chunk(len(self.gates))

    def leak_maximum(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor:
        """Return the largest value of the leak gate, shape ``(units,)``."""
        assert drive is not None
        return torch.sigmoid(worst(self.pre_activation(weights, drive, state_bound)[self.gates.index(self.leak)].high))

    @abstractmethod
    def budget(
        self, weights: Weights, drive: Interval, rate: float, *, norm: str, state_bound: float, leak_bound: float
    ) -> Budget:
        """Return conditions that imply ``rate``, with the leak gate lowered to ``leak_bound`` as the gate step does it.

        Args:
            weights: Weights by role.
            drive: Interval of ``weight_ih @ x``.
            rate: Target in (0, 1), above ``leak_bound``.
            norm: ``"l2"`` for conditions on spectral norms; row conditions otherwise.
            state_bound: As in :meth:`contraction`.
            leak_bound: Upper bound on the leak gate.
        """

    def contraction_in(
        self, weights: Weights, drive: Interval | None, witness: Contraction, *, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return the contraction in the maximum norm with the weights of a ``tight`` witness; None for other norms."""
        return None

    def projection_witness(
        self, weights: Weights, drive: Interval | None, rate: float, *, norm: str, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return the weights on units of ``tight``, whose row conditions :meth:`budget` states with ``1 / v W v``."""
        if norm != "tight" or drive is None:
            return None
        return self.contraction(weights, drive, norm=norm, state_bound=state_bound)

    def leading_budget(
        self, weights: Weights, norms: Tensor, leak: Tensor, rate: float, *, state_bound: float, leak_bound: float
    ) -> Budget | None:
        """Return the row conditions of :meth:`budget` where inputs bound the leak gate alone, much faster.

        Only biases are taken from ``weights``, and everything is per unit: the units of several recurrences can be
        handled as if they were those of one.

        Args:
            weights: Biases by role, in blocks of ``units``.
            norms: Row norms, shape ``(gates, units)``.
            leak: Largest pre-activation of the leak gate, shape ``(units,)``.
            rate: As in :meth:`budget`.
            state_bound: As in :meth:`budget`.
            leak_bound: As in :meth:`budget`.

        Returns:
            The conditions, or None if the cell has no such form.
        """
        return None
