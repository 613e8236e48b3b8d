from itertools import islice

import pytest
import torch
from torch import Tensor

from benchmarks.training import training
from lightning_stable.stability import Constraint
from lightning_stable.stability.projection import clip_subspace
from lightning_stable.stability.projection.clip_subspace import MIN_UNITS, SubspaceClip, chebyshev_filter
from lightning_stable.stability.projection.sets import clip_singular_values

BOUND, UNITS = 0.9, 96


def trajectory(steps: int, *, matrices: int = 2, units: int = UNITS, size: float = 0.02, seed: int = 0) -> list[Tensor]:
    """A start, and updates as an optimizer makes them: a drift that stays, and noise."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(matrices, units, units, generator=generator) * (0.6 / units**0.5)
    drift = torch.randn(matrices, units, 6, generator=generator) @ torch.randn(matrices, 6, units, generator=generator)
    noise = torch.randn(steps, matrices, units, units, generator=generator)
    return [weight, *(size * (drift / drift.norm() + 0.3 * n / n.norm()) for n in noise)]


def follow(clip: SubspaceClip, path: list[Tensor]) -> tuple[float, float]:
    """Largest relative distance from the projections in float64, and largest excess over the bound."""
    weight, reference, errors, excess = path[0], path[0].double(), [0.0], [0.0]
    for update in path[1:]:
        weight, reference = clip(weight + update, BOUND), clip_singular_values(reference + update.double(), BOUND)
        errors.append(((weight.double() - reference).norm() / reference.norm()).item())
        excess.append((torch.linalg.matrix_norm(weight.double(), ord=2).amax() / BOUND - 1).item())
    return max(errors), max(excess)


def test_a_run_stays_beside_that_of_the_whole_projection() -> None:
    clip = SubspaceClip()
    errors, excess = follow(clip, trajectory(120, size=0.2))
    assert errors < 2e-5
    assert excess < 1e-4
    assert clip.vectors is not None  # it was a subspace that did it
    assert clip.vectors.shape[1] < UNITS / 2


@pytest.mark.slow
def test_a_training_stays_beside_that_with_the_whole_projection_for_500_steps() -> None:
    """A language model that trains on what the subspace leaves; its updates are projected in float64 as well."""
    clip, rate, errors = SubspaceClip(), 0.99, []
    before = reference = None
    for step, (model, _) in enumerate(islice(training("rnn", MIN_UNITS, Constraint(rate)), 501)):
        weight = model.core.weight_hh_l0.detach()
        if before is None:
            reference = clip_singular_values(weight.double(), rate)
        else:
            reference = clip_singular_values(reference + (weight - before).double(), rate)
        weight.copy_(clip(weight[None], rate)[0])
        before = weight.clone()
        errors.append(((before.double() - reference).norm() / reference.norm()).item())
        if step % 50 == 0:
            assert torch.linalg.matrix_norm(before.double(), ord=2) <= rate * (1 + 1e-4)
    assert max(errors) < 2e-5
    assert clip.vectors is not None


def test_the_block_follows_the_number_of_values_at_the_bound() -> None:
    """From none at the bound to more than half of them, when only the whole decomposition is left, and back."""
    clip, columns = SubspaceClip(), []
    weight = 0.1 * torch.eye(UNITS)[None] + 1e-3 * torch.randn(1, UNITS, UNITS)
    for count in [0] * 3 + [10] * 3 + [60] * 3 + [5] * 3:
        values = torch.linspace(0.1, 0.5, UNITS)
        values[:count] = 1.0
        columns.append(clip(weight + torch.diag(values), BOUND) is None or clip.vectors)
    sizes = [None if block is None else block.shape[1] for block in columns]
    assert sizes[2] is not None
    assert sizes[2] <= 16
    assert sizes[5] is not None
    assert sizes[5] >= 10 + 3
    assert sizes[6:9] == [None] * 3
    assert sizes[-1] is not None
    result = clip(weight + torch.diag(values), BOUND)
    torch.testing.assert_close(result, clip_singular_values(weight + torch.diag(values), BOUND), rtol=0, atol=1e-5)


def test_a_direction_the_block_cannot_see_is_found_in_the_end() -> None:
    """Block-diagonal weights: filtering never leaves a block of the space."""
    clip, half = SubspaceClip(), UNITS // 2
    weight = torch.zeros(1, UNITS, UNITS)
    weight[0].diagonal()[:half] = torch.linspace(0.5, 1.0, half)
    clip(weight, BOUND)
    assert clip.vectors is not None
    clip.vectors[:, :, half:] = 0
    weight[0, -1, -1] = 2.0
    assert clip(weight, BOUND)[0, -1, -1] == 2
    for _ in range(clip_subspace.RENEW_EVERY):
        clipped = clip(weight, BOUND)
    assert clipped[0, -1, -1] == pytest.approx(BOUND, rel=1e-5)


def test_resumed_equals_uninterrupted() -> None:
    path, whole = trajectory(12), SubspaceClip()
    weight = path[0]
    for update in path[1:6]:
        weight = whole(weight + update, BOUND)
    resumed = SubspaceClip()
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    other = weight
    for update in path[6:]:
        weight, other = whole(weight + update, BOUND), resumed(other + update, BOUND)
        assert torch.equal(weight, other)
    assert int(resumed.state_dict()["age"]) == whole.age


def test_without_state_there_is_nothing_to_keep() -> None:
    clip = SubspaceClip()
    assert clip.state_dict() == {}
    clip.load_state_dict({})
    assert clip.vectors is None


def test_matrices_inside_are_left_alone() -> None:
    path, clip = trajectory(4, size=0.0), SubspaceClip()
    for update in path[1:]:
        assert torch.equal(clip(path[0] + update, 2.0), path[0] + update)


def test_the_filter_is_the_polynomial() -> None:
    weight, floor = torch.diag(torch.tensor([1.2, 1.0, 0.7, 0.1], dtype=torch.float64))[None], 0.64
    block = torch.ones(1, 1, 4, dtype=torch.float64)
    values = 2 * weight[0].diagonal().square() / floor - 1
    t5 = 16 * values**5 - 20 * values**3 + 5 * values
    filtered = chebyshev_filter(weight, block, torch.full((1, 1, 1), floor, dtype=torch.float64), 5)[0, 0]
    torch.testing.assert_close(filtered, t5 / t5.norm())


def test_a_large_block_is_filtered_by_the_gram_matrix_and_gives_the_same() -> None:
    weight, block = torch.randn(1, 12, 12, dtype=torch.float64), torch.randn(1, 8, 12, dtype=torch.float64)
    floor = torch.ones(1, 1, 1, dtype=torch.float64)
    whole = chebyshev_filter(weight, block, floor, 6)
    torch.testing.assert_close(
        torch.cat([chebyshev_filter(weight, block[:, k : k + 1], floor, 6) for k in range(8)], 1), whole
    )
