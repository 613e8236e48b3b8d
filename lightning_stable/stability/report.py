"""The result of a certification: one certificate per layer and direction, and the report over a model."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_stable import checks
from lightning_stable.printing import counted
from lightning_stable.recurrence.base import Contraction, State
from lightning_stable.stability.citations import bibtex
from lightning_stable.stability.inputs.sets import weakest_guarantee
from lightning_stable.stability.window_bounds import WindowBounds
from lightning_stable.version import __version__

REMEDY = (
    "Project the model (StabilityProjectionCallback in training, `project_` after it); the rate of a gated cell also "
    "falls with a narrower set of inputs (`input_bound`, --input-bound)."
)


@dataclass(frozen=True)
class LayerCertificate:
    """Certificate of one directed recurrent layer, computed in float64 from the stored weights.

    Attributes:
        name: Qualified name, for example ``core.l0_reverse``.
        layer: Depth inside its module, from 0.
        direction: ``"forward"`` or ``"backward"``.
        cell: Cell family, for example ``"lstm"``.
        rate: Certified contraction rate per step; infinite if there is none, NaN if the input set is not finite.
        norm: Certificate the rate comes from, for example ``"row"``.
        input_bound: The inputs it holds for, in words; None where no input bound is needed or known.
        guarantee: What the claim rests on. ``"guaranteed"``: nothing, or a set of inputs that was declared or that the
            module implies. ``"derived"``: a set read off the traced model. ``"data"``: a set that was only observed.
            ``"none"``: no claim, because there is no finite rate or a run left the premises.
        recurrent_norm: Frobenius norm of the recurrent weights per gate. A certified network may be an emptied one:
            look at these.
        contraction: The norm in which the map contracts, for checking the promise; not part of :meth:`to_dict`, and
            None in a report :meth:`~StabilityReport.without_windows`.
        reason: Why there is no claim, in a sentence that says what to do; None where there is one.
        input_excess: The largest amount by which inputs of a run left the set, 0 inside and outside of runs.
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
    contraction: Contraction | None = field(repr=False, compare=False)
    reason: str | None = None
    input_excess: float = 0.0

    @property
    def is_stable(self) -> bool:
        """Whether a rate below 1 is certified, on whatever guarantee."""
        return self.rate < 1 and self.guarantee != "none"

    def distance(self, state: State, other: State) -> Tensor:
        """Return the distance of two states ``(h,)`` or ``(h, c)`` in the norm of the certificate.

        One step of the recurrence with equal inputs multiplies it by at most ``rate``.

        Raises:
            ValueError: If the norm is not part of the report.
        """
        if self.contraction is None:
            raise ValueError("The report must hold the norms of its certificates. Got a copy without; certify anew.")
        return self.contraction.distance(state, other)

    def citation(self) -> str:
        """Return the papers that the certificate rests on, as BibTeX."""
        return bibtex([(self.cell, self.norm)])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; an infinite rate becomes None."""
        return {
            "name": self.name,
            "layer": self.layer,
            "direction": self.direction,
            "cell": self.cell,
            "rate": self.rate if math.isfinite(self.rate) else None,
            "norm": self.norm,
            "input_bound": self.input_bound,
            "guarantee": self.guarantee,
            "reason": self.reason,
            "input_excess": self.input_excess,
            "recurrent_norm": dict(self.recurrent_norm),
        }


@dataclass(frozen=True)
class StabilityReport:
    """Certificates of all recurrences of a model; ``str(report)`` is a table.

    Attributes:
        layers: One certificate per directed layer.
        version: Version of this package that computed them.
        bounds: Certified truncation errors per recurrent module; not part of :meth:`to_dict`.
    """

    layers: tuple[LayerCertificate, ...]
    version: str = __version__
    bounds: tuple[WindowBounds, ...] = field(default=(), repr=False, compare=False)

    @property
    def rate(self) -> float:
        """The largest certified rate: the stack contracts at every rate above it."""
        # NaN, from an input set that is not finite, must not hide behind other layers: no comparison with it is true.
        return max(certificate.rate if certificate.rate < math.inf else math.inf for certificate in self.layers)

    @property
    def guarantee(self) -> str:
        """The weakest guarantee of a layer: ``"none"``, ``"data"``, ``"derived"`` or ``"guaranteed"``."""
        return weakest_guarantee(certificate.guarantee for certificate in self.layers)

    @property
    def is_stable(self) -> bool:
        """Whether a rate below 1 is certified for every recurrence, on whatever guarantee."""
        return all(certificate.is_stable for certificate in self.layers)

    @property
    def input_excess(self) -> float:
        """The largest amount by which inputs of a run left a set that was certified for."""
        return max(certificate.input_excess for certificate in self.layers)

    def revoked(
        self,
        reasons: Mapping[str, str],
        excess: Mapping[str, float] | None = None,
        windows: Mapping[str, str] | None = None,
    ) -> StabilityReport:
        """The report without the claims of some layers, and without the windows of their modules.

        Args:
            reasons: Why, by the name of the layer.
            excess: By how much inputs left their set, by the name of the layer. One without a reason keeps its rate,
                which rests on no inputs, and loses its windows.
            windows: Why layers that keep their rate lose their windows all the same, by the name of the layer.
        """
        excess, windows = excess or {}, windows or {}
        layers = []
        for layer in self.layers:
            reason = windows.get(layer.name, layer.reason)
            layer = replace(layer, input_excess=excess.get(layer.name, 0.0), reason=reason)
            revoked = layer.name in reasons
            layers.append(replace(layer, guarantee="none", reason=reasons[layer.name]) if revoked else layer)
        broken = {name for layer in (*reasons, *excess, *windows) for name in (layer, layer.rpartition(".")[0])}
        bounds = tuple(known.revoked() if known.name in broken else known for known in self.bounds)
        return replace(self, layers=tuple(layers), bounds=bounds)

    def without_windows(self) -> StabilityReport:
        """The report without norms and bounds on windows, whose size is that of the weights: for pickles and copies."""
        layers = (replace(layer, contraction=None) for layer in self.layers)
        return replace(self, layers=tuple(layers), bounds=())

    def required_window(self, tolerance: float) -> int | None:
        """Return the certified window: the smallest one that suffices for every recurrent module.

        Given equal inputs, the output of each module and that of its windowed form, which restarts from zero this
        many steps earlier, differ by at most ``tolerance`` in the Euclidean norm: for every admissible input and
        every run from zero (or from states up to ``state_bound``), in exact arithmetic.

        Args:
            tolerance: Positive and finite.

        Returns:
            The window; None if a recurrence is not certified, or needs more than 10,000 steps (512 in bidirectional
            stacks), or the report is :meth:`without_windows`.

        Raises:
            ValueError: If ``tolerance`` is not positive and finite.
        """
        tolerance = checks.number("tolerance", tolerance, "(0, inf)")
        if not self.is_stable or not self.bounds:
            return None
        window, before = 1, 0
        # Bounds need not fall with every step: a window that one module needs may be none for another.
        while window > before:
            before = window
            for bounds in self.bounds:
                larger = bounds.required_window(tolerance, at_least=window)
                if larger is None:
                    return None
                window = larger
        return window

    def citation(self) -> str:
        """Return the papers that the certificates rest on, as BibTeX."""
        return bibtex((layer.cell, layer.norm) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; an infinite or undefined rate becomes None."""
        return {
            "rate": self.rate if math.isfinite(self.rate) else None,
            "is_stable": self.is_stable,
            "guarantee": self.guarantee,
            "version": self.version,
            "layers": [certificate.to_dict() for certificate in self.layers],
        }

    def table(self) -> Table:
        """Return the report as a rich table."""
        table = Table(title=f"{'stable' if self.is_stable else 'NOT certified stable'}: rate {format_rate(self.rate)}")
        for column in ("layer", "rate", "certificate", "inputs", "recurrent norm"):
            table.add_column(column)
        for c in self.layers:
            norms = [f"{gate} {value:.3g}" for gate, value in c.recurrent_norm.items()]
            # Two gates to a line: the table should fit into 80 columns.
            gates = "\n".join("  ".join(norms[start : start + 2]) for start in range(0, len(norms), 2))
            known = c.input_bound or ("unknown" if c.guarantee == "none" and c.reason else "any")
            table.add_row(f"{c.name}\n({c.cell})", format_rate(c.rate), f"{c.norm}\n{c.guarantee}", known, gates)
        reasons = [f"{c.name}: {c.reason}" for c in self.layers if c.reason]
        table.caption, table.caption_justify = "\n".join(reasons) or None, "left"
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        return text.getvalue().rstrip()


