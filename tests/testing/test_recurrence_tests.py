"""The tests for cells, on the cells of this package and on adapters with a planted fault."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import linalg, register_recurrence
from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM
from lightning_stable.recurrence import Contraction, Recurrence
from lightning_stable.recurrence.base import State
from lightning_stable.stability import ActiveEntries, FiniteSet, L2Ball
from lightning_stable.testing import RecurrenceTests


def scaled(module: nn.Module, factor: float = 3.0) -> nn.Module:
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(factor)
    return module


class TestRNN(RecurrenceTests):
    def make_module(self) -> nn.Module:
        return scaled(nn.RNN(3, 5, num_layers=2))


class TestLSTM(RecurrenceTests):
    input_bound = 1.0

    def make_module(self) -> nn.Module:
        return scaled(nn.LSTM(3, 5, batch_first=True))


class TestGRUInBothDirections(RecurrenceTests):
    input_bound = L2Ball(2.0)

    def make_module(self) -> nn.Module:
        return scaled(nn.GRU(3, 5, bidirectional=True))


class TestGRUCell(RecurrenceTests):
    input_bound = FiniteSet(torch.eye(3, dtype=torch.float64))

    def make_module(self) -> nn.Module:
        return scaled(nn.GRUCell(3, 5))


class TestLSTMCell(RecurrenceTests):
    input_bound = ActiveEntries(1)

    def make_module(self) -> nn.Module:
        return scaled(nn.LSTMCell(3, 5))


class TestUGRNN(RecurrenceTests):
    input_bound = 1.0

    def make_module(self) -> nn.Module:
        return scaled(UGRNN(3, 5))


class TestIntersectionRNN(RecurrenceTests):
    input_bound = 1.0

    def make_module(self) -> nn.Module:
        return scaled(IntersectionRNN(3, 5))


class TestLeakyRNN(RecurrenceTests):
    def make_module(self) -> nn.Module:
        return scaled(LeakyRNN(3, 5))


class TestMinGRU(RecurrenceTests):
    input_bound = 1.0

    def make_module(self) -> nn.Module:
        return scaled(MinGRU(3, 5))


class TestMinLSTM(RecurrenceTests):
    input_bound = 1.0

    def make_module(self) -> nn.Module:
        return scaled(MinLSTM(3, 5))


# Planted faults -------------------------------------------------------------------------------------------------------
class Cell(nn.Module):
    """``h' = tanh(W h + U x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(4, 3))
        self.weight_hh = nn.Parameter(torch.randn(4, 4))

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.tanh(inputs @ self.weight_ih.T + hidden @ self.weight_hh.T)


def compared(hidden: Tensor, driven: Tensor, state: State, inputs: Tensor | None) -> State:
    moved = state[0] @ hidden.abs().T
    return (moved if inputs is None else moved + inputs @ driven.abs().T,)


class Sound(Recurrence):
    """An adapter without a fault."""

    cell = "sound"
    roles = ("weight_ih", "weight_hh")
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs_drive = False

    def step(self, inputs: Tensor, state: State) -> State:
        return (self.module(inputs, state[0]),)

    def initial_state(self, inputs: Tensor) -> State:
        return (inputs.new_zeros(*inputs.shape[:-1], 4),)

    def contraction(self, weights: dict[str, Tensor], drive: Any, **_: Any) -> Contraction:  # type: ignore[override]
        one = torch.ones_like(weights["weight_hh"][0])
        return Contraction(linalg.spectral_norm(weights["weight_hh"]), (one,), order=2)

    def state_box(self, weights: dict[str, Tensor], drive: Any, state_bound: float) -> State:  # type: ignore[override]
        return (torch.full((4,), max(1.0, state_bound), dtype=torch.float64),)

    def comparison(self, weights: dict[str, Tensor], drive: Any, state_bound: float) -> Any:  # type: ignore[override]
        return partial(compared, weights["weight_hh"], weights["weight_ih"])


class WrongStep(Sound):
    def step(self, inputs: Tensor, state: State) -> State:
        return (self.module(inputs, 0.99 * state[0]),)


class WrongContraction(Sound):
    def contraction(self, weights: dict[str, Tensor], drive: Any, **options: Any) -> Contraction:  # type: ignore[override]
        found = super().contraction(weights, drive, **options)
        return found._replace(rate=0.9 * found.rate)


class WrongComparison(Sound):
    def comparison(self, weights: dict[str, Tensor], drive: Any, state_bound: float) -> Any:  # type: ignore[override]
        return partial(compared, 0.8 * weights["weight_hh"], weights["weight_ih"])


class WrongProjection(Sound):
    """It asks for less than the target, and so goes further than needed."""

    def contraction(self, weights: dict[str, Tensor], drive: Any, **options: Any) -> Contraction:  # type: ignore[override]
        found = super().contraction(weights, drive, **options)
        return found._replace(rate=found.rate + 0.2 * (found.rate > 0.7))


def module_of(adapter: type[Recurrence]) -> type[nn.Module]:
    own = type(f"{adapter.__name__}Cell", (Cell,), {})
    register_recurrence(own)(adapter)
    return own


MODULES = {each: module_of(each) for each in (Sound, WrongStep, WrongContraction, WrongComparison, WrongProjection)}


class TestOwnCell(RecurrenceTests):
    def make_module(self) -> nn.Module:
        return MODULES[Sound]()


TESTS = sorted(name for name in vars(RecurrenceTests) if name.startswith("test_"))
FAULTS: dict[type[Recurrence], str] = {
    WrongStep: "test_the_adapter_steps_as_the_module",
    WrongContraction: "test_no_pair_of_states_contracts_less_than_certified",
    WrongComparison: "test_the_comparison_map_bounds_every_step",
    WrongProjection: "test_the_projection_ends_at_the_target_and_stays",
}


@pytest.mark.parametrize("adapter", FAULTS, ids=lambda adapter: adapter.__name__)
def test_a_planted_fault_is_found(adapter: type[Recurrence], tmp_path: Path) -> None:
    class Faulty(RecurrenceTests):
        def make_module(self) -> nn.Module:
            return MODULES[adapter]()

    test: Callable[..., None] = getattr(Faulty(), FAULTS[adapter])
    with pytest.raises(AssertionError):
        test()


def test_a_class_without_a_module_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="make_module"):
        RecurrenceTests().test_windows_are_exact()
