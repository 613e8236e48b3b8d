"""Training steps that keep a recurrent matrix in a ball, as several libraries do it, against a step that does not.

Every side trains the same cell on the same batches. The spectral norm is measured in float64 after every step, in the
weights that an evaluation would use there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.projection import svd_clamp
from benchmarks.timing import Comparison, compared, duration
from benchmarks.training import batches, vocabulary
from lightning_stable.stability import Constraint
from lightning_stable.stability.projection.projector import Projector

SIZES = (128, 512)
RATE = 0.99
# Of the square of what the norm exceeds the bound by, in the loss.
PENALTY = 1.0
# Relative, of a spectral norm in float32.
ROUNDING = 1e-5
_LEARNING_RATE = 1e-3
# Packages to be imported, and the names under which they are installed.
PACKAGES = {"geotorch": "geotorch", "deel.torchlip": "deel-torchlip"}

Prepare = Callable[["CellModel"], "Callable[[], object] | None"]


class CellModel(nn.Module):
    """A language model around a cell in a loop, which every parametrization can reach."""

    def __init__(self, words: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, units)
        self.cell = nn.RNNCell(units, units)
        self.decoder = nn.Linear(units, words)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of shape ``(batch, time, words)`` for tokens of shape ``(batch, time)``."""
        state, states = None, []
        with parametrize.cached():
            for step in self.embedding(tokens).unbind(1):
                state = self.cell(step, state)
                states.append(state)
        logits: Tensor = self.decoder(torch.stack(states, 1))
        return logits


class _Times(nn.Module):
    """Multiplies a weight that another parametrization has given its shape."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight


def peers(sizes: tuple[int, ...] = SIZES, steps: int = 15, device: str = "cpu") -> Iterator[Comparison]:
    """Time whole training steps, all sides in turn on one batch after the other.

    ``largest norm`` is the largest spectral norm after any step, ``error`` by how much it is above the bound, relative
    to the bound, and ``outside`` the number of steps that ended above the bound by more than float32 rounds. Rows of
    packages that are not installed are left out, with a warning.

    Args:
        sizes: The numbers of units.
        steps: The number of steps that are timed, after one that is not.
        device: ``cpu`` or ``cuda``.
    """
    sides = _sides()
    for size in sizes:
        runs = {name: _Run(prepare, size, device) for name, prepare in sides.items()}
        for tokens, targets in islice(batches(), steps + 1):
            for run in runs.values():
                run.advance(tokens.to(device), targets.to(device))
        plain = runs.pop("plain")
        # A row of its own: nothing keeps the norm of a plain step.
        for name, run in {"no constraint": plain, **runs}.items():
            pairs = list(zip(plain.seconds[1:], run.seconds[1:], strict=True))
            largest = max(run.norms)
            outside = sum(norm > RATE * (1 + ROUNDING) for norm in run.norms)
            extra = {"largest norm": largest, "outside": float(outside)}
            yield compared(f"peer {name}", size, device, "plain step", pairs, max(0.0, largest / RATE - 1), extra)


class _Run:
    """One side: its model, how long its steps take, and the norms after them."""

    def __init__(self, prepare: Prepare, size: int, device: str) -> None:
        torch.manual_seed(0)
        self.model = CellModel(vocabulary(), size).to(device)
        self.device = device
        self.after_step = prepare(self.model)
        self.penalized = prepare is _soft_penalty
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=_LEARNING_RATE)
        self.seconds: list[float] = []
        self.norms: list[float] = []

    def advance(self, tokens: Tensor, targets: Tensor) -> None:
        self.seconds.append(duration(lambda: self._step(tokens, targets), self.device))
        self.model.eval()
        with torch.no_grad():
            self.norms.append(float(torch.linalg.matrix_norm(self.model.cell.weight_hh.double(), 2)))
        self.model.train()

    def _step(self, tokens: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten())
        if self.penalized:
            excess = torch.linalg.matrix_norm(self.model.cell.weight_hh, 2) - RATE
            loss = loss + PENALTY * excess.clamp(min=0).square()
        torch.autograd.backward(loss)
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()


def _sides() -> dict[str, Prepare]:
    sides: dict[str, Prepare] = {
        "plain": lambda model: None,
        "ours": _ours,
        "ours, premises checked": _ours_checked,
        "svd clamp after the step": _svd_clamp,
        "soft penalty": _soft_penalty,
        "torch spectral_norm": _spectral_norm,
    }
    missing = [name for module, name in PACKAGES.items() if not _is_installed(module)]
    if "geotorch" not in missing:
        sides |= {"geotorch almost_orthogonal": _almost_orthogonal, "geotorch orthogonal": _orthogonal}
    if "deel-torchlip" not in missing:
        sides["deel-torchlip bjorck_norm"] = _bjorck_norm
    if missing:
        warnings.warn(
            f"Not installed, and left out of the peers: {', '.join(missing)}. Install them with "
            "pip install -c constraints.txt -e '.[bench]'.",
            stacklevel=3,
        )
    return sides


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _ours(model: CellModel) -> Callable[[], object]:
    """Do what StabilityProjectionCallback does at the start and after every step."""
    projector = Projector(model, Constraint(RATE))
    projector.project(strict=True)
    return lambda: projector.project(strict=False)


def _ours_checked(model: CellModel) -> Callable[[], object]:
    """Compare the weights in use and the start states at every forward as well, here once for every time step."""
    projector = Projector(model, Constraint(RATE))
    projector.project(strict=True)
    projector.attach()
    return lambda: projector.project(strict=False)


def _svd_clamp(model: CellModel) -> Callable[[], None]:
    weight = model.cell.weight_hh

    @torch.no_grad()
    def clamp() -> None:
        weight.copy_(svd_clamp(weight, RATE))

    clamp()
    return clamp


def _soft_penalty(model: CellModel) -> None:
    """Change nothing: the penalty is a term of the loss."""


def _spectral_norm(model: CellModel) -> None:
    spectral_norm(model.cell, "weight_hh")
    _scale(model, RATE)


def _almost_orthogonal(model: CellModel) -> None:
    # Singular values in (0, 2), times half the bound: the whole ball.
    import_module("geotorch").almost_orthogonal(model.cell, "weight_hh", lam=1.0)
    _scale(model, RATE / 2)


def _orthogonal(model: CellModel) -> None:
    import_module("geotorch").orthogonal(model.cell, "weight_hh")
    _scale(model, RATE)


def _bjorck_norm(model: CellModel) -> None:
    # As in torchlip's SpectralLinear.
    spectral_norm(model.cell, "weight_hh")
    import_module("deel.torchlip.utils").bjorck_norm(model.cell, "weight_hh")
    _scale(model, RATE)


def _scale(model: CellModel, factor: float) -> None:
    parametrize.register_parametrization(model.cell, "weight_hh", _Times(factor), unsafe=True)
