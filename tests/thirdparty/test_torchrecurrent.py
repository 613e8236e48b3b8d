"""The cells of torchrecurrent, with the adapters of docs/own-cell.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_stable import certify, project_, truncate
from lightning_stable.testing import RecurrenceTests
from tests.thirdparty.runs import needs

pytestmark = needs("torchrecurrent")
PAGE = Path(__file__).parents[2] / "docs" / "own-cell.md"
(BLOCK,) = re.findall(r"^```python title=\"torchrecurrent\"\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NAMES: dict[str, Any] = {}
exec(compile(BLOCK, PAGE.name, "exec"), NAMES)


class TestIndRNN(RecurrenceTests):
    def make_module(self) -> nn.Module:
        return NAMES["IndRNNCell"](3, 6)


class TestFastRNN(RecurrenceTests):
    def make_module(self) -> nn.Module:
        return NAMES["FastRNNCell"](3, 6)


class TestFastRNNWithoutBiases(RecurrenceTests):
    def make_module(self) -> nn.Module:
        return NAMES["FastRNNCell"](3, 6, bias=False, recurrent_bias=False, nonlinearity="relu")


@pytest.mark.parametrize("name", ["LiGRUCell", "MGUCell"])
def test_a_cell_without_a_rate_is_truncated_and_not_certified(name: str) -> None:
    cell = NAMES[name](3, 6)
    assert certify(cell).guarantee == "none"
    twin, inputs = truncate(cell, window=4), torch.randn(9, 2, 3)
    whole = alone = torch.zeros(2, 6)
    for x in inputs:
        whole = twin(x, whole)
    for x in inputs[-4:]:
        alone = cell(x, alone)
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", ["IndRNNCell", "FastRNNCell"])
def test_a_steep_activation_is_not_certified(name: str) -> None:
    assert certify(NAMES[name](3, 6, nonlinearity="gelu")).guarantee == "none"


def test_a_fastrnn_cannot_forget_faster_than_its_beta() -> None:
    with pytest.raises(ValueError, match="rate"):
        project_(NAMES["FastRNNCell"](3, 6, beta_init=3.0), rate=0.9)


def test_cells_of_a_layer_are_found() -> None:
    layer = pytest.importorskip("torchrecurrent").FastRNN(3, 6, num_layers=2)
    assert [found.name for found in project_(layer, rate=0.9).layers] == ["cells.0", "cells.1"]
    with pytest.raises(ValueError, match="stack"):
        truncate(layer, window=4)(torch.randn(9, 2, 3))
