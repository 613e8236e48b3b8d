"""What holds of all convolutional networks."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.feedforward import TCN, ConvolutionalNet, GatedConvNet, WaveNet

NETWORKS = [TCN, GatedConvNet, WaveNet]
networks = pytest.mark.parametrize("network", NETWORKS)
FEATURES, UNITS = 3, 8


def build(network: Any, features: int = FEATURES, **kwargs: Any) -> ConvolutionalNet:
    """A network in float64 whose units are seldom all off."""
    torch.manual_seed(0)
    net: ConvolutionalNet = network(features, UNITS, **kwargs).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reach(net: ConvolutionalNet, time: int, position: int) -> list[int]:
    """Positions of the outputs that are not the same, bit for bit, when one input changes."""
    inputs = random(4, time, FEATURES)
    changed = inputs.clone()
    changed[:, position] += 3.0
    return (net(inputs) != net(changed)).any(2).any(0).nonzero().flatten().tolist()


@networks
@settings(deadline=None, max_examples=25)
@given(layers=st.integers(1, 4), kernel=st.integers(1, 4), position=st.integers(0, 9))
def test_an_output_depends_on_its_receptive_field_alone(network: Any, layers: int, kernel: int, position: int) -> None:
    net = build(network, num_layers=layers, kernel_size=kernel)
    field = net.receptive_field
    assert reach(net, position + field + 5, position) == list(reachable(net, layers, kernel, position))
    assert max(reachable(net, layers, kernel, position)) == position + field - 1


def reachable(net: ConvolutionalNet, layers: int, kernel: int, position: int) -> range:
    """The taps of a dilation that doubles leave no gap, as the kernel has at least two of them."""
    depth = {TCN: 2 * (2**layers - 1), GatedConvNet: layers, WaveNet: 2**layers - 1}[type(net)]
    return range(position, position + 1 + (kernel - 1) * depth)


@networks
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_without_causality_it_is_that_far_on_both_sides(network: Any, kernel: int) -> None:
    net = build(network, num_layers=2, kernel_size=kernel, causal=False)
    before = net.receptive_field - 1
    assert build(network, num_layers=2, kernel_size=kernel).receptive_field == 1 + 2 * before
    assert reach(net, 2 * before + 7, before + 3) == list(range(3, 3 + 2 * before + 1))


def test_default_receptive_fields() -> None:
    assert [network(1, 1).receptive_field for network in NETWORKS] == [61, 25, 64]


def test_the_dilation_of_wavenet_starts_again_after_ten_layers() -> None:
    assert WaveNet(1, 1, num_layers=12).receptive_field == 1 + 1023 + 1 + 2


@networks
@settings(deadline=None, max_examples=25)
@given(
    layers=st.integers(1, 3),
    kernel=st.integers(1, 3),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    more=st.integers(0, 3),
)
def test_a_stream_in_chunks_is_the_stream(network: Any, layers: int, kernel: int, chunks: list[int], more: int) -> None:
    net = build(network, num_layers=layers, kernel_size=kernel)
    inputs = random(2, sum(chunks), FEATURES)
    context = net.receptive_field - 1 + more
    pieces, start = [], 0
    for length in chunks:
        stop = start + length
        pieces.append(net(inputs[:, start:stop], inputs[:, max(0, start - context) : start]))
        start = stop
    torch.testing.assert_close(torch.cat(pieces, 1), net(inputs), rtol=1e-12, atol=1e-12)


@networks
def test_less_context_is_not_enough(network: Any) -> None:
    net = build(network, num_layers=2)
    inputs = random(2, 2 * net.receptive_field, FEATURES)
    short = net(inputs[:, -1:], inputs[:, -net.receptive_field + 1 : -1])
    assert not torch.allclose(short, net(inputs)[:, -1:])


@networks
@pytest.mark.parametrize("causal", [False, True])
def test_a_padded_batch_is_its_sequences(network: Any, causal: bool) -> None:
    net = build(network, num_layers=2, kernel_size=3, causal=causal)
    inputs, lengths = random(4, 9, FEATURES), [9, 1, 4, 8]
    mask = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    inputs[~mask] = math.nan
    outputs = net(inputs, mask=mask)
    outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)
    assert not outputs[~mask].any()
    for padded, sequence, length in zip(outputs, inputs, lengths, strict=True):
        alone = net(sequence[None, :length])[0]
        torch.testing.assert_close(padded[:length], alone, rtol=1e-12, atol=1e-12)


@networks
def test_padding_on_the_left_and_context_go_together(network: Any) -> None:
    net = build(network, num_layers=2)
    inputs = random(2, 9, FEATURES)
    late = torch.arange(7).expand(2, -1) >= 3
    alone, padded = net(inputs[:, 5:]), net(inputs[:, 2:], mask=late)
    torch.testing.assert_close(padded[:, 3:], alone, rtol=1e-12, atol=1e-12)
    whole = torch.cat([torch.ones(2, 2, dtype=torch.bool), late], 1)
    expected = net(inputs, mask=whole)[:, 2:]
    torch.testing.assert_close(net(inputs[:, 2:], inputs[:, :2], late), expected, rtol=1e-12, atol=1e-12)


@networks
def test_every_parameter_is_trained(network: Any) -> None:
    net = build(network)
    net(random(2, 70, FEATURES)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@networks
def test_deeper_networks_start_at_the_same_scale(network: Any) -> None:
    for layers in (1, 4, 12):
        torch.manual_seed(0)
        outputs = network(64, 64, num_layers=layers, kernel_size=2)(torch.randn(2, 50, 64))
        assert 0.3 < outputs.square().mean().sqrt() < 3


@networks
def test_dropout_acts_in_training_only(network: Any) -> None:
    net, inputs = build(network, dropout=0.5), random(2, 40, FEATURES)
    assert torch.equal(net(inputs), net(inputs))
    assert torch.equal(net(inputs), build(network)(inputs))
    assert not torch.equal(net.train()(inputs), net(inputs))


@networks
@pytest.mark.parametrize("causal", [False, True])
def test_copies_and_files(network: Any, causal: bool) -> None:
    net, inputs = build(network, kernel_size=3, num_layers=2, causal=causal), random(2, 9, FEATURES)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    loaded = network(FEATURES, UNITS, kernel_size=3, num_layers=2, causal=causal).double().eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for same in loaded, copy.deepcopy(net), pickle.loads(pickle.dumps(net)):
        assert torch.equal(same(inputs), net(inputs))


@networks
@pytest.mark.parametrize("causal", [False, True])
def test_export_with_any_batch_and_time(network: Any, causal: bool) -> None:
    net = build(network, kernel_size=3, num_layers=2, causal=causal)
    any_size = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    exported = torch.export.export(net, (random(2, 9, FEATURES),), dynamic_shapes=(any_size,)).module()
    for shape in (2, 9), (3, 30):
        inputs = random(*shape, FEATURES)
        torch.testing.assert_close(exported(inputs), net(inputs), rtol=1e-12, atol=1e-12)


@networks
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "kernel_size"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_sizes_must_be_positive_integers(network: Any, name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"`{name}` must be a positive integer\. Got {value!r}"):
        network(**{"input_size": 2, "hidden_size": 2, name: value})


@networks
def test_other_bad_arguments(network: Any) -> None:
    for value, error in (
        (1.0, ValueError),
        (-0.1, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        ("1", TypeError),
    ):
        with pytest.raises(error, match=rf"`dropout` must be a number in \[0, 1\)\. Got {value!r}"):
            network(2, 2, dropout=value)
    with pytest.raises(TypeError, match=r"`causal` must be True or False\. Got 1\."):
        network(2, 2, causal=1)
    with pytest.raises(ValueError, match=r"`kernel_size` must be odd with causal=False.* Got 4\."):
        network(2, 2, kernel_size=4, causal=False)


@networks
def test_bad_tensors(network: Any) -> None:
    net, inputs = build(network), random(2, 5, FEATURES)
    for wrong in inputs[0], inputs[:, :0], inputs[..., :2]:
        with pytest.raises(ValueError, match=r"`inputs` must have shape \(batch, time, 3\).* Got \("):
            net(wrong)
    for wrong in inputs[0], inputs[:1], inputs[..., :2]:
        with pytest.raises(ValueError, match=r"`before` must have shape \(2, n, 3\)\. Got \("):
            net(inputs, wrong)
    for wrong in torch.ones(2, 5), torch.ones(2, 4, dtype=torch.bool):
        with pytest.raises(ValueError, match=r"`mask` must be bool of shape \(2, 5\)\. Got torch"):
            net(inputs, mask=wrong)
    with pytest.raises(ValueError, match=r"`before` is for causal networks.* Got causal=False"):
        build(network, kernel_size=3, causal=False)(inputs, inputs)
