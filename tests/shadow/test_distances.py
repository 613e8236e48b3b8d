import pytest
import torch

from lightning_stable.shadow.distances import prediction_distances, weight_distances


def test_weights_by_hand() -> None:
    model = {"a.x": torch.tensor([3.0, 0.0]), "a.y": torch.tensor([0.0]), "b": torch.tensor([4.0])}
    twin = {name: torch.zeros_like(value) for name, value in model.items()}
    initial = {name: value - 1 for name, value in model.items()}
    assert {name: value.item() for name, value in weight_distances(model, twin, initial).items()} == {
        "weight_distance": 5.0,
        "weight_distance/a": 3.0,
        "weight_distance/b": 4.0,
        "weight_distance_relative": 2.5,
    }


def test_nothing_over_nothing() -> None:
    model = {"a": torch.ones(2)}
    assert weight_distances(model, model, model)["weight_distance_relative"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_predictions_by_hand(dtype: torch.dtype) -> None:
    model = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], dtype=dtype)
    twin = torch.tensor([[[0.0, 0.0], [0.0, 5.0]]], dtype=dtype)
    values = prediction_distances([model], [twin])
    assert values["prediction_distance"] == 5.0
    assert values["prediction_distance_relative"].item() == pytest.approx(2**0.5)
    halves = prediction_distances([model[:, :1], model[:, 1:]], [twin[:, :1], twin[:, 1:]])
    assert halves == values


def test_predictions_without_features_are_positions() -> None:
    values = prediction_distances([torch.tensor([1.0, 2.0])], [torch.tensor([2.0, 4.0])])
    assert values["prediction_distance"] == 1.5


def test_predictions_that_cannot_be_compared() -> None:
    assert prediction_distances([], []) == {}
    assert prediction_distances([torch.ones(2, 3)], [torch.ones(3, 2)]) == {}
