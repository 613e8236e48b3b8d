"""All gates of a unit at the same input: scenarios hold every input, and certificates are their worst case."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.recurrence import find_recurrences, recurrences_of
from lightning_stable.recurrence.base import Pairing
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability import ActiveEntries, Box, FiniteSet, InputSet, L2Ball, LayerNormOutput, SupNorm
from lightning_stable.stability.inputs import joint
from lightning_stable.stability.inputs.joint import LEVELS, PARTNER_LEVELS, fewer_scenarios, joint_drive
from lightning_stable.stability.inputs.resolve import walk_layers
from tests.nets import GATED_NORMS, net, plain_rate
from tests.stability.adversary import member

F, UNITS, GATES = 4, 5, 3
PAIRING = Pairing(UNITS, 1, 2)
CELLS = ("lstm", "proj", "gru", "ugrnn", "intersection")


def sets(features: int = F, seed: int = 0) -> dict[str, InputSet]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "sup": SupNorm(2.0),
        "box": Box(-randn(features).abs() - 1, randn(features).abs() + 2),
        "zero": SupNorm(0.0),
        "ball": L2Ball(2.0),
        "active": ActiveEntries(2, 1.5),
        "points": FiniteSet(randn(20, features)),
        "one point": FiniteSet(randn(1, features)),
        "dropped": FiniteSet(randn(6, features)).dropped(0.3),
        "many points": FiniteSet(randn(3 * LEVELS * PARTNER_LEVELS, features)),
        "norm": LayerNormOutput(randn(features), randn(features), features),
    }


NAMES = tuple(sets())


def members(inputs: InputSet, weight: Tensor, seed: int = 0) -> Tensor:
    """Members of a set, many of them extreme in the directions of the rows and of sums of two."""
    generator = torch.Generator().manual_seed(seed)
    free = 2 * torch.randn(2000, weight.shape[1], generator=generator, dtype=torch.float64)
    pairs = torch.cat([weight + mu * weight.roll(k, 0) for k in range(1, len(weight)) for mu in (-2, -0.5, 0.5, 2)])
    return torch.cat((member(inputs, free), inputs.maximizer(pairs), inputs.maximizer(weight)))


def misses(drive: Interval, products: Tensor, units: int) -> Tensor:
    """How far the drives of a unit are from the scenario that is nearest, the largest of all units and inputs."""
    low, high = (end.view(len(end), -1, units) for end in drive)
    blocks = products.view(len(products), 1, -1, units)
    return torch.maximum(low - blocks, blocks - high).amax(2).amin(1).amax()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flat", [False, True])
def test_every_member_has_a_scenario_with_all_gates_of_a_unit(name: str, flat: bool) -> None:
    inputs, weight = sets()[name], torch.randn(GATES * UNITS, F, dtype=torch.float64)
    if flat:  # leak gates that see no input
        weight[UNITS : UNITS + 2] = 0
    drive = joint_drive(inputs, weight, PAIRING)
    assert misses(drive, members(inputs, weight) @ weight.mT, UNITS) <= 1e-12
    plain = inputs.drive(weight)
    assert (drive.high <= plain.high + 1e-12).all()
    assert (drive.low >= plain.low - 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(NAMES), st.floats(0.01, 100))
def test_random_weights_leave_no_member_out(seed: int, name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(GATES * UNITS, F, generator=generator, dtype=torch.float64)
    weight *= 10 ** torch.randn(GATES * UNITS, 1, generator=generator, dtype=torch.float64)
    inputs = sets(seed=seed)[name]
    products = members(inputs, weight, seed) @ weight.mT
    missed = misses(joint_drive(inputs, weight, PAIRING), products, UNITS)
    assert missed <= 1e-13 * products.abs().max()


@pytest.mark.parametrize("count", [1, 15, 40, 200])
def test_fewer_scenarios_leave_no_member_out(count: int) -> None:
    points, weight = torch.randn(count, F, dtype=torch.float64), torch.randn(GATES * UNITS, F, dtype=torch.float64)
    drive = joint_drive(FiniteSet(points), weight, PAIRING)
    fewer = fewer_scenarios(drive, PAIRING)
    assert len(fewer.high) <= min(count, 16)
    assert misses(fewer, points @ weight.mT, UNITS) <= 1e-12
    leak = slice(UNITS, 2 * UNITS)
    if count > 16:
        assert torch.equal(fewer.high[0, leak], drive.high[:, leak].amax(0))


def test_what_lies_between_points_has_a_scenario_on_request() -> None:
    points, weight = torch.randn(9, F, dtype=torch.float64), torch.randn(GATES * UNITS, F, dtype=torch.float64)
    share = torch.rand(1000, 9, dtype=torch.float64).pow(4)
    products = (share / share.sum(1, keepdim=True)) @ points @ weight.mT
    only, hull = (joint_drive(FiniteSet(points), weight, PAIRING, between=b) for b in (False, True))
    assert misses(hull, products, UNITS) <= 1e-12
    assert misses(only, products, UNITS) > 0.1


def test_a_layer_above_another_admits_what_lies_between_its_points() -> None:
    """Errors come in from below, and the comparison map looks at the segment between two inputs."""
    points = FiniteSet(torch.randn(3, 5, dtype=torch.float64))
    first, second = walk_layers(
        find_recurrences(net("gru", num_layers=2)), {"l0": FiniteSet(torch.eye(3).double()), "l1": points}
    )
    assert first.drive is not None
    assert second.drive is not None
    assert len(first.drive.low) == 3
    assert second.inputs is points
    middle = points.points.mean(0, keepdim=True) @ second.weights["weight_ih"].mT
    assert misses(second.drive, middle, 5) <= 1e-12


def test_opposite_gates_are_told_apart() -> None:
    """The input that opens one gate closes the other, exactly: the slices come close to that."""
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    drive = joint_drive(SupNorm(1.0), weight, Pairing(1, 0, 1))
    torch.testing.assert_close(drive.high[:, 1], -drive.low[:, 0])
    torch.testing.assert_close(drive.low[:, 1], -drive.high[:, 0])
    assert drive.high[-1, 0] == 1
    assert drive.high[-1, 1] < -0.98


@pytest.mark.parametrize("name", ["gru", "ugrnn", "intersection"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_a_finite_set_is_certified_as_its_worst_point(name: str, scale: float) -> None:
    module, points = net(name, scale=scale), 2 * torch.randn(40, 3, dtype=torch.float64)
    each = [certify(module, input_bound=FiniteSet(point[None])).rate for point in points]
    assert certify(module, input_bound=FiniteSet(points)).rate == pytest.approx(max(each), rel=1e-12)
    separate = plain_rate(module, FiniteSet(points))
    assert max(each) < separate * (1 - 1e-5) or (name, scale) == ("ugrnn", 0.3)  # one point has both maxima there
    assert max(each) <= separate * (1 + 1e-12)


def test_many_points_lose_little_to_their_worst_one() -> None:
    module, points = net("gru", scale=0.3), 2 * torch.randn(1000, 3, dtype=torch.float64)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    products = points @ weights["weight_ih"].mT
    exact = recurrence.contraction(weights, Interval(products, products)).rate.item()
    together, plain = certify(module, input_bound=FiniteSet(points)).rate, plain_rate(module, FiniteSet(points))
    assert exact <= together <= exact + 0.3 * (plain - exact)


def test_many_units_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight = sets()["many points"], torch.randn(GATES * UNITS, F, dtype=torch.float64)
    whole = joint_drive(inputs, weight, PAIRING)
    monkeypatch.setattr(joint, "_CHUNK", 2 * GATES * 3 * LEVELS * PARTNER_LEVELS)  # two units
    torch.testing.assert_close(joint_drive(inputs, weight, PAIRING), whole)


@pytest.mark.parametrize(
    ("name", "norm", "inputs"), [*product(CELLS, GATED_NORMS, ("sup", "ball", "active", "points"))]
)
def test_certificates_never_lose(name: str, norm: str, inputs: str) -> None:
    for scale in (0.2, 1.0, 3.0):
        module, known = net(name, scale=scale), sets(3)[inputs]
        assert certify(module, input_bound=known, norm=norm).rate <= plain_rate(module, known, norm) * (1 + 1e-9)


@pytest.mark.parametrize("many", [False, True])
def test_a_table_with_nan_has_no_rate(many: bool) -> None:
    module, points = net("gru"), torch.zeros(2000 if many else 20, 3, dtype=torch.float64)
    known = FiniteSet(points)
    points[7, 1] = torch.nan
    report = certify(module, input_bound=known)
    assert not report.rate < torch.inf
    assert report.guarantee == "none"


def test_an_input_between_the_points_is_seen() -> None:
    points, weight = torch.randn(5, 3), torch.randn(8, 3)
    known = FiniteSet(points)
    assert known.drive_excess(points.repeat(40, 1).view(4, 50, 3), weight) == 0
    assert known.drive_excess((points[:2].mean(0) + 0 * points).view(1, 5, 3), weight) > 0.01


def test_one_interval_a_row_for_cells_without_a_pair() -> None:
    (layer,) = walk_layers(find_recurrences(nn.RNN(3, 5)), {"": SupNorm(1.0)})
    assert layer.drive is not None
    assert layer.drive.high.shape == (5,)
