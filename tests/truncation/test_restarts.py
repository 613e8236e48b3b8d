"""The difference of restarts, against the plain loop over runs that it stands for."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_stable import truncate
from lightning_stable.cells import UGRNN, IntersectionRNN
from lightning_stable.truncation.exact.stack import stacks_of
from lightning_stable.truncation.restarts import draw_restarts, restart_difference
from tests.helpers import on_gpu

FEATURES, UNITS, LENGTHS, WINDOW, COUNT = 3, 4, (9, 12, 5, 2), 4, 6
LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM, "ugrnn": UGRNN, "intersection": IntersectionRNN}


def made(kind: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return kind(FEATURES, UNITS, dtype=torch.float64, **kwargs)


def rows(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, FEATURES, dtype=torch.float64) for length in lengths]


def difference(module: nn.Module, inputs: Any, state: Any = None, seed: int = 0) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    return restart_difference(stacks_of(module), inputs, state, WINDOW, COUNT, generator)


def places(order: list[Tensor], reach: int = WINDOW) -> list[tuple[Tensor, int, int]]:
    """Sequences of a batch in the order of the layout, each with the number of inputs before a restart."""
    lengths = torch.tensor([len(row) for row in order])
    found = draw_restarts(lengths, reach, COUNT, torch.Generator().manual_seed(0))
    return [(order[lane], position, lane) for lane, position in zip(found.lanes, found.positions.tolist(), strict=True)]


def ratio(pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    whole, restarted = map(torch.stack, zip(*pairs, strict=True))
    return (whole - restarted).square().sum() / whole.square().sum()


def of_lane(state: Any, lane: int) -> Any:
    if state is None:
        return None
    return tuple(part[:, lane] for part in state) if isinstance(state, tuple) else state[:, lane]


def plain(module: Any, order: list[Tensor], state: Any = None) -> Tensor:
    """One run after the other, by the module itself; the state in which they part is a constant."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for row, position, lane in places(order):
            with torch.no_grad():
                _, parted = module(row[:position], of_lane(state, lane))
            seen = row[position : position + WINDOW]
            yield module(seen, parted)[0][-1], module(seen)[0][-1]

    return ratio(pairs())


def same(module: nn.Module, found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(found, parameters)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        assert wanted.any() or not gradient.any()
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12)


@given(
    st.lists(st.integers(0, 9), max_size=5),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(0, 2**31),
)
def test_restarts_fit_into_their_sequences(lengths: list[int], reach: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = draw_restarts(torch.tensor(lengths, dtype=torch.long), reach, count, generator)
    if max(lengths, default=0) <= reach:
        assert found is None
        return
    assert found.lanes.shape == found.positions.shape == found.lengths.shape == (count,)
    assert (found.lengths == torch.tensor(lengths)[found.lanes]).all()
    assert (found.positions >= 1).all()
    assert (found.positions + reach <= found.lengths).all()
    assert (found.positions.diff() <= 0).all()


def test_all_places_are_alike() -> None:
    found = draw_restarts(torch.tensor([5, 2, 7]), 3, 60_000, torch.Generator().manual_seed(0))
    drawn, counts = torch.stack((found.lanes, found.positions)).unique(dim=1, return_counts=True)
    assert drawn.T.tolist() == [[0, 1], [0, 2], [2, 1], [2, 2], [2, 3], [2, 4]]
    assert (counts - 10_000).abs().max() < 500


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5, "batch_first": True}, {"bias": False}])
def test_a_batch(cell: str, options: dict[str, Any]) -> None:
    module = made(LAYERS[cell], **options)
    order = rows((9, 9, 9))
    inputs = torch.stack(order, 0 if options.get("batch_first") else 1)
    found = difference(module, inputs)
    assert module.training
    assert module.dropout == options.get("dropout", 0.0)
    module.eval()
    same(module, found, plain(module, order))
    assert difference(module, inputs, seed=1) != found


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("batched", [True, False])
def test_a_start_state(cell: str, batched: bool) -> None:
    module, order = made(LAYERS[cell], num_layers=2), rows((9, 9) if batched else (9,))
    one = torch.randn(2, len(order), UNITS, dtype=torch.float64, requires_grad=True)
    state = (one, one.exp()) if cell == "lstm" else one
    given = state if batched else of_lane(state, 0)
    same(module, difference(module, torch.stack(order, 1) if batched else order[0], given), plain(module, order, state))


@pytest.mark.parametrize("cell", LAYERS)
def test_a_packed_sequence(cell: str) -> None:
    module, order = made(LAYERS[cell]), rows()
    torch.manual_seed(2)
    one = torch.randn(1, len(order), UNITS, dtype=torch.float64)
    state = (one, one.exp()) if cell == "lstm" else one
    ranks = torch.tensor(LENGTHS).argsort(descending=True)
    in_order = tuple(part[:, ranks] for part in state) if cell == "lstm" else state[:, ranks]
    found = difference(module, pack_sequence(order, enforce_sorted=False), state)
    same(module, found, plain(module, [order[rank] for rank in ranks], in_order))


def test_projected_outputs() -> None:
    module, order = made(nn.LSTM, proj_size=2), rows((9, 9))
    same(module, difference(module, torch.stack(order, 1)), plain(module, order))


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("windowed", [False, True])
def test_a_cell(cell: Any, windowed: bool) -> None:
    module, order = made(cell), rows((9, 9))

    def run(seen: Tensor, state: Any = None) -> Any:
        for step in seen:
            state = module(step, state)
        return state

    one = torch.randn(2, UNITS, dtype=torch.float64)
    state = (one, one.exp()) if cell is nn.LSTMCell else one

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for row, position, lane in places(order):
            with torch.no_grad():
                start = tuple(part[lane] for part in state) if cell is nn.LSTMCell else state[lane]
                parted = run(row[:position], start)
            ends = [run(row[position : position + WINDOW], begun) for begun in (parted, None)]
            yield tuple(end[0] if cell is nn.LSTMCell else end for end in ends)

    expected = ratio(pairs())
    tried = truncate(module, 2, share=True) if windowed else module
    same(module, difference(tried, torch.stack(order, 1), state), expected)


