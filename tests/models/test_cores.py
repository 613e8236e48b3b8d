from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_stable.models import CORES as NETWORKS
from lightning_stable.models import build_core
from lightning_stable.models.cores import evaluate, output_size, receptive_field
from lightning_stable.stability import spread_time_scales_
from tests.models.examples import CONVOLUTIONAL, CORES, RECURRENT, WINDOWED

INPUTS, UNITS = 3, 8
LENGTHS = torch.tensor([4, 9, 1, 7])

cores = pytest.mark.parametrize("core", CORES)
directions = pytest.mark.parametrize("bidirectional", [False, True])


def build(core: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return build_core(INPUTS, UNITS, **{"num_layers": 2, **CORES[core], **kwargs}).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cores
@directions
def test_padded_sequences_are_read_as_each_alone(core: str, bidirectional: bool) -> None:
    net, inputs = build(core, bidirectional=bidirectional), draw(len(LENGTHS), 11)  # longer than the longest of them
    together = evaluate(net, inputs, LENGTHS)
    assert together.shape == (len(LENGTHS), 11, output_size(net))
    for row, length in enumerate(LENGTHS.tolist()):
        alone = evaluate(net, inputs[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1, :length], alone)


@cores
@directions
def test_padding_has_no_influence_on_outputs_and_gradients(core: str, bidirectional: bool) -> None:
    net, seen = build(core, bidirectional=bidirectional), []
    mask = torch.arange(9) < LENGTHS[:, None]
    for seed in (1, 2):
        inputs = torch.where(mask[..., None], draw(4, 9), 100 * draw(4, 9, seed=seed)).requires_grad_()
        outputs = evaluate(net, inputs, LENGTHS)[mask]
        gradients = torch.autograd.grad(outputs.square().sum(), [inputs, *net.parameters()])
        assert not gradients[0][~mask].any()
        seen.append((outputs, *gradients))
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second)


@cores
@directions
def test_receptive_field_is_exact(core: str, bidirectional: bool) -> None:
    net, inputs, position = build(core, bidirectional=bidirectional), draw(1, 41).requires_grad_(), 20
    (gradient,) = torch.autograd.grad(evaluate(net, inputs)[0, position].square().sum(), inputs)
    reached = gradient[0].any(-1).nonzero().flatten()
    field = receptive_field(net)
    first = 0 if field is None else position - field + 1
    last = position if not bidirectional else 40 if field is None else position + field - 1
    assert first >= 0
    assert (reached[0].item(), reached[-1].item()) == (first, last)


@pytest.mark.parametrize("core", RECURRENT)
@directions
def test_a_window_as_long_as_the_sequences_is_the_recurrence(core: str, bidirectional: bool) -> None:
    inputs = draw(len(LENGTHS), 9)
    for lengths in (None, LENGTHS):
        whole, windowed, shorter = (
            evaluate(build(core, bidirectional=bidirectional, window=window), inputs, lengths)
            for window in (None, 9, 8)
        )
        torch.testing.assert_close(windowed, whole)
        assert not torch.equal(shorter, whole)


@pytest.mark.parametrize("cell", ["ugrnn", "gru", "lstm", "intersection"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "residual": True}, {"window": 4}, {"bidirectional": True}])
def test_a_core_starts_with_the_time_constants_asked_for(cell: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = build_core(INPUTS, UNITS, cell=cell, **options)
    torch.manual_seed(0)
    core = build_core(INPUTS, UNITS, cell=cell, longest_time_constant=20.0, **options)
    torch.manual_seed(0)
    core_then = spread_time_scales_(build_core(INPUTS, UNITS, cell=cell, **options), 20.0)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(core.parameters(), core_then.parameters(), strict=True)
    )
    assert not all(torch.equal(ours, old) for ours, old in zip(core.parameters(), plain.parameters(), strict=True))


def test_every_network_is_known() -> None:
    assert sorted(NETWORKS) == sorted(CONVOLUTIONAL)
    assert all(receptive_field(build(core)) == 3 for core in WINDOWED)


@pytest.mark.parametrize("core", CONVOLUTIONAL)
def test_kernel_size_and_dropout_reach_the_network(core: str) -> None:
    assert receptive_field(build(core, kernel_size=1)) == 1
    assert receptive_field(build(core, kernel_size=5)) > receptive_field(build(core))  # type: ignore[operator]
    assert build(core, dropout=0.25).dropout.p == 0.25
    assert build(core, bidirectional=True, kernel_size=5).layers
    with pytest.raises(ValueError, match=r"`kernel_size` must be odd in a bidirectional .* Got 4\."):
        build(core, bidirectional=True, kernel_size=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 3}, r"`kernel_size` must be None without a convolutional `core`\. Got 3"),
        ({"core": "tcn", "longest_time_constant": 9.0}, r"`longest_time_constant` must be None beside a .*Got 9"),
        *(
            ({"cell": cell, "longest_time_constant": 9.0}, rf"`longest_time_constant` must be None for a .*'{cell}'")
            for cell in ("rnn", "irnn", "leaky", "mingru", "minlstm")
        ),
        ({"core": "tcn", "window": 3}, r"`window` must be None beside a convolutional `core`, .* Got 3"),
    ],
)
def test_arguments_that_contradict_each_other(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_core(INPUTS, UNITS, **arguments)
