"""Norms that are looked for, and frozen while a model trains: ``full`` and ``tight``."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_stable import certify, project_
from lightning_stable.stability import Constraint
from lightning_stable.stability.projection.projector import Projector
from tests.helpers import CELLS
from tests.nets import net

RATE, BOUND = 0.95, 1.0
NORM = {"rnn": "full", "gru": "tight", "lstm": "tight", "ugrnn": "tight"}


def training(
    cell: str, units: int = 12, *, reading: bool = True, **kwargs: Any
) -> tuple[nn.Module, Projector, torch.Generator]:
    torch.manual_seed(0)
    module = CELLS[cell](6, units, num_layers=2)
    project_(module, RATE, input_bound=BOUND, norm=NORM[cell])
    projector = Projector(module, Constraint(RATE, NORM[cell], **kwargs), input_bound=BOUND)
    projector._after_steps.reading = reading
    projector.refine()
    return module, projector, torch.Generator().manual_seed(0)


def wander(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for value in module.parameters():
            size = 0.02 if value.shape[-1] < 50 else 0.002
            value.add_(size * torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize(
    ("cell", "units", "reading", "kwargs"),
    [
        ("rnn", 12, True, {}),
        ("rnn", 130, True, {}),
        ("rnn", 12, False, {}),
        *((cell, 12, True, {"method": m}) for cell in ("gru", "lstm") for m in ("shares", "euclidean", "rescale")),
        ("ugrnn", 12, True, {}),
    ],
)
def test_steps_stay_inside_in_the_norm_that_is_frozen(
    cell: str, units: int, reading: bool, kwargs: dict[str, Any]
) -> None:
    module, projector, generator = training(cell, units, reading=reading, **kwargs)
    for _ in range(4):
        wander(module, generator)
        projector.project(strict=False)
        report = projector.certify(leading_only=True)
        assert report.rate <= RATE
    assert report.rate > 0.9 * RATE  # and not by being emptied
    inside = copy.deepcopy(module)
    projector.project(strict=False)
    for one, other in zip(module.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_a_frozen_norm_leaves_more_than_the_plain_one(cell: str) -> None:
    plain = {"rnn": "l2", "lstm": "row"}[cell]
    moved = {}
    for norm in (plain, NORM[cell]):
        module, projector, generator = training(cell)
        projector.constraint = Constraint(RATE, norm)
        if norm == plain:
            projector._after_steps.witnesses.clear()
        for _ in range(3):
            wander(module, generator)
            projector.project(strict=False)
        moved[norm] = sum(value.norm() for name, value in module.named_parameters() if "weight_hh" in name)
    assert moved[NORM[cell]] > moved[plain]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_copy_of_the_state_goes_on_alike(cell: str) -> None:
    module, projector, generator = training(cell, 130 if cell == "rnn" else 12)
    wander(module, generator)
    projector.project(strict=False)
    state = projector.state_dict()
    assert all(isinstance(value, torch.Tensor) for part in state.values() for value in part.values())
    other = copy.deepcopy(module)
    resumed = Projector(other, projector.constraint, input_bound=BOUND)
    resumed.load_state_dict(state)
    resumed.refine(missing_only=True)  # nothing is missing
    again = copy.deepcopy(generator.get_state())
    for one, owner in ((module, projector), (other, resumed)):
        generator.set_state(again)
        for _ in range(2):
            wander(one, generator)
            owner.project(strict=False)
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_new_norm_is_kept_where_the_old_one_was(cell: str) -> None:
    """A captured step reads it from there."""
    module, projector, generator = training(cell)
    wander(module, generator)
    projector.project(strict=False)
    fast = projector._after_steps
    kept = [part for witness in fast.witnesses.values() for part in (*witness.scales, witness.form) if part is not None]
    kept += [part for _, factors in fast._factors.values() for part in factors]
    before = [part.clone() for part in kept]
    for _ in range(3):
        wander(module, generator)
    projector.project(strict=True)
    projector.refine()
    now = [part for witness in fast.witnesses.values() for part in (*witness.scales, witness.form) if part is not None]
    now += [part for _, factors in fast._factors.values() for part in factors]
    assert [part.data_ptr() for part in now] == [part.data_ptr() for part in kept]
    assert not any(torch.equal(one, other) for one, other in zip(now, before, strict=True))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([2, 6, 16]), st.sampled_from([1.0, 2.0, 20.0]), st.floats(0.3, 0.98))
def test_no_further_than_needed(seed: int, units: int, scale: float, rate: float) -> None:
    module = net("rnn", units=units, scale=scale, seed=seed, dtype=torch.float32)
    before = module.weight_hh_l0.detach().clone()

    def moved(target: float, norm: str) -> tuple[float, float]:
        other = copy.deepcopy(module)
        reached = project_(other, target, norm=norm).rate
        return (other.weight_hh_l0 - before).norm().item(), reached

    distance, reached = moved(rate, "full")
    assert reached <= rate
    assert distance == 0 or reached >= rate * (1 - 1.2e-3)
    assert distance <= moved(rate, "l2")[0] * (1 + 1e-5)
    assert moved(min(0.99, 1.05 * rate), "full")[0] <= distance * (1 + 1e-5)


def test_gated_cells_say_which_norms_they_have() -> None:
    with pytest.raises(ValueError, match=r"`norm` must be one of \('row', 'tight', .* Got 'full'"):
        certify(net("gru"), input_bound=1.0, norm="full")
    with pytest.raises(ValueError, match=r"`norm` must be one of \('row', 'tight', .* Got 'full'"):
        project_(net("lstm"), 0.9, input_bound=1.0, norm="full")
