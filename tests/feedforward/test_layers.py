"""Each network against its equations, tap by tap, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_stable.feedforward import GatedConvNet, WaveNet
from lightning_stable.feedforward.causal import Convolution
from lightning_stable.feedforward.tcn import TCN
from tests.feedforward.test_networks import FEATURES, build, random

TIME = 11
causality = pytest.mark.parametrize("causal", [True, False])


def taps(layer: Any, x: Tensor, dilation: int, causal: bool) -> Tensor:
    """``y_t = b + sum_i W_i x_{t - (k - 1 - i) d}``, for ``(time, channels)``; shifted by half without causality."""
    kernel = layer.weight.size(2)
    rows = []
    for t in range(len(x)):
        row = layer.bias.clone()
        for i in range(kernel):
            source = t - (kernel - 1 - i) * dilation + (0 if causal else (kernel - 1) * dilation // 2)
            if 0 <= source < len(x):
                row = row + layer.weight[:, :, i] @ x[source]
        rows.append(row)
    return torch.stack(rows)


@causality
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_convolution(causal: bool, dilation: int) -> None:
    torch.manual_seed(0)
    layer = Convolution(2, 4, 3, dilation=dilation, causal=causal).double()
    torch.nn.init.normal_(layer.get_parameter("bias"))
    x = random(TIME, 2)
    torch.testing.assert_close(layer(x.T[None])[0].T, taps(layer, x, dilation, causal))


@causality
@pytest.mark.parametrize("features", [FEATURES, 8])
def test_tcn(causal: bool, features: int) -> None:
    net: Any = build(TCN, features, num_layers=3, kernel_size=3, causal=causal)
    x = inputs = random(TIME, features)
    for number, block in enumerate(net.layers):
        branch = taps(block.first, x, 2**number, causal).relu()
        branch = taps(block.second, branch, 2**number, causal).relu()
        shortcut = x if x.shape == branch.shape else taps(block.shortcut, x, 1, causal)
        x = (shortcut + branch).relu()
    torch.testing.assert_close(net(inputs[None])[0], x)


@causality
def test_gated(causal: bool) -> None:
    net: Any = build(GatedConvNet, num_layers=3, kernel_size=3, causal=causal)
    inputs = random(TIME, FEATURES)
    x = taps(net.enter, inputs, 1, causal)
    for layer in net.layers:
        linear, gate = taps(layer, x, 1, causal).chunk(2, 1)
        x = x + linear * gate.sigmoid()
    torch.testing.assert_close(net(inputs[None])[0], x)


@causality
def test_wavenet(causal: bool) -> None:
    net: Any = build(WaveNet, num_layers=3, kernel_size=3, causal=causal)
    inputs = random(TIME, FEATURES)
    x, total = taps(net.enter, inputs, 1, causal), torch.zeros(())
    for number, layer in enumerate(net.layers):
        filtered, gate = taps(layer, x, 2**number, causal).chunk(2, 1)
        gated = filtered.tanh() * gate.sigmoid()
        total = total + taps(net.skips[number], gated, 1, causal)
        if number < 2:
            x = x + taps(net.residuals[number], gated, 1, causal)
    torch.testing.assert_close(net(inputs[None])[0], taps(net.leave, total.relu(), 1, causal).relu())
