import math

import pytest
import torch

from lightning_stable import certify
from lightning_stable.experiments.capacity import tasks
from lightning_stable.experiments.capacity.point import Point
from lightning_stable.experiments.capacity.train import annealed, train
from lightning_stable.models import CELLS


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [annealed(2.0, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert max(rates) == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 <= rates[-1] < 0.01
    assert annealed(2.0, 0, 1) == 2.0


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_stable_network_is_certified_for_its_inputs(cell: str) -> None:
    task = tasks.perceptron(50, 0)
    units, parameters = tasks.units_for(task.build, cell, 1, 200)
    params = {"learning_rate": 0.05, "gain": 1.0}
    model, metrics, rate = train(task, Point("perceptron", cell, 1, units, parameters, True), params, 5)
    assert rate is not None
    assert rate <= 0.99
    assert certify(model, input_bound=task.input_bound).rate == rate
    assert 0 <= metrics["val_bits"] <= 50


def test_training_learns_labels_by_heart() -> None:
    torch.manual_seed(0)
    task = tasks.perceptron(100, 0)
    point = Point("perceptron", "rnn", 1, 12, 277, False)
    model, metrics, rate = train(task, point, {"learning_rate": 0.03, "gain": 1.0}, 300)
    assert tasks.parameter_count(model) == point.parameters
    assert metrics["val_bits"] > 90
    assert rate is None


def test_gain_scales_the_first_weights() -> None:
    task = tasks.perceptron(4, 0)
    point = Point("perceptron", "gru", 1, 3, 0, False)
    sizes = []
    for gain in (1.0, 2.0):
        torch.manual_seed(0)
        model = train(task, point, {"learning_rate": 1e-9, "gain": gain}, 1)[0]
        sizes.append(model.core.weight_hh_l0.norm().item())  # type: ignore[union-attr, operator]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=1e-4)


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("layers", [1, 2])
def test_units_come_closest_to_the_parameters(cell: str, layers: int) -> None:
    build = tasks.perceptron(1, 0).build
    units, parameters = tasks.units_for(build, cell, layers, 500)
    sizes = {each: tasks.parameter_count(build(cell, layers, each)) for each in range(1, 30)}
    assert sizes[units] == parameters
    assert abs(parameters - 500) == min(abs(size - 500) for size in sizes.values())


def test_floors_are_what_the_averages_score() -> None:
    assert tasks.perceptron(3, 0).floor == math.log(2)
    assert 0 < tasks.parentheses(0).floor < 1
    # Of nine steps three have a digit of the sum; the last of them is 0 or 1.
    entropy = tasks.arithmetic(0).floor
    assert (2 * math.log(10) + 0.6) / 9 < entropy < (2 * math.log(10) + 0.7) / 9
    assert 2.5 < tasks.text(None).floor < 4
    classes = torch.tensor([[0, 1], [0, 2]])
    assert tasks.step_entropy(classes, 3) == pytest.approx(math.log(2) / 2)
