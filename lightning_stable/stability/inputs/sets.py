"""Input sets: each bounds ``W @ x`` over all its members.

Certificates of gated cells depend on their inputs. The sharper the set, the more recurrence a certified cell can
keep: 'at most 8 of 88 keys sound' allows far larger weights than 'every key between 0 and 1'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.recurrence.intervals import Interval

# What a claim is worth, from nothing to every admissible input.
GUARANTEES = ("none", "data", "derived", "guaranteed")

# All inputs are looked for among the points of a finite set of up to so many; of a larger one, so many inputs.
_FEW_POINTS, _SAMPLE = 128, 64


def weakest_guarantee(guarantees: Iterable[str]) -> str:
    """Return the weakest of the guarantees a claim rests on; ``"guaranteed"`` if it rests on none."""
    return min(guarantees, key=GUARANTEES.index, default=GUARANTEES[-1])


class InputSet(ABC):
    """A set of admissible inputs ``x`` of shape ``(features,)``.

    ``guarantee`` says what a certificate built on it is worth: ``"guaranteed"`` for a set that a user declared or a
    module implies, ``"derived"`` for one that was read off the traced model, ``"data"`` for one that was only observed.
    ``features`` is the length of its members, None if any will do.
    """

    guarantee: str = "guaranteed"
    features: int | None = None

    @abstractmethod
    def drive(self, weight: Tensor) -> Interval:
        """Return the interval of ``weight @ x`` over the set.

        Args:
            weight: Shape ``(rows, features)``; results have shape ``(rows,)`` and its dtype and device.
        """

    def highest(self, weight: Tensor) -> Tensor:
        """Return the upper end of :meth:`drive`."""
        return self.drive(weight).high

    def members(self, like: Tensor) -> Tensor | None:
        """Return all members, shape ``(members, features)``, in the dtype of a tensor; None if never listed."""
        return None

    @abstractmethod
    def maximizer(self, weight: Tensor) -> Tensor:
        """``argmax weight_j @ x`` over the set, for every row, shape ``(rows, features)``."""

    @abstractmethod
    def dropped(self, probability: float) -> InputSet:
        """Return the set after dropout: any entries set to 0, the others divided by ``1 - probability``."""

    @abstractmethod
    def describe(self) -> str:
        """Return a short description for reports."""

    def box(self, features: int, like: Tensor) -> Interval:
        """Return the interval of every single entry, shape ``(features,)``."""
        return self.drive(torch.eye(features, dtype=like.dtype, device=like.device))

    def excess(self, inputs: Tensor) -> Tensor:
        """Return, as a scalar tensor, how far inputs of shape ``(..., features)`` lie outside, entrywise; 0 inside.

        What rounding to the dtype of the inputs can do is taken off.
        """
        box = self.box(inputs.shape[-1], inputs)
        flat = inputs.reshape(-1, inputs.shape[-1])
        # Six times faster than aminmax, which gives both.
        outside = torch.maximum(flat.amax(0) - box.high, box.low - flat.amin(0))
        return (outside - _rounding(inputs) * torch.maximum(box.low.abs(), box.high.abs())).amax().clamp(min=0)

    def drive_excess(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """How far products ``weight @ x`` with observed inputs leave :meth:`drive`, on which certificates rest.

        Means of two rows, by which gates are compared at one input, count like rows. Sharper than :meth:`excess` where
        the set is smaller than its box, at the cost of the products. What rounding of the products can do is taken
        off. Scalar tensor.
        """
        weight = torch.cat((weight, (weight + weight.roll(len(weight) // 2, 0)) / 2))
        interval = self.drive(weight)
        products = inputs.reshape(-1, inputs.shape[-1]) @ weight.mT
        excess = torch.maximum(products.amax(0) - interval.high, interval.low - products.amin(0))
        rounding = 8 * torch.finfo(inputs.dtype).eps * weight.abs().sum(1) * inputs.abs().amax()
        return (excess - rounding).amax().clamp(min=0)


class Box(InputSet):
    """``low <= x <= high``, entry by entry; a number bounds every entry.

    Args:
        low: Number or tensor of shape ``(features,)``.
        high: Number or tensor of shape ``(features,)``.
    """

    def __init__(
        self, low: float | Tensor, high: float | Tensor, *, label: str | None = None, checked: bool = True
    ) -> None:
        self.low, self.high = (_ends(name, value) for name, value in (("low", low), ("high", high)))
        self._label = _checked_label(label)
        entries = max(self.low.numel(), self.high.numel())
        if {self.low.numel(), self.high.numel()} - {1, entries}:
            shapes = f"low of shape {tuple(self.low.shape)}, high of shape {tuple(self.high.shape)}"
            raise ValueError(f"`low` and `high` must have as many entries as each other, or one. Got {shapes}.")
        self.features = entries if entries > 1 else None
        # Checking reads values on the host, which bounds computed during training must not.
        if checks.boolean("checked", checked) and not (
            _finite(self.low) and _finite(self.high) and (self.low <= self.high).all()
        ):
            raise ValueError(f"`low` must be at most `high`, and both finite. Got low={low!r}, high={high!r}.")

    def drive(self, weight: Tensor) -> Interval:
        """Centre ``W (low + high) / 2``, radius ``|W| (high - low) / 2``."""
        low, high = (end.expand(weight.shape[1]) for end in self._ends(weight))
        centre, radius = weight @ ((low + high) / 2), weight.abs() @ ((high - low) / 2)
        return Interval(centre - radius, centre + radius)

    def maximizer(self, weight: Tensor) -> Tensor:
        """Return the corner that the row points to."""
        low, high = self._ends(weight)
        return torch.where(weight > 0, high, low)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Kept on the device after the first use: the host waits for every copy.
        self.low, self.high = self.low.to(like.device), self.high.to(like.device)
        return self.low.to(like.dtype), self.high.to(like.dtype)

    def dropped(self, probability: float) -> InputSet:
        """Return the box around 0 and the scaled box."""
        scale = 1 / (1 - probability)
        return self._rescaled((self.low * scale).clamp(max=0), (self.high * scale).clamp(min=0))

    def _rescaled(self, low: Tensor, high: Tensor) -> InputSet:
        label = self._label and f"{self._label} with dropout"
        return Box(low, high, label=label, checked=False)

    def describe(self) -> str:
        """Return the label, ``|x| <= B`` for a symmetric box, else ``low <= x <= high``."""
        if self._label:
            return self._label
        low, high = self.low.amin().item(), self.high.amax().item()
        return f"|x| <= {high:g}" if low == -high else f"{low:g} <= x <= {high:g}"


class SupNorm(Box):
    """``|x_k| <= bound`` for every entry (what a bare number as ``input_bound`` means)."""

    def __init__(self, bound: float | Tensor) -> None:
        value = _bound("bound", bound)
        super().__init__(-value, value)


class L2Ball(InputSet):
    """``||x||_2 <= radius``."""

    def __init__(self, radius: float) -> None:
        self.radius = checks.number("radius", radius, "[0, inf)")

    def drive(self, weight: Tensor) -> Interval:
        """``+- ||w_j||_2 radius``."""
        # Squares of the weights alone may underflow, and a large radius would then be multiplied by 0.
        reach: Tensor = torch.linalg.vector_norm(weight * self.radius, dim=1)
        return Interval(-reach, reach)

    def maximizer(self, weight: Tensor) -> Tensor:
        """``radius w_j / ||w_j||_2``, the point of the sphere in the direction of the row."""
        size: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        return weight * (self.radius / size.clamp(min=torch.finfo(weight.dtype).tiny))

    def dropped(self, probability: float) -> InputSet:
        """Return a larger ball: dropping entries only lowers the norm, scaling multiplies it."""
        return L2Ball(self.radius / (1 - probability))

    def describe(self) -> str:
        """Return ``||x||_2 <= r``."""
        return f"||x||_2 <= {self.radius:g}"

    def excess(self, inputs: Tensor) -> Tensor:
        """Return by how much the largest norm exceeds the radius."""
        largest: Tensor = torch.linalg.vector_norm(inputs, dim=-1).amax()
        return (largest - self.radius * (1 + _rounding(inputs))).clamp(min=0)


class ActiveEntries(InputSet):
    """At most ``count`` entries are active, each in ``[0, height]``; the others are 0.

    The set of piano rolls, bags of words and other multi-hot inputs; ``count=1`` is one-hot.
    """

    def __init__(self, count: int, height: float = 1.0) -> None:
        self.count, self.height = checks.integer("count", count), checks.number("height", height, "(0, inf)")

    def drive(self, weight: Tensor) -> Interval:
        """Return the sums of the ``count`` largest positive (negative) weights of a row, times the height."""
        count = min(self.count, weight.shape[1])
        high = weight.clamp(min=0).topk(count, dim=1).values.sum(1)
        low = -(-weight).clamp(min=0).topk(count, dim=1).values.sum(1)
        return Interval(low * self.height, high * self.height)

    def maximizer(self, weight: Tensor) -> Tensor:
        """Return the input whose active entries are those of the largest positive weights."""
        values, entries = weight.topk(min(self.count, weight.shape[1]), dim=1)
        return torch.zeros_like(weight).scatter(1, entries, (values > 0).to(weight.dtype) * self.height)

    def dropped(self, probability: float) -> InputSet:
        """Return the set with a larger height: dropping entries stays inside, scaling raises the others."""
        return ActiveEntries(self.count, self.height / (1 - probability))

    def describe(self) -> str:
        """Return count and height."""
        return f"at most {self.count} entries active in [0, {self.height:g}]"

    def excess(self, inputs: Tensor) -> Tensor:
        """Return by how much entries leave the interval or the number of active ones exceeds the count."""
        active = (inputs != 0).sum(-1).amax() - self.count
        range_excess = torch.maximum(inputs.amax() - self.height * (1 + _rounding(inputs)), -inputs.amin())
        return torch.maximum(range_excess, active.to(inputs.dtype)).clamp(min=0)


class FiniteSet(InputSet):
    """A finite set of inputs, for example all rows of an embedding table: exact.

    Args:
        points: Shape ``(points, features)``. A live parameter may be given: it is read at every use.
        drop_probability: Entries may be dropped with dropout of this probability (0: never).
    """

    def __init__(
        self, points: Tensor, drop_probability: float = 0.0, *, label: str | None = None, checked: bool = True
    ) -> None:
        if checks.tensor("points", points).ndim != 2 or points.numel() == 0:
            raise ValueError(f"`points` must have shape (points, features). Got {tuple(points.shape)}.")
        self.points, self._label = _real("points", points), _checked_label(label)
        # As for a box. A live parameter is checked as it is now; certificates check what it becomes.
        if checks.boolean("checked", checked) and not _finite(self.points.detach()):
            raise ValueError(f"`points` must be finite. Got NaN or Inf in {tuple(points.shape)} entries.")
        self.drop_probability = checks.number("drop_probability", drop_probability, "[0, 1)")
        self.features = points.shape[1]

    @property
    def lipschitz(self) -> float:
        """The largest product with what dropout leaves of ``x`` changes by at most so many ``||w|| ||x - x'||``."""
        return 1 / (1 - self.drop_probability)

    def products(self, weight: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return the largest product of every row with every point, shape ``(rows, points)``.

        Args:
            weight: Shape ``(rows, features)``.
            chosen: The indices of some points, for those alone.
        """
        points = self.points.detach() if chosen is None else self.points.detach()[chosen]
        points = points.to(weight)
        if self.drop_probability == 0:
            return weight @ points.mT
        # The worst subset keeps the products of one sign: sum of max(a, 0) = (sum a + sum |a|) / 2.
        return (weight @ points.mT + weight.abs() @ points.abs().mT) * (self.lipschitz / 2)

    def drive(self, weight: Tensor) -> Interval:
        """Return the smallest and largest product with a point; under dropout with the worst subset of its entries."""
        points = self.points.detach().to(weight)
        if self.drop_probability == 0:
            products = points @ weight.mT
            return Interval(products.amin(0), products.amax(0))
        total, magnitude = points @ weight.mT, points.abs() @ weight.abs().mT  # see `products`
        scale = self.lipschitz / 2
        return Interval((total - magnitude).amin(0) * scale, (total + magnitude).amax(0) * scale)

    def highest(self, weight: Tensor) -> Tensor:
        """Return the largest products, without the smallest ones."""
        return self.products(weight).amax(1)

    def drive_excess(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return also how far inputs are from the nearest point, of many points some: gates are compared at points."""
        excess, points = super().drive_excess(inputs, weight), self.members(weight.double())
        if points is None:
            return excess
        flat = inputs.reshape(-1, inputs.shape[-1])
        stride = 1 if len(points) <= _FEW_POINTS else -(-len(flat) // _SAMPLE)
        some = flat[::stride].double()
        nearest = points[(points.square().sum(1) - 2 * some @ points.mT).argmin(1)]
        # Of points closer to each other than this the product above may take the wrong one.
        rounding = max(_rounding(inputs), 1e-7) * nearest.abs().amax()
        return torch.maximum(excess, ((some - nearest).abs().amax() - rounding).to(excess)).clamp(min=0)

    def members(self, like: Tensor) -> Tensor | None:
        """Return the points; None under dropout, which makes too many of them."""
        return self.points.detach().to(like) if self.drop_probability == 0 else None

    def maximizer(self, weight: Tensor, products: Tensor | None = None) -> Tensor:
        """Return the point with the largest product; under dropout without the entries that lower it.

        Args:
            weight: Shape ``(rows, features)``.
            products: Its :meth:`products`, where they are known.
        """
        products = self.products(weight) if products is None else products
        best = self.points.detach()[products.argmax(1)].to(weight)
        if self.drop_probability == 0:
            return best
        return torch.where(best * weight > 0, best * self.lipschitz, torch.zeros_like(best))

    def dropped(self, probability: float) -> InputSet:
        """Return the same points under dropout, combined with an earlier one."""
        keep = (1 - self.drop_probability) * (1 - probability)
        return FiniteSet(self.points, 1 - keep, label=self._label, checked=False)

    def describe(self) -> str:
        """Return the label or the number of points."""
        label = self._label or f"{self.points.shape[0]} points"
        return label if self.drop_probability == 0 else f"{label}, dropout {self.drop_probability:.2g}"

    def box(self, features: int, like: Tensor) -> Interval:
        """Return the entrywise extremes of the points, without the product by an identity matrix."""
        points = self.points.detach().to(like)
        low, high = points.amin(0), points.amax(0)
        if self.drop_probability == 0:
            return Interval(low, high)
        scale = 1 / (1 - self.drop_probability)
        return Interval(low.clamp(max=0) * scale, high.clamp(min=0) * scale)


class LayerNormOutput(InputSet):
    r"""Outputs of a LayerNorm: ``gamma * y + beta`` with ``sum y = 0`` and ``||y||_2 <= sqrt(n)`` (eps only lowers it).

    Args:
        gamma: Live scale of shape ``(features,)`` or None.
        beta: Live shift of shape ``(features,)`` or None.
        features: ``n``.
        drop_probability: Entries may be dropped with dropout of this probability (0: never).
    """

    features: int

    def __init__(self, gamma: Tensor | None, beta: Tensor | None, features: int, drop_probability: float = 0.0) -> None:
        self.features = checks.integer("features", features)
        self.drop_probability = checks.number("drop_probability", drop_probability, "[0, 1)")
        for name, value in (("gamma", gamma), ("beta", beta)):
            if value is not None and checks.real_tensor(name, value).shape != (features,):
                raise ValueError(f"`{name}` must have shape ({features},). Got {tuple(value.shape)}.")
        self.gamma, self.beta = gamma, beta

    def drive(self, weight: Tensor) -> Interval:
        r"""Centre ``W beta``, radius ``sqrt(n) ||w_j gamma - mean||_2``: exact, far inside the box of the entries.

        Under dropout it is the drive of the box of the entries.
        """
        if self.drop_probability > 0:
            return self._entries(weight).drive(weight)
        scaled = weight if self.gamma is None else weight * self.gamma.detach().to(weight)
        radius = self.features**0.5 * torch.linalg.vector_norm(scaled - scaled.mean(1, keepdim=True), dim=1)
        centre = torch.zeros_like(radius) if self.beta is None else weight @ self.beta.detach().to(weight)
        return Interval(centre - radius, centre + radius)

    def maximizer(self, weight: Tensor) -> Tensor:
        """Return the normalised direction of the row, centred; under dropout a corner of the box of the entries."""
        if self.drop_probability > 0:
            return self._entries(weight).maximizer(weight)
        gamma = torch.ones_like(weight[:1]) if self.gamma is None else self.gamma.detach().to(weight)
        centred = weight * gamma - (weight * gamma).mean(1, keepdim=True)
        size = torch.linalg.vector_norm(centred, dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        outputs: Tensor = gamma * centred * (self.features**0.5 / size)
        return outputs if self.beta is None else outputs + self.beta.detach().to(weight)

    def excess(self, inputs: Tensor) -> Tensor:
        r"""By how much ``||y||_2 / sqrt(n)`` exceeds 1, or the mean of ``y = (x - beta) / gamma`` leaves 0.

        Under dropout that of the entries.
        """
        if self.drop_probability > 0:
            return super().excess(inputs)
        centred = inputs if self.beta is None else inputs - self.beta.detach().to(inputs)
        gamma = inputs.new_ones(self.features) if self.gamma is None else self.gamma.detach().to(inputs)
        # Rounding of x counts 1 / gamma times; entries whose gamma is 0 are equal to beta, or outside.
        rounding = 8 * torch.finfo(inputs.dtype).eps * inputs.abs().amax() / gamma.abs()
        tolerance = rounding.where(gamma != 0, 0.0).square().mean().sqrt()
        normed = torch.where(centred == 0, 0.0, centred / gamma)
        size: Tensor = torch.linalg.vector_norm(normed, dim=-1) / self.features**0.5 - 1
        return (torch.maximum(size, normed.mean(-1).abs()) - tolerance).amax().clamp(min=0)

    def dropped(self, probability: float) -> InputSet:
        """Return the same outputs under dropout, combined with an earlier one."""
        keep = (1 - self.drop_probability) * (1 - probability)
        return LayerNormOutput(self.gamma, self.beta, self.features, 1 - keep)

    def _entries(self, like: Tensor) -> InputSet:
        box = LayerNormOutput(self.gamma, self.beta, self.features).box(self.features, like)
        return Box(box.low, box.high, checked=False).dropped(self.drop_probability)

    def describe(self) -> str:
        """Return the name of the layer."""
        dropping = self.drop_probability > 0
        return "LayerNorm output" + (f", dropout {self.drop_probability:.2g}" if dropping else "")


class Recorded(Box):
    """The box of the inputs seen so far: true for that data, no promise for other data."""

    guarantee = "data"

    def _rescaled(self, low: Tensor, high: Tensor) -> InputSet:
        return Recorded(low, high, checked=False)

    def describe(self) -> str:
        """Return the recorded range."""
        return f"seen in data: {self.low.amin().item():.3g} <= x <= {self.high.amax().item():.3g}"


def _rounding(inputs: Tensor) -> float:
    """The relative error of inputs that were rounded to their dtype after a few operations."""
    return 4 * torch.finfo(inputs.dtype).eps if inputs.is_floating_point() else 0.0


def _exact(name: str, value: float | Tensor) -> Tensor:
    """Return a real tensor as it is, a number in float64: in float32 it may be rounded down, to a smaller set."""
    if isinstance(value, Tensor):
        return _real(name, value)
    return torch.tensor(checks.number(name, value, "[-inf, inf]"), dtype=torch.float64)


def _ends(name: str, value: float | Tensor) -> Tensor:
    found = _exact(name, value)
    if found.dim() > 1 or not found.numel():
        raise ValueError(f"`{name}` must be a number or have shape (features,). Got {tuple(found.shape)}.")
    return found


def _bound(name: str, value: float | Tensor) -> Tensor:
    found = _ends(name, value)
    if not (_finite(found) and (found >= 0).all()):
        raise ValueError(f"`{name}` must be finite and nonnegative. Got {checks.shown(value)}.")
    return found


def _checked_label(label: str | None) -> str | None:
    return None if label is None else checks.label("label", label)


def _real(name: str, value: Tensor) -> Tensor:
    """Return a tensor of floating-point numbers as it is, and one of integers in float64.

    Raises:
        ValueError: If its numbers are neither, or integers too large to be exact.
    """
    if isinstance(value, Tensor) and value.is_meta:
        return value  # of a model without values, and refused where values are checked
    if checks.real_tensor(name, value).is_floating_point():
        return value
    # Negated or scaled as integers they could wrap around.
    exact = value.to(torch.float64)
    if not (exact.abs() < 2**53).all():
        raise ValueError(
            f"`{name}` must be numbers that float64 holds exactly. Got integers up to {exact.abs().max()}."
        )
    return exact


def _finite(value: Tensor) -> bool:
    return not value.is_meta and bool(torch.isfinite(value).all())


# What a user can say about inputs: a bound on every entry or a set, for all recurrent modules or by name.
SingleBound: TypeAlias = float | Tensor | InputSet
InputBound: TypeAlias = SingleBound | Mapping[str, SingleBound] | None


def as_input_set(value: object) -> InputSet:
    """Return a set as it is; a number or tensor as :class:`SupNorm`.

    Raises:
        TypeError: If ``value`` is neither.
    """
    if isinstance(value, InputSet):
        return value
    if isinstance(value, (Real, Tensor)) and not isinstance(value, bool):
        return SupNorm(_bound("input_bound", value))  # type: ignore[arg-type]
    raise TypeError(
        "`input_bound` must be a number, an input set of lightning_stable.stability, or a mapping from layer names to "
        f"those. Got {checks.shown(value)}."
    )
