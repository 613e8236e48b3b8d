"""The input and the start state of a call, whatever a subclass calls its arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable.recurrence.calls import argument_names, input_and_state


class Renamed(nn.LSTM):
    def forward(self, x: Tensor, state: Any = None, lengths: Any = None) -> Any:
        return super().forward(x, state)


class Loose(nn.GRU):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "args", "kwargs"),
    [
        (nn.LSTM(1, 1), ("x", "h"), {}),
        (nn.LSTM(1, 1), ("x",), {"hx": "h"}),
        (nn.GRUCell(1, 1), (), {"hx": "h", "input": "x"}),
        (Renamed(1, 1), (), {"state": "h", "x": "x", "lengths": torch.ones(1)}),
        (Loose(1, 1), (), {"hx": "h", "input": "x"}),
    ],
)
def test_input_and_state(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert input_and_state(module, args, kwargs) == ("x", "h")


def test_what_is_left_out() -> None:
    assert input_and_state(nn.RNN(1, 1), ("x",), {}) == ("x", None)
    assert argument_names(Renamed(1, 1)) == ("x", "state")
