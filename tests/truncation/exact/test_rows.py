"""The simple form: rows, blocks of rows, and plain runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.truncation.exact.rows import advance_rows, head_rows, window_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate, stacks_of, take
from tests.nets import LAYERS, net
from tests.truncation.brute import each, flat, gradients, restarted, same, start_state

TIME, BATCH = 8, 2


def sequence() -> Tensor:
    return torch.randn(TIME, BATCH, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stack_and_start(name: str, layers: int) -> tuple[torch.nn.Module, Stack, object, States]:
    """A module, its stack, and one start in the form of each."""
    module = net(name, units=4, num_layers=layers)
    (stack,) = stacks_of(module)
    hx = start_state(module, BATCH)
    parts = hx if isinstance(hx, tuple) else (hx,)
    start = [tuple(part[layer][None] for part in parts) for layer in range(layers)]
    inputs = torch.zeros(1, BATCH, 3, dtype=torch.float64)
    return module, stack, hx, tuple(r.full_state(state, inputs) for r, state in zip(stack.layers, start, strict=True))


def shown(stack: Stack, states: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """The parts of the layers' states that the module returns."""
    return [torch.stack(parts) for parts in zip(*states, strict=True)][: stack.layers[0].state_parts]


@given(
    name=st.sampled_from(sorted(LAYERS)),
    layers=st.integers(1, 2),
    window=st.integers(1, TIME + 2),
    first=st.integers(0, TIME - 1),
    block=st.sampled_from([None, 1, 3, 50]),
)
@settings(max_examples=40, deadline=None)
def test_rows_are_restarted(name: str, layers: int, window: int, first: int, block: int | None) -> None:
    module, stack, hx, start = stack_and_start(name, layers)
    x = sequence().requires_grad_()
    count = max(0, min(window, TIME) - first)
    starts = take(start, torch.zeros(count, dtype=torch.long)) if count else None
    if starts is None and window > first:
        return
    found = stack.output(window_rows(stack, x, window, first=first, starts=starts, block=block))
    expected = restarted(module, x, window, hx)[0][first:]
    same([found], [expected])
    sources = [x, *module.parameters()]
    same(gradients([found], sources), gradients([expected], sources))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_head_is_a_plain_run(name: str, layers: int) -> None:
    module, stack, hx, start = stack_and_start(name, layers)
    x = sequence()
    visited = head_rows(stack, x, start)
    output, last = module(x, hx)
    same([stack.output(visited)], [output])
    same(shown(stack, [tuple(part[-1] for part in state) for state in visited]), flat(last))


@pytest.mark.parametrize("name", LAYERS)
def test_unfinished_windows_are_as_old_as_their_place(name: str) -> None:
    module, stack, _, _ = stack_and_start(name, 2)
    x = sequence()
    rows = advance_rows(stack, x[:3], stack.zeros(x[:0]))
    rows = advance_rows(stack, x[3:5], rows)
    assert rows[0][0].shape[0] == 5
    for age in range(1, 6):
        _, state = module(x[5 - age : 5])
        found = shown(stack, list(take(rows, slice(age - 1, age))))
        same([part[:, 0] for part in found], flat(state))


@pytest.mark.parametrize("block", [None, 2])
def test_masks_are_those_of_the_positions(block: int | None) -> None:
    _, stack, _, _ = stack_and_start("gru", 2)
    x, window = sequence(), 3
    mask = (torch.arange(TIME * BATCH * 4).view(TIME, BATCH, 4) % 3 > 0) * 1.5
    (found,) = window_rows(stack, x, window, first=window, masks=[mask.double()], block=block)[1]
    lower, upper = (Stack((layer,)) for layer in stack.layers)
    for row in range(window, TIME):
        seen = slice(row - window + 1, row + 1)
        below = lower.output(head_rows(lower, x[seen], lower.zeros(x[:1]))) * mask[seen]
        same([found[row - window]], [upper.output(head_rows(upper, below, upper.zeros(below[:1])))[-1]])


def test_rows_are_joined_and_taken() -> None:
    states: States = ((torch.arange(3.0)[:, None, None],), (torch.arange(3.0, 6)[:, None, None],))
    joined = concatenate(take(states, slice(2, 3)), take(states, torch.tensor([0, 0])))
    assert [part.flatten().tolist() for layer in joined for part in layer] == [[2, 0, 0], [5, 3, 3]]


def test_a_stack_says_what_it_puts_out() -> None:
    for name, size in (("lstm", 4), ("proj", 3), ("gru", 4)):
        (stack,) = stacks_of(net(name, units=4, num_layers=2))
        assert [stack.output_size(layer) for layer in (0, 1)] == [size, size]
        assert each(stack.zeros(sequence())[0], lambda part: part.abs().sum())[0] == 0


def test_stacks_are_directions() -> None:
    forward, backward = stacks_of(net("gru", num_layers=3, bidirectional=True))
    assert [layer.name for layer in forward.layers] == ["l0", "l1", "l2"]
    assert [layer.name for layer in backward.layers] == ["l0_reverse", "l1_reverse", "l2_reverse"]
    with pytest.raises(ValueError, match=r"[Nn]o.*recurren"):
        stacks_of(torch.nn.Linear(2, 2))
