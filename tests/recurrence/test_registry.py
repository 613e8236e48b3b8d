import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from lightning_stable import certify, project_, register_recurrence, truncate, truncation_profile
from lightning_stable.diagnostics import measure_state_gradients
from lightning_stable.recurrence import (
    Contraction,
    Interval,
    Recurrence,
    find_recurrences,
    is_recurrent,
    recurrences_by_module,
    recurrences_of,
    register_recurrence_factory,
)
from lightning_stable.recurrence.base import State, Weights
from tests.nets import LAYERS, net
from tests.stability.adversary import TOLERANCE, worst_ratio


# An own cell, from weights to certificate -----------------------------------------------------------------------------
class LeakyCell(nn.Module):
    """``h' = (1 - a) h + a tanh(W h + U x + b)`` with a time constant of ``1 / a`` steps."""

    def __init__(self, input_size: int, hidden_size: int, a: float = 0.3) -> None:
        super().__init__()
        self.a = a
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (1 - self.a) * h + self.a * torch.tanh(h @ self.weight_hh.mT + x @ self.weight_ih.mT + self.bias)


@register_recurrence(LeakyCell)
class LeakyRecurrence(Recurrence):
    """The Jacobian is ``(1 - a) I + a D W`` with a diagonal ``0 <= D <= 1``: at most ``1 - a + a ||W||_2``."""

    cell = "leaky"
    roles = ("weight_ih", "weight_hh", "bias")
    norms = ("l2",)
    needs_drive = False  # the bound holds for every input

    def step(self, inputs: Tensor, state: State) -> State:
        return (self.module(inputs, state[0]),)

    def initial_state(self, inputs: Tensor) -> State:
        return (inputs.new_zeros(*inputs.shape[:-1], len(self.parameters()["weight_hh"])),)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        hidden, a = weights["weight_hh"], self.module.a
        rate = 1 - a + a * torch.linalg.matrix_norm(hidden, ord=2) * (1 + 1e-12)  # the factor covers rounding
        return Contraction(rate, scales=(torch.ones_like(hidden[0]),), order=2)


@pytest.mark.parametrize("rate", [0.8, 0.99])
def test_an_own_cell_is_certified_and_projected(rate: float) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"core": LeakyCell(3, 5)}).double()
    assert not certify(model).is_stable

    report = project_(model, rate)

    assert rate - 1e-6 < report.rate <= rate
    assert report.layers[0].name == "core"
    assert worst_ratio(model["core"], report.layers[0], None) <= report.rate + TOLERANCE


# ----------------------------------------------------------------------------------------------------------------------
def test_a_rate_the_own_cell_cannot_reach() -> None:
    cell = LeakyCell(3, 5, a=0.3)
    before = cell.weight_hh.clone()
    with pytest.raises(ValueError, match=r"leaky recurrence 'leaky' cannot reach the rate. Got rate=0.5"):
        project_(cell, 0.5)  # with W = 0 it still is 0.7
    assert torch.equal(cell.weight_hh, before)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_generic_projection_is_a_common_factor(dtype: torch.dtype, strict: bool) -> None:
    torch.manual_seed(0)
    cell = LeakyCell(3, 5).to(dtype)
    before, others = cell.weight_hh.detach().double().clone(), cell.weight_ih.clone()
    assert project_(cell, 0.9, strict=strict).rate <= 0.9
    ratio = cell.weight_hh.double() / before
    assert 0 < ratio.min() <= ratio.max() < 1
    assert ratio.max() - ratio.min() < 8 * torch.finfo(dtype).eps
    assert torch.equal(cell.weight_ih, others)
    once = cell.weight_hh.clone()
    project_(cell, 0.9)
    assert torch.equal(cell.weight_hh, once)


class LeakyStack(nn.Module):
    """Two leaky layers; layer ``k`` owns ``weight_ih_lk``, ``weight_hh_lk`` and ``bias_lk``."""

    def __init__(self, sizes: tuple[int, ...] = (3, 5, 4)) -> None:
        super().__init__()
        for k, (columns, rows) in enumerate(itertools.pairwise(sizes)):
            for name, shape in (("weight_ih", (rows, columns)), ("weight_hh", (rows, rows)), ("bias", (rows,))):
                self.register_parameter(f"{name}_l{k}", nn.Parameter(2 * torch.randn(shape)))
        self.a = 0.5


register_recurrence_factory(
    LeakyStack,
    lambda module, name: [
        LeakyRecurrence(module, name=f"{name}.l{k}", module_name=name, layer=k, suffix=f"_l{k}") for k in range(2)
    ],
)


def test_a_factory_gives_several_layers() -> None:
    model = nn.ModuleDict({"stack": LeakyStack()})
    report = project_(model, 0.95)
    assert [(c.name, c.layer) for c in report.layers] == [("stack.l0", 0), ("stack.l1", 1)]
    for k in range(2):
        assert torch.linalg.matrix_norm(model["stack"].get_parameter(f"weight_hh_l{k}"), ord=2) <= 0.9 + 1e-6


