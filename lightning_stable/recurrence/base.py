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

from lightning_stable.recurrence.intervals import Interval, worst

State = tuple[Tensor, ...]
Weights = Mapping[str, Tensor]
# Bounds |state difference| after a step by |state difference| and |input difference| before it, all entrywise.
Comparison = Callable[[State, Tensor | None], State]
# Bounds |output difference| of a step by |state difference| and |input difference| before it, all entrywise.
OutputComparison = Callable[[State, Tensor | None], Tensor]


# Rounds in which the box of the states and the intervals of the gates narrow each other; each round is valid.
BOX_ROUNDS = 4


class Contraction(NamedTuple):
    """A bound on the Lipschitz constant of a state map, and the norm in which it holds.

    The norm of a state difference ``(d_1, d_2, ...)`` is ``max_p || d_p / scales_p ||_order`` over the parts of the
    state (``h`` alone, or ``h`` and ``c``); ``order`` is 1, 2 or infinity.
    """

    rate: Tensor
    scales: tuple[Tensor, ...]
    order: float = torch.inf

    def distance(self, state: State, other: State) -> Tensor:
        """Return the distance of two states, shape ``(...)`` for states of shape ``(..., size)``."""
        parts = [
            torch.linalg.vector_norm((a - b) / scale.to(a), ord=self.order, dim=-1)
            for a, b, scale in zip(state, other, self.scales, strict=True)
        ]
        return torch.stack(parts).amax(0)


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


class GatedRecurrence(Recurrence):
    """A recurrence whose state is kept by a leak gate (LSTM's forget, GRU's and UGRNN's update gate).

    Rows of ``weight_ih`` and ``weight_hh`` are stacked by gate in the order of ``gates``. Row ``j`` of gate ``q``
    has l1 norm ``n_qj``; a certificate in a weighted maximum norm is a condition on these row norms.
    """

    gates: ClassVar[tuple[str, ...]]
    leak: ClassVar[str]
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

    def leak_maximum(self, weights: Weights, drive: Interval, state_bound: float) -> Tensor:
        """Return the largest value of the leak gate, shape ``(units,)``."""
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