@pytest.mark.parametrize("cell", ["gru", "lstm", "ugrnn"])
def test_both_directions_of_one_layer(cell: str) -> None:
    module, order = made(LAYERS[cell], bidirectional=True), rows()
    halves = [made(LAYERS[cell]) for _ in range(2)]
    for direction, half in enumerate(halves):
        half.load_state_dict({name: getattr(module, name + "_reverse" * direction) for name in half.state_dict()})
    ranks = torch.tensor(LENGTHS).argsort(descending=True)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for row, position, _ in places([order[rank] for rank in ranks], 2 * WINDOW - 1):
            middle = position + WINDOW
            seen = row[position:middle], row[middle - 1 : middle - 1 + WINDOW].flip(0)
            before = row[:position], row[middle - 1 + WINDOW :].flip(0)
            whole, restarted = [], []
            for half, own, earlier in zip(halves, seen, before, strict=True):
                with torch.no_grad():
                    parted = half(earlier)[1] if len(earlier) else None
                whole.append(half(own, parted)[0][-1])
                restarted.append(half(own)[0][-1])
            yield torch.cat(whole), torch.cat(restarted)

    expected = ratio(pairs())
    found = difference(module, pack_sequence(order, enforce_sorted=False))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    ours = dict(
        zip(dict(module.named_parameters()), torch.autograd.grad(found, list(module.parameters())), strict=True)
    )
    for direction, half in enumerate(halves):
        own = dict(half.named_parameters())
        for name, wanted in zip(own, torch.autograd.grad(expected, list(own.values()), retain_graph=True), strict=True):
            torch.testing.assert_close(ours[name + "_reverse" * direction], wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "intersection"])
def test_both_directions_of_a_stack_restart_together(cell: str) -> None:
    module, order = made(LAYERS[cell], bidirectional=True, num_layers=3, dropout=0.5).eval(), rows((9, 9))
    state = torch.randn(6, 2, UNITS, dtype=torch.float64)
    state = (state, state.exp()) if cell == "lstm" else state

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for row, position, lane in places(order, 2 * WINDOW - 1):
            whole, _ = module(row, of_lane(state, lane))
            restarted, _ = module(row[position : position + 2 * WINDOW - 1])
            yield whole[position + WINDOW - 1], restarted[WINDOW - 1]

    torch.testing.assert_close(difference(module, torch.stack(order, 1), state), ratio(pairs()), rtol=1e-10, atol=0)


def test_a_windowed_layer_means_its_recurrence() -> None:
    module, order = made(nn.LSTM), rows((9, 9))
    inputs, twin = torch.stack(order, 1), truncate(module, 2, share=True)
    _, carried = twin(inputs)
    state = tuple(part.detach().as_subclass(Tensor) for part in carried)
    same(module, difference(twin, inputs, carried), plain(module, order, state))


def test_sequences_without_a_place() -> None:
    module = made(nn.GRU)
    assert difference(module, torch.stack(rows((WINDOW, WINDOW)), 1)) is None
    assert difference(module, pack_sequence(rows((WINDOW, 1)))) is None
    assert difference(module, torch.stack(rows((WINDOW + 1,)), 1)) is not None
    assert difference(made(nn.GRU, bidirectional=True), torch.stack(rows((2 * WINDOW - 1,)), 1)) is None
    assert difference(made(nn.GRU, bidirectional=True), torch.stack(rows((2 * WINDOW,)), 1)) is not None


def test_a_layer_without_outputs_has_no_difference() -> None:
    module = made(nn.RNN)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    found = difference(module, torch.stack(rows((9,)), 1))
    assert found == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(found, list(module.parameters())))


def test_nothing_is_drawn_and_no_hook_is_called() -> None:
    module, inputs = made(nn.LSTM, num_layers=2, dropout=0.5), torch.stack(rows((9, 9)), 1)
    calls: list[Any] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        found = difference(module, inputs.bfloat16())
    assert found is not None
    assert found.dtype == torch.float64
    assert torch.equal(before, torch.get_rng_state())
    assert not calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    module, inputs = made(nn.GRU), torch.stack(rows((9, 9)), 1)
    expected = difference(module, inputs)
    found = difference(module.to(dtype), inputs.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.01)


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_a_longer_window_of_a_contraction_differs_less(seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.RNN(FEATURES, UNITS)
    with torch.no_grad():
        module.weight_hh_l0 *= 0.5 / torch.linalg.matrix_norm(module.weight_hh_l0, 2)
    inputs, generator = torch.randn(30, 2, FEATURES), torch.Generator()
    short, long = (
        restart_difference(stacks_of(module), inputs, None, window, 20, generator.manual_seed(seed))
        for window in (1, 12)
    )
    assert long < short


@on_gpu
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_waits_for_the_device(options: dict[str, Any], packed: bool) -> None:
    module = nn.LSTM(FEATURES, UNITS, num_layers=2, dropout=0.5, device="cuda", **options)
    order = [row.float().cuda() for row in rows((12, 12, 9))]
    inputs = pack_sequence(order) if packed else torch.stack(order[:2], 1)
    mode = torch.cuda.get_sync_debug_mode()
    difference(module, inputs)  # the first call allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = difference(module, inputs)
        torch.autograd.grad(found, list(module.parameters()))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    expected = difference(module.cpu(), inputs.cpu())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-5)
