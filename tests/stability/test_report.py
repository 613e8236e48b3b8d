import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import Contraction
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.report import REMEDY, format_rate, why_no_bound
from tests.nets import net


def report() -> StabilityReport:
    model = torch.nn.ModuleDict({"core": net("lstm", num_layers=2, bidirectional=True), "plain": net("rnn")})
    return certify(model, input_bound={"core": 2.0})


def test_the_rate_of_a_model_is_the_largest() -> None:
    found = report()
    assert found.rate == max(c.rate for c in found.layers)
    assert found.is_stable == all(c.is_stable for c in found.layers)


@pytest.mark.parametrize("rate", [math.nan, math.inf])
@pytest.mark.parametrize("position", [0, -1])
def test_a_layer_without_a_rate_cannot_hide(rate: float, position: int) -> None:
    layers = [replace(c, rate=0.5) for c in report().layers]
    assert StabilityReport(tuple(layers)).is_stable
    layers[position] = replace(layers[position], rate=rate)
    assert StabilityReport(tuple(layers)).rate == math.inf
    assert not StabilityReport(tuple(layers)).is_stable
    assert StabilityReport(tuple(layers)).to_dict()["rate"] is None


def test_dictionaries_are_ready_for_json() -> None:
    found = json.loads(json.dumps(report().to_dict()))
    assert [layer["name"] for layer in found["layers"]] == [
        "core.l0",
        "core.l0_reverse",
        "core.l1",
        "core.l1_reverse",
        "plain.l0",
    ]
    assert found["layers"][1]["direction"] == "backward"
    assert found["layers"][0]["input_bound"] == "|x| <= 2"
    assert found["layers"][-1]["input_bound"] is None
    unknown = certify(net("gru")).to_dict()
    assert unknown["rate"] is unknown["layers"][0]["rate"] is None
    assert not unknown["is_stable"]


def test_the_table_names_every_layer_and_its_inputs() -> None:
    text = str(report())
    for word in ("core.l0_reverse", "plain.l0", "|x| <= 2", "the layer below", "any", "guaranteed"):
        assert word in text
    assert str(certify(net("gru"))).lstrip().startswith("NOT certified stable: rate inf")


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.5, "0.500000"),
        (0.1234561, "0.123457"),
        (0.99999999, "0.99999999"),
        (1 - 2**-53, repr(1 - 2**-53)),
        (1.0, "1.000000"),
        (1.00000001, "1.000001"),
        (123456.0, "1.23e+05"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_rates_are_rounded_up_but_never_across_one(rate: float, text: str) -> None:
    assert format_rate(rate) == text


def test_the_distance_is_the_largest_over_the_parts_of_the_state() -> None:
    h, c = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 8.0]])
    zero = (torch.zeros(1, 2), torch.zeros(1, 2))
    scales = (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    for order, distance in ((torch.inf, 3.0), (1, 5.0), (2, 13**0.5)):
        assert Contraction(torch.ones(()), scales, order).distance((h, c), zero).item() == pytest.approx(distance)


def test_why_no_bound_says_what_to_do() -> None:
    lstm = nn.LSTM(2, 4)
    assert "Declare `input_bound`" in why_no_bound(certify(lstm))
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(50)
    unstable = certify(lstm, input_bound=1.0)
    assert f"The rate of 'l0', {format_rate(unstable.rate)}, is not below 1. {REMEDY}" in why_no_bound(unstable)
    unbounded = certify(project_rnn())
    assert unbounded.is_stable
    assert "nothing bounds the states" in why_no_bound(unbounded)
    report = project_(lstm, 0.9, input_bound=1.0)
    text = why_no_bound(report, 1, size=2.0)
    assert "a window of 1 input: the error may be as large as the outputs." in text
    assert f"{report.required_window(0.02)} inputs are certified to leave an error of 1 % of that" in text
    assert "for up to 10,000 inputs. Allow a larger error" in why_no_bound(report)


def project_rnn() -> nn.RNN:
    """A layer with a rate and without a bound on its states."""
    rnn = nn.RNN(2, 4, nonlinearity="relu")
    project_(rnn, 0.9)
    return rnn
