"""Verdicts are computed once for the values that they are about, and anew for any others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.recurrence import Recurrence, find_recurrences
from lightning_stable.recurrence.base import Contraction
from lightning_stable.recurrence.lstm import LSTMRecurrence
from lightning_stable.stability import Constraint, FiniteSet, SupNorm
from lightning_stable.stability.projection import remembered
from lightning_stable.stability.projection.projector import Projector
from lightning_stable.stability.projection.remembered import Remembered


class Case:
    """A layer over a table, and how often something was computed of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer, self.table = nn.LSTM(3, 4), nn.Parameter(torch.randn(5, 3))
        self.recurrences: list[Recurrence] = find_recurrences(self.layer)
        self.sources = {"": FiniteSet(self.table)}
        self.remembered, self.computed = Remembered(), 0

    def ask(self) -> int:
        def compute() -> int:
            self.computed += 1
            return self.computed

        return self.remembered("verdict", self.recurrences, self.sources, compute)


def test_the_same_values_are_computed_once() -> None:
    case = Case()
    assert [case.ask() for _ in range(3)] == [1, 1, 1]
    assert case.remembered("another", case.recurrences, case.sources, lambda: "other") == "other"


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda case: case.layer.weight_hh_l0.mul_(0.5),
        lambda case: case.layer.weight_ih_l0.data[0, 0].add_(1),  # torch counts no write
        lambda case: case.table.data.add_(1),
        lambda case: case.layer.bias_hh_l0.requires_grad_(False),
        lambda case: case.layer.bias_hh_l0.fill_(float("nan")),
        lambda case: case.sources.update({"": FiniteSet(case.table, 0.1)}),
        lambda case: case.sources.update({"": SupNorm(2.0)}),
        lambda case: case.sources.clear(),
    ],
)
def test_any_other_value_is_computed_anew(change: Callable[[Case], object]) -> None:
    case = Case()
    case.ask()
    change(case)
    assert case.ask() == 2


@torch.no_grad()
def test_trained_and_projected_weights_take_turns() -> None:
    case = Case()
    trained = case.layer.weight_hh_l0.clone()
    for _ in range(3):
        case.layer.weight_hh_l0.copy_(trained)
        assert case.ask() == 1
        case.layer.weight_hh_l0.copy_(trained * 0.5)
        assert case.ask() == 2


class Odd(SupNorm):
    """A set of a user's own, which may ask whatever it likes."""


@pytest.mark.parametrize("large", [False, True])
def test_what_cannot_be_known_or_is_large_is_always_computed(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    if large:
        monkeypatch.setattr(remembered, "_BYTES", 100)
    else:
        case.sources[""] = Odd(2.0)
    assert [case.ask() for _ in range(3)] == [1, 2, 3]


@torch.no_grad()
def test_a_projector_takes_no_old_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that torch does not count, as Lightning makes when it swaps averaged weights in."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.LSTM(3, 4))
    projector = Projector(module, Constraint(0.9), input_bound=2.0)
    other: list[Tensor] = [value.clone() for value in module.parameters()]
    projector.project(strict=True)
    for _ in range(2):
        assert projector.certify().rate == pytest.approx(certify(module, input_bound=2.0).rate, rel=1e-12)
        assert projector.certify().is_stable
        for value, new in zip(module.parameters(), other, strict=True):
            value.data.copy_(new)
        assert not projector.certify().is_stable
        with projector.projected():
            assert projector.certify().is_stable
        projector.project(strict=True)


@torch.no_grad()
def test_the_certificate_of_an_epoch_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LSTM(3, 4))
    projector = Projector(module, Constraint(0.9), input_bound=2.0)
    projector.project(strict=True)
    module.get_parameter("0.weight_hh_l0").mul_(0.5)
    calls, plain = [], LSTMRecurrence.contraction

    def counted(self: LSTMRecurrence, *arguments: Any, **options: Any) -> Contraction:
        calls.append(self.name)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(LSTMRecurrence, "contraction", counted)
    with projector.projected():
        projector.certify()
    projector.project(strict=True)
    report = projector.certify()
    assert calls == ["0.l0"]
    assert report.rate == certify(module, input_bound=2.0).rate
