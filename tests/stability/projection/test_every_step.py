"""The projection after training steps against the plain one, and in a row of steps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.recurrence import GatedRecurrence, find_recurrences
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability import Box, Constraint, FiniteSet, L2Ball, LayerNormOutput
from lightning_stable.stability.inputs.resolve import resolve_sources
from lightning_stable.stability.projection import clip_subspace
from lightning_stable.stability.projection.every_step import FastProjection
from lightning_stable.stability.projection.project import apply_updates, propose_updates
from lightning_stable.stability.projection.projector import Projector
from tests.helpers import CELLS, on_gpu

FEATURES, UNITS, RATE = 6, 12, 0.9
VARIANTS = [
    *(
        ("rnn", {"norm": norm, "method": m})
        for norm in ("l2", "linf", "l1", "perron")
        for m in ("euclidean", "rescale")
    ),
    *((cell, {"method": method}) for cell in ("lstm", "gru") for method in ("shares", "euclidean", "rescale")),
    *((cell, {"norm": norm}) for cell in ("lstm", "gru") for norm in ("l2", "tight")),
    ("lstm", {"method": "miller-hardt", "gate_bound": 0.6}),
]


def core(cell: str, *, scale: float = 4.0, seed: int = 0, units: int = UNITS, **kwargs: Any) -> nn.RNNBase:
    torch.manual_seed(seed)
    arguments = {"num_layers": 2, "bidirectional": True, **kwargs}
    module = CELLS[cell](FEATURES, units, **arguments)
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(scale)
    return module


def plain(module: nn.Module, constraint: Constraint, bound: Any) -> None:
    recurrences = find_recurrences(module)
    sources = resolve_sources(module, recurrences, bound, True)
    apply_updates(propose_updates(recurrences, sources, constraint, strict=False, training=True))


def close(first: nn.Module, second: nn.Module, tolerance: float = 1e-5) -> None:
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cell", "arguments"), VARIANTS, ids=str)
def test_gives_what_the_plain_projection_gives(cell: str, arguments: dict[str, Any], bias: bool) -> None:
    """Four recurrences of two shapes, far outside and near the set."""
    for scale in (0.1, 1.0, 4.0):
        module, constraint = core(cell, scale=scale, bias=bias), Constraint(RATE, **arguments)
        other, bound = copy.deepcopy(module), Box(-1.0, 2.0)
        Projector(module, constraint, input_bound=bound).project(strict=False)
        plain(other, constraint, bound)
        close(module, other)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("cell", "arguments"), VARIANTS, ids=str)
def test_no_method_hides_a_value_that_is_not_finite(cell: str, arguments: dict[str, Any], value: float) -> None:
    """Zeroed or clamped it would pass for a weight."""
    module = core(cell)
    with torch.no_grad():
        module.weight_hh_l0[3, 2] = value
    with pytest.raises(ValueError, match="weight_hh_l0"):
        Projector(module, Constraint(RATE, **arguments), input_bound=1.0).project(strict=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_in_any_dtype(cell: str, dtype: torch.dtype) -> None:
    module = core(cell).to(dtype)
    Projector(module, Constraint(RATE), input_bound=1.0).project(strict=False)
    assert {value.dtype for value in module.parameters()} == {dtype}
    assert 0.8 * RATE < certify(module, input_bound=1.0).rate <= RATE


@pytest.mark.parametrize(
    "bound",
    [
        L2Ball(3.0),
        LayerNormOutput(None, None, FEATURES),
        FiniteSet(torch.randn(9, FEATURES)),
        FiniteSet(torch.randn(300, FEATURES), 0.3),
    ],
    ids=lambda bound: bound.describe(),
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_with_any_input_set(cell: str, bound: Any) -> None:
    """Far outside at first, where all rows move, then a step away, where some do."""
    module, generator = core(cell, scale=2.0), torch.Generator().manual_seed(0)
    projector = Projector(module, Constraint(RATE), input_bound=bound)
    for _ in range(3):
        other = copy.deepcopy(module)
        projector.project(strict=False)
        plain(other, Constraint(RATE), bound)
        close(module, other)
        wander(module, generator)


def test_relu_below_a_gated_layer_and_frozen_layers() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.relu = nn.RNN(FEATURES, FEATURES, nonlinearity="relu")
            self.tanh = nn.RNN(FEATURES, FEATURES)
            self.lstm, self.frozen = core("lstm"), core("lstm").requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.lstm(self.tanh(self.relu(x.clamp(-1, 1))[0])[0])[0][..., :FEATURES])[0]

    module, other = Mixed(), Mixed()
    Projector(module, Constraint(RATE), input_bound=1.0).project(strict=False)
    plain(other, Constraint(RATE), 1.0)
    close(module, other)
    assert all(torch.equal(p, q) for p, q in zip(module.frozen.parameters(), core("lstm").parameters(), strict=True))


def test_a_frozen_recurrence_need_not_be_able_to_reach_the_rate() -> None:
    """Without biases a gate cannot be kept below 1/2; nobody asks that of weights that stay as they are."""
    model = nn.ModuleDict({"rnn": core("rnn"), "frozen": core("lstm", bias=False).requires_grad_(False)})
    before = copy.deepcopy(model["frozen"])
    Projector(model, Constraint(0.4), input_bound=1.0).project(strict=False)
    assert certify(model["rnn"]).rate <= 0.4
    close(model["frozen"], before, 0)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("state_bound", [1.0, 3.0])
@pytest.mark.parametrize("leak_bound", [0.3, 0.8])
def test_the_short_budget_is_the_budget(cell: str, state_bound: float, leak_bound: float) -> None:
    for scale in (0.1, 1.0, 5.0):
        (recurrence,) = find_recurrences(core(cell, scale=scale, num_layers=1, bidirectional=False).double())
        assert isinstance(recurrence, GatedRecurrence)
        weights, rows = recurrence.weights(), recurrence.leading_rows()
        high = torch.full_like(weights["weight_ih"][:, 0], torch.inf)
        drive = Interval(-high, high)
        drive.high[rows] = torch.linspace(-9, 9, UNITS, dtype=torch.float64)
        settings: dict[str, Any] = {"state_bound": state_bound, "leak_bound": leak_bound}
        whole = recurrence.budget(weights, drive, 0.95, norm="row", **settings)
        index = recurrence.gates.index(recurrence.leak)
        leak = recurrence.pre_activation(weights, drive, max(1.0, state_bound))[index].high
        short = recurrence.leading_budget(weights, recurrence.row_norms(weights), leak, 0.95, **settings)
        torch.testing.assert_close(short.coefficients, whole.coefficients)
        torch.testing.assert_close(short.limit, whole.limit)


def test_large_matrices_are_clipped_together_with_a_subspace() -> None:
    module = core("rnn", units=clip_subspace.MIN_UNITS, bidirectional=True, scale=0.8)
    projector, generator = Projector(module, Constraint(RATE)), torch.Generator().manual_seed(0)
    for _ in range(8):
        other = copy.deepcopy(module)
        projector.project(strict=False)
        plain(other, Constraint(RATE), None)
        close(module, other, 2e-5)
        with torch.no_grad():
            for value in module.parameters():
                value.add_(1e-3 * torch.randn(value.shape, generator=generator) / value.shape[0] ** 0.5)
    (state,) = projector.state_dict().values()
    assert state["vectors"].shape[0] == 4
    assert state["age"] > 4


class Words(nn.Module):
    def __init__(self, cell: str, points: int = 300, **kwargs: Any) -> None:
        super().__init__()
        self.table, self.core = nn.Embedding(points, FEATURES), core(cell, **{"scale": 1.5, **kwargs})

    def forward(self, tokens: Tensor) -> Tensor:
        return self.core(self.table(tokens))[0]


def wander(model: nn.Module, generator: torch.Generator, size: float = 2e-3) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.add_(size * torch.randn(value.shape, generator=generator).sign())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_inside_the_set_after_every_step(cell: str) -> None:
    """Whatever a step did to weights and to the table, which is the input set."""
    model, generator = Words(cell, bidirectional=False), torch.Generator().manual_seed(0)
    projector = Projector(model, Constraint(RATE))
    for _ in range(40):
        wander(model, generator, 2e-2)
        projector.project(strict=False)
        assert projector.certify().rate <= RATE


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_reading_values_changes_the_time_alone(cell: str, bias: bool) -> None:
    """The gate step for the units outside, of two directions together, against that for all units."""
    model, generator = Words(cell, bias=bias), torch.Generator().manual_seed(0)
    projector = Projector(model, Constraint(RATE))
    for _ in range(6):
        wander(model, generator, 1e-2)
        other = copy.deepcopy(model)
        without = Projector(other, Constraint(RATE))
        without._after_steps = FastProjection(reading=False)
        projector.project(strict=False)
        without.project(strict=False)
        close(model, other, 1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reading", [True, False])
def test_resumed_equals_uninterrupted(cell: str, reading: bool) -> None:
    def fresh(model: nn.Module) -> Projector:
        projector = Projector(model, Constraint(RATE))
        projector._after_steps = FastProjection(reading=reading)
        return projector

    model, generator = (
        Words(cell, units=clip_subspace.MIN_UNITS, num_layers=1, scale=0.8),
        torch.Generator().manual_seed(0),
    )
    projector = fresh(model)
    for _ in range(5):
        projector.project(strict=False)
        wander(model, generator)
    other, state = copy.deepcopy(model), projector.state_dict()
    assert bool(state) == (cell == "rnn" and reading)
    resumed = fresh(other)
    resumed.load_state_dict(state)
    resumed.load_state_dict(resumed.state_dict())  # before its first use
    for _ in range(5):
        randomness = generator.get_state()
        for owner, net in ((projector, model), (resumed, other)):
            owner.project(strict=False)
            generator.set_state(randomness)
            wander(net, generator)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_an_accelerator_follows_all_values_at_the_bound() -> None:
    model = Words("rnn", units=clip_subspace.MIN_UNITS, num_layers=1)
    projector = Projector(model, Constraint(RATE))
    projector._after_steps = FastProjection(reading=False)
    projector.project(strict=True)
    assert (torch.linalg.svdvals(model.core.weight_hh_l0) > RATE - 1e-3).float().mean() > 0.3
    with torch.no_grad():
        model.core.weight_hh_l0.mul_(1.01)
    projector.project(strict=False)
    assert projector.certify().rate <= RATE


@on_gpu
@pytest.mark.parametrize("cell", CELLS)
def test_steps_can_be_captured_in_a_cuda_graph(cell: str) -> None:
    model = Words(cell, units=clip_subspace.MIN_UNITS, num_layers=1).cuda()
    projector = Projector(model, Constraint(RATE))
    for _ in range(3):
        projector.project(strict=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        projector.project(strict=False)
    with torch.no_grad():
        model.core.weight_hh_l0.mul_(1.01)
    graph.replay()
    assert projector.certify().rate <= RATE + 1e-4
