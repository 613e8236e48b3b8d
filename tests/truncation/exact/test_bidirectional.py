"""Both directions: turning padded sequences around, and starts and masks at the ends of a window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.truncation import truncate
from lightning_stable.truncation.exact.bidirectional import bidirectional_rows, reorder, reversal
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.stack import stacks_of
from tests.nets import LAYERS, net
from tests.truncation.brute import flat, restarted, same, start_state

TIME, BATCH = 8, 2


def sequence(batch: int = BATCH) -> Tensor:
    return torch.randn(TIME, batch, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_sequences_are_turned_around_in_front_of_their_padding() -> None:
    x = torch.arange(12.0).view(4, 3, 1)
    index = reversal(x, torch.tensor([4, 1, 3]))
    turned = reorder(x, index).squeeze(-1).T.tolist()
    assert turned == [[9, 6, 3, 0], [1, 4, 7, 10], [8, 5, 2, 11]]
    assert torch.equal(reorder(x, reversal(x, None)), x.flip(0))


@given(st.lists(st.integers(1, TIME), min_size=1, max_size=4))
def test_turning_twice_is_nothing(lengths: list[int]) -> None:
    x = sequence(len(lengths))
    index = reversal(x, torch.tensor(lengths))
    assert torch.equal(reorder(reorder(x, index), index), x)


@given(
    name=st.sampled_from(sorted(LAYERS)),
    layers=st.integers(1, 3),
    window=st.integers(1, TIME + 3),
    lengths=st.lists(st.integers(1, TIME - 1), min_size=BATCH - 1, max_size=BATCH - 1),
)
@settings(max_examples=25, deadline=None)
def test_rows_of_both_directions(name: str, layers: int, window: int, lengths: list[int]) -> None:
    module = net(name, units=4, num_layers=layers, bidirectional=True)
    x, hx, ends = sequence(), start_state(module, BATCH), torch.tensor([TIME, *lengths])
    stacks = stacks_of(module)
    starts = Layout.of(module, x).starts(stacks, hx)
    both = bidirectional_rows((stacks[0], stacks[1]), x, window, (starts[0], starts[1]), ends)
    output = torch.cat([stack.output(states) for stack, states in zip(stacks, both, strict=True)], -1)
    assert output.shape == (TIME, BATCH, 2 * (3 if name == "proj" else 4))
    for lane, end in enumerate(ends.tolist()):
        alone = [part[:, lane : lane + 1] for part in flat(hx)]
        expected, _ = restarted(module, x[:end, lane : lane + 1], window, tuple(alone) if len(alone) > 1 else alone[0])
        same([output[:end, lane]], [expected[:, 0]])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("edge", ["left", "right"])
def test_only_the_windows_at_an_end_see_its_start(layers: int, edge: str) -> None:
    module, window = net("lstm", num_layers=layers, bidirectional=True), 3
    x, twin = sequence(), truncate(module, window)
    direction = torch.tensor([edge == "left", edge == "right"]).repeat(layers)[:, None, None]
    before = torch.zeros(2 * layers, BATCH, 5, dtype=torch.float64)
    after = torch.where(direction, 0.5, before)
    differs = (twin(x, (before, before))[0] != twin(x, (after, after))[0]).any(-1).any(-1)
    expected = torch.arange(TIME) < window
    assert torch.equal(differs, expected if edge == "left" else expected.flip(0))


def test_a_window_of_one_is_a_step_of_both() -> None:
    module = net("gru", num_layers=2, bidirectional=True)
    x = sequence()
    middle = slice(1, TIME - 1)
    expected = torch.cat([module(x[t : t + 1])[0] for t in range(TIME)])
    same([truncate(module, 1)(x)[0]], [expected])
    hx = start_state(module, BATCH)
    same([truncate(module, 1)(x, hx)[0][middle]], [expected[middle]])
