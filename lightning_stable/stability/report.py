"""What a certification found: one certificate per layer and direction, and the report over a model."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_stable.recurrence.base import Contraction, State
from lightning_stable.version import __version__


@dataclass(frozen=True)
class LayerCertificate:
    """Certificate of one directed recurrent layer, computed in float64 from the stored weights.

    Attributes:
        name: Qualified name, for example ``core.l0_reverse``.
        layer: Depth inside its module, from 0.
        direction: ``"forward"`` or ``"backward"``.
        cell: Cell family, for example ``"lstm"``.
        rate: Certified contraction rate per step; infinite if there is none.
        norm: Certificate the rate comes from, for example ``"row"``.
        input_bound: The inputs it holds for, in words; None where no input bound is needed or known.
        guarantee: ``"guaranteed"`` for every input of that set, ``"data"`` if the set was only observed,
            ``"none"`` if there is no finite rate.
        recurrent_norm: Frobenius norm of the recurrent weights per gate. A certified network may be an emptied one:
            look at these.
        contraction: The norm in which the map contracts, for checking the promise; not part of :meth:`to_dict`.
    """

    name: str
    layer: int
    direction: str
    cell: str
    rate: float
    norm: str
    input_bound: str | None
    guarantee: str
    recurrent_norm: dict[str, float]
    contraction: Contraction = field(repr=False, compare=False)

    @property
    def is_stable(self) -> bool:
        """Whether the certified rate is below 1."""
        return self.rate < 1

    def distance(self, state: State, other: State) -> Tensor:
        """Distance of two states ``(h,)`` or ``(h, c)`` in the norm of the certificate.

        One step of the recurrence with equal inputs multiplies it by at most ``rate``.
        """
        return self.contraction.distance(state, other)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; an infinite rate becomes None."""
        return {
            "name": self.name,
            "layer": self.layer,
            "direction": self.direction,
            "cell": self.cell,
            "rate": self.rate if math.isfinite(self.rate) else None,
            "norm": self.norm,
            "input_bound": self.input_bound,
            "guarantee": self.guarantee,
            "recurrent_norm": dict(self.recurrent_norm),
        }


@dataclass(frozen=True)
class StabilityReport:
    """Certificates of all recurrences of a model; ``str(report)`` is a table."""

    layers: tuple[LayerCertificate, ...]
    version: str = __version__

    @property
    def rate(self) -> float:
        """The largest certified rate: the stack contracts at every rate above it."""
        return max(certificate.rate for certificate in self.layers)

    @property
    def is_stable(self) -> bool:
        """Whether every recurrence has a rate below 1."""
        return self.rate < 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "rate": self.rate if math.isfinite(self.rate) else None,
            "is_stable": self.is_stable,
            "version": self.version,
            "layers": [certificate.to_dict() for certificate in self.layers],
        }

    def table(self) -> Table:
        """The report as a rich table."""
        table = Table(title=f"{'stable' if self.is_stable else 'NOT certified stable'}: rate {format_rate(self.rate)}")
        for column in ("layer", "cell", "rate", "norm", "guarantee", "inputs", "recurrent norm"):
            table.add_column(column, justify="right" if column == "rate" else "left")
        for c in self.layers:
            gates = " ".join(f"{gate} {value:.3g}" for gate, value in c.recurrent_norm.items())
            table.add_row(c.name, c.cell, format_rate(c.rate), c.norm, c.guarantee, c.input_bound or "any", gates)
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(self.table())
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]


def format_rate(rate: float) -> str:
    """Six digits, never rounded up to a rate that would look unstable or down to a better one."""
    return f"{math.ceil(rate * 1e6) / 1e6:.6f}" if rate < 1e4 else f"{rate:.3g}"