def why_unstable(report: StabilityReport) -> str:
    """Say why a report without a rate below 1 has none, and what to do: everywhere in the same words."""
    layer = next(layer for layer in report.layers if not layer.is_stable)
    return layer.reason or f"The rate of {layer.name!r}, {format_rate(layer.rate)}, is not below 1. {REMEDY}"


def why_no_bound(report: StabilityReport, window: int | None = None, size: float = 1.0) -> str:
    """Say why no error that means something is certified, and what to do: everywhere in the same words.

    Args:
        report: The certificates.
        window: The window whose error is above the size of the outputs; None if no window is within a tolerance.
        size: The size of the outputs.
    """
    if not report.is_stable:
        return f"No useful bound is certified. {why_unstable(report)}"
    if any(bounds.guarantee == "none" for bounds in report.bounds):
        return (
            "No useful bound is certified: a rate is, but nothing bounds the states. Declare the set of the inputs "
            "(`input_bound`, --input-bound)."
        )
    if window is None:
        return (
            "No useful bound is certified for up to 10,000 inputs. Allow a larger error, or project to a smaller rate."
        )
    longer = report.required_window(size / 100)
    remedy = (
        "Project the model to a smaller rate"
        if longer is None
        else f"{counted(longer, 'input')} are certified to leave an error of 1 % of that"
    )
    return (
        f"No useful worst-case bound is certified for a window of {counted(window, 'input')}: the error may be as "
        f"large as the outputs. {remedy}."
    )


def format_rate(rate: float) -> str:
    """Return six digits, more where they would round a stable rate to 1; never rounded down to a better rate."""
    if not rate < 1e4:
        return f"{rate:.3g}"
    for digits in range(6, 16):
        text = f"{math.ceil(rate * 10**digits) / 10**digits:.{digits}f}"
        if rate >= 1 or float(text) < 1:
            return text
    return repr(rate)