# Finding recurrences --------------------------------------------------------------------------------------------------
def test_names_follow_torch_and_the_model() -> None:
    model = nn.ModuleDict(
        {"a": nn.GRU(3, 4, num_layers=2, bidirectional=True), "b": nn.Sequential(nn.Linear(4, 4), nn.LSTMCell(4, 4))}
    )
    assert [r.name for r in find_recurrences(model)] == ["a.l0", "a.l0_reverse", "a.l1", "a.l1_reverse", "b.1"]
    assert [r.name for r in find_recurrences(nn.RNN(3, 4))] == ["l0"]
    assert [r.name for r in find_recurrences(nn.GRUCell(3, 4))] == ["gru"]
    assert [r.module_name for r in find_recurrences(nn.RNN(3, 4))] == [""]


def test_patterns_select_modules() -> None:
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"x": nn.RNN(2, 2), "y": nn.GRU(2, 2)}), "decoder": nn.RNN(2, 2)})
    for patterns, names in (
        ("encoder.*", ["encoder.x.l0", "encoder.y.l0"]),
        (["decoder", "*.y"], ["encoder.y.l0", "decoder.l0"]),
        ("*", ["encoder.x.l0", "encoder.y.l0", "decoder.l0"]),
    ):
        assert [r.name for r in find_recurrences(model, patterns)] == names
    with pytest.raises(ValueError, match=r"`modules` pattern matches no recurrent module. Got 'encoder'"):
        find_recurrences(model, ["decoder", "encoder"])
    with pytest.raises(ValueError, match=r"`modules` must name recurrent modules, or be None for all. Got \[\]"):
        find_recurrences(model, [])


def test_recurrences_are_grouped_by_module() -> None:
    model = nn.ModuleDict({"a": nn.GRU(3, 4, num_layers=2), "b": nn.LSTMCell(4, 4), "c": nn.RNN(4, 4)})
    groups = recurrences_by_module(model)
    assert {name: [r.name for r in group] for name, group in groups.items()} == {
        "a": ["a.l0", "a.l1"],
        "b": ["b"],
        "c": ["c.l0"],
    }
    assert [r for group in groups.values() for r in group][-1].module is model["c"]
    assert list(recurrences_by_module(model, ["c", "a"])) == ["a", "c"]
    assert list(recurrences_by_module(model["c"])) == [""]


def test_a_module_used_twice_is_one_recurrence() -> None:
    core = nn.GRU(3, 3)
    assert len(find_recurrences(nn.ModuleDict({"a": core, "b": core}))) == 1


def test_the_outermost_registered_module_stands_for_what_it_contains() -> None:
    class Cell(LeakyCell):
        def __init__(self) -> None:
            super().__init__(3, 5)
            self.inner = nn.RNNCell(3, 5)

    assert [type(r) for r in find_recurrences(nn.Sequential(Cell()))] == [LeakyRecurrence]


def test_subclasses_are_recurrent() -> None:
    class Mine(nn.LSTM):
        pass

    assert is_recurrent(Mine(2, 2))
    assert not is_recurrent(nn.Linear(2, 2))


def test_no_recurrence() -> None:
    with pytest.raises(ValueError, match=r"No recurrence found in Sequential. Got modules of types \['Linear', 'Seq"):
        find_recurrences(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="No recurrence is registered for modules of type Linear"):
        recurrences_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"of type Sequential\. Got 'the module'; pass its '0'\.$"):
        recurrences_of(nn.Sequential(nn.LSTM(2, 2)))


@pytest.mark.parametrize("value", [LeakyCell(1, 1), int, "LSTM"])
def test_only_module_classes_are_registered(value: object) -> None:
    with pytest.raises(TypeError, match=r"must be a subclass of torch.nn.Module"):
        register_recurrence_factory(value, lambda module, name: [])  # type: ignore[arg-type]


NORMALIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
    "old_weight_norm": old_weight_norm,
    "old_spectral_norm": old_spectral_norm,
    "prune": lambda module, name: prune.l1_unstructured(module, name, amount=0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "norm"),
    [*(("gru", norm) for norm in NORMALIZATIONS), *((name, "weight_norm") for name in LAYERS if name != "gru")],
)
def test_weights_computed_from_others_are_refused(name: str, norm: str) -> None:
    model = nn.ModuleDict({"core": net(name, num_layers=2, dtype=torch.float32)})
    weight = "weight_ih_l1" if name in ("mingru", "minlstm") else "weight_hh_l1"
    NORMALIZATIONS[norm](model["core"], name=weight)
    for verb in (certify, project_):
        with pytest.raises(ValueError, match=rf"parametrized or normed '{weight}' in 'core.l1'"):
            verb(model, input_bound=1.0)


@pytest.mark.parametrize(
    ("value", "got"),
    [(3, "3"), (None, "None"), ("best.ckpt", "'best.ckpt'"), (nn.GRU, "the class GRU; call it"), ({}, "{}")],
)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (certify, "module"),
        (project_, "module"),
        (lambda value: truncate(value, 2), "module"),
        (lambda value: truncation_profile(value, torch.zeros(2, 1, 3)), "recurrent"),
        (lambda value: measure_state_gradients(value, torch.zeros(2, 1, 3)), "recurrent"),
    ],
)
def test_what_is_no_module(function: Any, name: str, value: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^`{name}` must be a torch.nn.Module. Got {got}"):
        function(value)
