"""Windows that go on over the borders of chunks, and the states that carry them."""

import copy
import io
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable.truncation import truncate
from lightning_stable.truncation.carried_state import CarriedState
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, stacks_of
from tests.nets import LAYERS, net
from tests.truncation.brute import State, each, flat, gradients, parts, restarted, same, start_state

T, BATCH = 9, 2


def sequence(time: int = T, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(time, BATCH, 3, generator=generator, dtype=torch.float64).to(dtype)


def run_chunks(
    twin: nn.Module, x: Tensor, chunks: list[int], hx: State = None, *, change: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, State, list[State]]:
    """Outputs joined, last state and the states at all borders of chunks of these lengths."""
    outputs, states = [], []
    for values in x.split(chunks):
        if change is not None:
            hx = each(hx, change)
        output, hx = twin(values, hx)
        outputs.append(output)
        states.append(hx)
    return torch.cat(outputs), hx, states


def chunkings(time: int = T) -> st.SearchStrategy[list[int]]:
    borders = st.sets(st.integers(1, time - 1)).map(sorted)
    return borders.map(lambda found: [high - low for low, high in pairwise([0, *found, time])])


# The same as in one piece ---------------------------------------------------------------------------------------------
@given(
    name=st.sampled_from(sorted(LAYERS)),
    layers=st.integers(1, 2),
    chunks=chunkings(),
    window=st.sampled_from([1, 2, 3, 4, 5, 7, T - 1, T, T + 3, 10**9]),
    started=st.booleans(),
    recompute=st.sampled_from([True, False]),
)
@settings(max_examples=50, deadline=None)
def test_chunks_are_one_sequence(
    name: str, layers: int, chunks: list[int], window: int, started: bool, recompute: bool
) -> None:
    module = net(name, units=4, num_layers=layers)
    twin, x = truncate(module, window, recompute=recompute), sequence().requires_grad_()
    hx = each(start_state(module, BATCH) if started else None, Tensor.requires_grad_)
    output, last, _ = run_chunks(twin, x, chunks, hx)
    found, expected = flat(output, last), flat(twin(x, hx))
    same(found, expected)
    sources = [x, *parts(hx), *twin.parameters()]
    same(gradients(found, sources), gradients(expected, sources))
    detached, last, _ = run_chunks(twin, x, chunks, hx, change=Tensor.detach)
    same(flat(detached, last), expected)


@pytest.mark.parametrize("chunks", [[4, 3, 2], [1] * T, [2, 7]])
@pytest.mark.parametrize("window", [1, 3, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_chunks_are_the_restarted_layer(name: str, window: int, chunks: list[int]) -> None:
    module = net(name, num_layers=2)
    hx = start_state(module, BATCH)
    output, last, states = run_chunks(truncate(module, window), sequence(), chunks, hx)
    same(flat(output, last), flat(restarted(module, sequence(), window, hx)))
    for end, state in zip(torch.tensor(chunks).cumsum(0).tolist(), states, strict=True):
        same(flat(state), flat(restarted(module, sequence()[:end], window, hx)[1]))


@pytest.mark.parametrize("calls", [0, 5])
@pytest.mark.parametrize("chunks", [[4, 5], [2, 3, 4], [7, 2]])
@pytest.mark.parametrize("window", [1, 3, 6, 20])
@pytest.mark.parametrize("name", ["relu", "lstm", "proj", "gru", "intersection"])
def test_detached_windows_learn_from_their_own_chunk(name: str, window: int, chunks: list[int], calls: int) -> None:
    """Truncated backpropagation through time, every window by itself: its part before the border is a constant."""
    module = net(name, units=4, num_layers=2)
    x, twin = sequence().requires_grad_(), truncate(module, window)
    for _ in range(calls):  # a layer that has been used for sequences in one piece expects no other
        twin(x)
    output, _, _ = run_chunks(twin, x, chunks, change=Tensor.detach)
    expected, low = [], 0
    for length in chunks:
        for t in range(low, low + length):
            first, state = max(0, t - window + 1), None
            if first < low:
                with torch.no_grad():
                    _, state = module(x[first:low])
            expected.append(module(x[max(first, low) : t + 1], state)[0][-1])
        low += length
    sources = [x, *twin.parameters()]
    same([output], [torch.stack(expected)])
    same(gradients([output], sources), gradients([torch.stack(expected)], [x, *module.parameters()]))


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False}])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_chunks_in_every_layout(name: str, options: dict[str, Any]) -> None:
    module = net(name, num_layers=2, **options)
    twin, x = truncate(module, 3), sequence()
    x = x.transpose(0, 1) if "batch_first" in options else x
    time = 1 if "batch_first" in options else 0
    expected = flat(twin(x))
    outputs, hx = [], None
    for values in x.split([4, 3, 2], dim=time):
        output, hx = twin(values, hx)
        outputs.append(output)
    same(flat(torch.cat(outputs, dim=time), hx), expected)
    alone = x[0] if time else x[:, 0]
    outputs, hx = [], None
    for values in alone.split([4, 3, 2]):
        output, hx = twin(values, hx)
        outputs.append(output)
    same([torch.cat(outputs)], [expected[0][0] if time else expected[0][:, 0]])


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("first", [2, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_sequence_continues_a_batch(name: str, first: int, window: int) -> None:
    module = net(name, num_layers=2)
    twin, x, lengths = truncate(module, window), sequence(), [2, 4]
    _, state = twin(x[:first])
    packed = pack_padded_sequence(x[first:], torch.tensor(lengths), enforce_sorted=False)
    output, last = twin(packed, state)
    padded, _ = pad_packed_sequence(output)
    for lane, length in enumerate(lengths):
        expected, end = restarted(module, x[: first + length, lane : lane + 1], window)
        same([padded[:length, lane]], [expected[first:, 0]])
        same([part[:, lane] for part in flat(last)], [part[:, 0] for part in flat(end)])


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("window", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["rnn", "lstm", "proj", "gru", "intersection"])
def test_an_output_depends_on_its_window_over_borders(name: str, window: int, detach: bool) -> None:
    twin = truncate(net(name, num_layers=2, dtype=torch.float32), window)
    chunks, change = [2, 4, 3], Tensor.detach if detach else None
    x = sequence(dtype=torch.float32)
    before, _, _ = run_chunks(twin, x, chunks, change=change)
    for changed in range(T):
        other = x.clone()
        other[changed] += 1
        after, _, _ = run_chunks(twin, other, chunks, change=change)
        for t in range(T):
            assert torch.equal(before[t], after[t]) != (t - window < changed <= t)


@pytest.mark.parametrize("chunks", [[5, 4], [4, 3, 2], [4, 1, 4], [3, 6], [2, 1, 6]])
@pytest.mark.parametrize("name", ["rnn", "lstm", "proj", "gru", "intersection"])
def test_dropout_masks_belong_to_positions_over_borders(name: str, chunks: list[int]) -> None:
    window = 3
    module = net(name, units=4, num_layers=2, dropout=0.5)
    twin, x, pieces = truncate(module, window), sequence(), []
    torch.manual_seed(3)
    found, _, _ = run_chunks(twin, x, chunks, change=Tensor.detach)
    torch.manual_seed(3)
    for length in chunks:
        ones = torch.ones(length, BATCH, 3 if name == "proj" else 4, dtype=torch.float64)
        pieces.append(nn.functional.dropout(ones, 0.5))
    masks, stack = torch.cat(pieces), stacks_of(module)[0]
    # Layers by themselves, with the masks of the positions.
    lower, upper = (Stack((layer,)) for layer in stack.layers)
    for t in range(T):
        seen = slice(max(0, t - window + 1), t + 1)
        below = lower.output(head_rows(lower, x[seen], lower.zeros(x[:1]))) * masks[seen]
        same([found[t]], [upper.output(head_rows(upper, below, upper.zeros(below[:1])))[-1]])


@pytest.mark.parametrize("window", [2, 4, 20])
@pytest.mark.parametrize("name", LAYERS)
def test_what_was_seen_before_a_step_stays_as_it_was(name: str, window: int) -> None:
    """Weights that change between two chunks do not change what the windows have seen, as no carried state does."""
    module = net(name, units=4, num_layers=2)
    twin, x, border = truncate(module, window), sequence(), 5
    _, carried = twin(x[:border])
    before = copy.deepcopy(module)
    with torch.no_grad():
        for value in (*twin.parameters(), *module.parameters()):
            value.mul_(1.5)
    found, _ = twin(x[border:], each(carried, Tensor.detach))
    for t in range(border, T):
        first, state = max(0, t - window + 1), None
        if first < border:
            _, state = before(x[first:border])
        same([found[t - border]], [module(x[max(first, border) : t + 1], state)[0][-1]])


# Cost -----------------------------------------------------------------------------------------------------------------
def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step of a stack from now on."""
    rows: list[int] = []
    step = Stack.step

    def counted(self: Stack, inputs: Tensor, *args: Any) -> Any:
        rows.append(len(inputs))
        return step(self, inputs, *args)

    monkeypatch.setattr(Stack, "step", counted)
    return rows


@pytest.mark.parametrize("name", ["proj", "gru"])
def test_an_enormous_window_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = truncate(net(name), 10**9)
    steps = count_steps(monkeypatch)
    run_chunks(twin, sequence(), [4, 3, 2])
    assert steps == []


def test_steps_grow_with_the_window_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, x = truncate(net("proj"), 8), sequence(40)  # no fused function: every step is counted
    _, state = twin(x[:20])
    steps = count_steps(monkeypatch)
    twin(x[20:], state)
    # The windows begun before the border, those of the chunk, and those that go on.
    assert len(steps) <= 3 * 8


# States are tensors ---------------------------------------------------------------------------------------------------
def test_a_carried_state_is_a_tensor() -> None:
    twin = truncate(net("lstm"), 3)
    output, (h_n, c_n) = twin(sequence())
    for state in (h_n, c_n):
        assert isinstance(state, CarriedState)
        assert isinstance(state, Tensor)
        assert torch.is_tensor(state)
        assert state.shape == (1, BATCH, 5)
        assert state.requires_grad
    assert type(output) is Tensor
    plain = h_n.as_subclass(Tensor)
    assert torch.equal(h_n, plain)
    linear = nn.Linear(5, 2).double()
    for computed in (h_n.mean(), torch.tanh(h_n), h_n @ plain.mT, linear(h_n[-1]), linear(h_n)):
        assert type(computed) is Tensor
    assert torch.equal(h_n[-1] + 1 - torch.cat((h_n, c_n))[0], plain[-1] + 1 - plain[0])
    assert torch.equal(linear(h_n[-1]), linear(plain[-1]))
    assert h_n.detach().numpy().shape == (1, BATCH, 5)
    (h_n.sum() + output.sum()).backward()
    assert all(value.grad is not None for value in twin.parameters())


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda state: state,
    "detach": Tensor.detach,
    "torch.detach": torch.detach,
    "data": lambda state: state.data,
    "clone": Tensor.clone,
    "contiguous": Tensor.contiguous,
    "detach and clone": lambda state: state.detach().clone(),
    "to": lambda state: state.to("cpu", torch.float64),
    "there and back": lambda state: state.float().double(),
    "type": lambda state: state.detach().type(torch.float64),
    "type_as": lambda state: state.float().type_as(torch.zeros(1, dtype=torch.float64)),
    "requires_grad_": lambda state: state.detach().requires_grad_(),
    "deepcopy": lambda state: copy.deepcopy(state, {id(state.memory.layer): state.memory.layer}),
    "shallow copy": copy.copy,
}


@pytest.mark.parametrize("chunks", [[2, 7], [5, 4], [4, 2, 3]])
@pytest.mark.parametrize("change", KEEPING)
def test_copies_of_a_state_keep_the_windows(change: str, chunks: list[int]) -> None:
    twin, x = truncate(net("lstm", num_layers=2), 3), sequence()
    output, last, _ = run_chunks(twin, x, chunks, change=KEEPING[change])
    tolerance = 1e-6 if "back" in change or change == "type_as" else 1e-12
    same(flat(output, last), flat(twin(x)), tolerance)


def test_a_state_moves_with_its_windows() -> None:
    twin = truncate(net("gru", dtype=torch.float32), 3)
    x = sequence()
    _, state = twin(x[:5].float())
    moved = state.detach().to(torch.float64)
    assert moved.dtype == torch.float64
    twin.double()
    same(flat(twin(x[5:], moved)[0]), [twin(x)[0][5:]], 1e-6)


def test_detached_states_hold_no_graph() -> None:
    twin, x = truncate(net("lstm", num_layers=2), 3), sequence().requires_grad_()
    hx = None
    for values in x.split([2, 4, 3]):
        _, hx = twin(values, hx)
        hx = tuple(part.detach() for part in hx)
        for part in hx:
            tensors = [part.memory.recent, *(value for state in part.memory.rows or () for value in state)]
            assert not any(tensor is not None and tensor.requires_grad for tensor in tensors)


def test_states_are_read_without_being_changed() -> None:
    twin, x = truncate(net("lstm"), 3), sequence()
    _, (h_n, c_n) = twin(x[:5])
    shown = torch.zeros(1, BATCH, 5, dtype=torch.float64)
    shown[:] = h_n
    shown.copy_(c_n)
    shown += h_n.detach()
    assert "CarriedState" in repr(h_n)
    assert h_n.norm() > 0
    same([twin(x[5:], (h_n, c_n))[0]], [twin(x)[0][5:]])


# States that cannot be continued --------------------------------------------------------------------------------------
def in_place(state: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    state = state.detach()
    change(state)
    return state


EDITED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "add": ("add", lambda state: state + 1.0),
    "add in front": ("add", lambda state: 1.0 + state),
    "iadd": ("add", lambda state: in_place(state, lambda part: part.__iadd__(1))),
    "flip": ("flip", lambda state: state.flip(1)),
    "clamp": ("clamp", lambda state: state.clamp(-1, 1)),
    "cat": ("cat", lambda state: torch.cat((state, state), 1)),
    "view of another shape": ("view", lambda state: state.view(1, -1, 1)),
    "a layer": ("__getitem__", lambda state: state[[0]]),
    "setitem": ("__setitem__", lambda state: in_place(state, lambda part: part.__setitem__((0, 0), 0.0))),
    "a view set": ("through a view", lambda state: in_place(state, lambda part: part.transpose(0, 1)[0].zero_())),
    "data set": ("through a view", lambda state: in_place(state, lambda part: part.data[0, 0].fill_(1.0))),
    "edited, then copied": ("add", lambda state: (state + 1.0).detach().clone()),
    "edited twice": ("add", lambda state: (state + 1.0) * torch.ones(1)),
    "two states": ("where", lambda state: torch.where(torch.ones(1, BATCH, 1).bool(), state, state.clone())),
}


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("change", EDITED)
def test_edited_states_are_refused(change: str, length: int) -> None:
    named, edit = EDITED[change]
    for name in ("gru", "lstm"):
        twin, x = truncate(net(name), 3), sequence()
        _, state = twin(x[:length])
        with pytest.raises(ValueError, match=rf"Got a state changed.*{named}.*Start from zeros"):
            twin(x[length:], each(state, edit))
    # One edited part is enough.
    _, (h_n, c_n) = twin(x[:length])
    with pytest.raises(ValueError, match="a windowed LSTM can be carried on as the layer returned it"):
        twin(x[length:], (h_n, edit(c_n)))


# Edits that the windows follow ----------------------------------------------------------------------------------------
EDITS_CHUNKS = [[2, 7], [5, 4], [3, 2, 4]]
ROWS = torch.tensor([1, 0, 1])
CHOSEN: dict[str, Callable[[Tensor], Tensor]] = {
    "indices": lambda state: state[:, ROWS],
    "list": lambda state: state[:, [1, 0, 1]],
    "index_select": lambda state: state.index_select(1, ROWS),
    "index_select from the end": lambda state: torch.index_select(state, -2, ROWS),
    "in two steps": lambda state: state[:, [1, 0]].detach()[:, torch.tensor([0, 1, 0])],
}


@pytest.mark.parametrize("chunks", EDITS_CHUNKS)
@pytest.mark.parametrize("change", CHOSEN)
@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_chosen_sequences_take_their_windows_along(window: int, change: str, chunks: list[int]) -> None:
    """Beams of a search, or the sequences of a batch that go on."""
    for name in ("gru", "lstm"):
        twin, x = truncate(net(name, num_layers=2), window), sequence()
        output, state = twin(x)
        _, hx = twin(x[: chunks[0]])
        hx, later = each(hx, CHOSEN[change]), x[chunks[0] :, ROWS]
        found, last, _ = run_chunks(twin, later, chunks[1:], hx)
        same(flat(found, last), flat(output[chunks[0] :, ROWS], each(state, lambda part: part[:, ROWS])))


def test_sequences_of_a_slice_or_a_mask_go_on() -> None:
    twin, x = truncate(net("gru"), 3), sequence()
    _, hx = twin(x[:5])
    for chosen in (slice(1, 2), torch.tensor([False, True])):
        same([twin(x[5:, 1:], hx[:, chosen])[0]], [twin(x)[0][5:, 1:]])


DONE = torch.tensor([True, False])[:, None]
RESET: dict[str, Callable[[Tensor], Tensor]] = {
    "mask": lambda state: state * ~DONE,
    "mask in front": lambda state: (~DONE).double()[None] * state,
    "torch.mul": lambda state: torch.mul(state, ~DONE),
    "where": lambda state: torch.where(DONE, torch.zeros_like(state), state),
    "where with a number": lambda state: torch.where(DONE[None], 0.0, state),
    "masked_fill": lambda state: state.masked_fill(DONE, 0),
    "mul_": lambda state: in_place(state, lambda part: part.mul_(~DONE)),
    "imul": lambda state: in_place(state, lambda part: part.__imul__(~DONE)),
    "masked_fill_": lambda state: in_place(state, lambda part: part.masked_fill_(DONE, 0)),
}


@pytest.mark.parametrize("chunks", EDITS_CHUNKS)
@pytest.mark.parametrize("change", RESET)
@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_sequences_that_are_reset_start_afresh(window: int, change: str, chunks: list[int]) -> None:
    """The first sequence ends with the first chunk, and another begins in its place; the second goes on."""
    for name in ("gru", "lstm"):
        twin, x = truncate(net(name, num_layers=2), window), sequence()
        _, hx = twin(x[: chunks[0]])
        found, last, _ = run_chunks(twin, x[chunks[0] :], chunks[1:], each(hx, RESET[change]))
        fresh, whole = flat(*twin(x[chunks[0] :])), flat(*twin(x))
        whole[0] = whole[0][chunks[0] :]
        same(flat(found, last), [torch.cat((a[:, :1], b[:, 1:]), 1) for a, b in zip(fresh, whole, strict=True)])


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("border", [2, 5])
@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_a_scaled_state_scales_every_window(window: int, border: int, part: int) -> None:
    module, x = net("lstm", num_layers=2), sequence()
    twin = truncate(module, window)
    _, hx = twin(x[:border])
    hx = tuple(value * 0.5 if index == part else value for index, value in enumerate(hx))
    found, _, _ = run_chunks(twin, x[border:], [2, T - border - 2], hx)
    for t in range(border, T):
        low, state = max(0, t - window + 1), None
        if low < border:
            _, state = module(x[low:border])
            state = tuple(value * 0.5 if index == part else value for index, value in enumerate(state))
        same([found[t - border]], [module(x[max(low, border) : t + 1], state)[0][-1]])


def test_a_given_start_of_single_sequences() -> None:
    """Reset to a state of the user's own, not to zero."""
    module, x = net("gru"), sequence()
    twin, start = truncate(module, 3), start_state(module, BATCH)
    _, hx = twin(x[:5])
    found, _ = twin(x[5:], torch.where(DONE, start, hx))
    same([found[:2, 0]], [twin(x[5:], start)[0][:2, 0]])
    same([found[2:, 0]], [twin(x[5:])[0][2:, 0]])  # no longer reaching over the border
    same([found[:, 1]], [twin(x)[0][5:, 1]])


OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "zero_": lambda state: in_place(state, Tensor.zero_),
    "fill_": lambda state: in_place(state, lambda part: part.fill_(0.25)),
    "copy_": lambda state: in_place(state, lambda part: part.copy_(torch.full_like(part, -0.5))),
    "computed": lambda state: torch.tanh(state).detach(),
}


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("change", OWN)
def test_states_of_the_users_own_are_starts(change: str, length: int) -> None:
    for name in ("gru", "lstm"):
        module, x = net(name), sequence()
        twin = truncate(module, 3)
        _, state = twin(x[:length])
        own = each(state, OWN[change])
        plain = each(own, lambda part: part.as_subclass(Tensor))
        same(flat(twin(x[length:], own)), flat(restarted(module, x[length:], 3, plain)))


TURNED_BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda state: state.transpose(0, 1).transpose(0, 1),
    "squeeze": lambda state: state.squeeze(0).unsqueeze(0),
    "view": lambda state: state.view(-1).view(state.shape),
    "permute": lambda state: state.permute(1, 0, 2).detach().permute(1, 0, 2),
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("change", TURNED_BACK)
def test_views_turned_back_have_lost_nothing(change: str, length: int, mode: Any) -> None:
    """Layers around a recurrence turn states around and back."""
    for name in ("gru", "lstm"):
        twin, x = truncate(net(name), 3), sequence()
        with mode():
            _, state = twin(x[:length])
            same([twin(x[length:], each(state, TURNED_BACK[change]))[0]], [twin(x)[0][length:]])


def test_parts_of_different_states_are_refused() -> None:
    twin, x = truncate(net("lstm"), 3), sequence()
    _, (h_1, c_1) = twin(x[:5])
    _, (h_2, c_2) = twin(x[:4])
    _, (h_3, c_3) = twin(x[4:])  # as long as the first one
    for state in ((h_1, c_2), (h_2, c_1), (h_1, c_3), (h_3, c_1), (h_1.detach(), torch.zeros_like(c_1[0])[None])):
        with pytest.raises(ValueError, match="only a part of it, or parts of different states"):
            twin(x, state)
    twin(x, (h_1.detach(), c_1.clone()))


@pytest.mark.parametrize("window", [2, 20])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_states_of_packed_sequences_are_refused(name: str, window: int) -> None:
    twin, x = truncate(net(name), window), sequence()
    _, state = twin(pack_padded_sequence(x, torch.tensor([T, 4])))
    with pytest.raises(ValueError, match="Got a state of a PackedSequence"):
        twin(x, state)


@pytest.mark.parametrize("window", [2, 20])
@pytest.mark.parametrize("layers", [1, 2])
def test_states_of_bidirectional_layers_are_refused(layers: int, window: int) -> None:
    twin, x = truncate(net("lstm", num_layers=layers, bidirectional=True), window), sequence()
    _, state = twin(x)
    with pytest.raises(ValueError, match="Got a state of a bidirectional layer"):
        twin(x, each(state, Tensor.detach))
    twin(x, each(state, lambda part: part.detach().as_subclass(Tensor)))


def test_a_batch_of_another_size_is_refused() -> None:
    twin, x = truncate(net("gru"), 3), sequence()
    _, state = twin(x[:5])
    with pytest.raises((ValueError, RuntimeError), match="hidden size"):
        twin(x[5:, :1], state)


# States to start from -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_other_states_are_starts(name: str) -> None:
    module = net(name)
    encoder, decoder, x = truncate(net(name, seed=1), 3), truncate(module, 3), sequence()
    _, state = encoder(x)
    plain = each(state, lambda part: part.detach().as_subclass(Tensor))
    expected = flat(restarted(module, x, 3, plain))
    same(flat(decoder(x, state)), expected)
    same(flat(decoder(x, each(state, Tensor.detach))), expected)
    same(flat(decoder(x, plain)), expected)
    # What another layer left may be edited.
    edited = each(state, lambda part: part * 2.0)
    same(flat(decoder(x, edited)), flat(restarted(module, x, 3, each(plain, lambda part: part * 2.0))))
    # A start of the user's own making, even from a state of this layer.
    _, own = decoder(x)
    same(
        flat(decoder(x, each(own, torch.tanh))),
        flat(restarted(module, x, 3, each(own, lambda p: torch.tanh(p.as_subclass(Tensor))))),
    )


def test_a_layer_used_for_two_streams_keeps_them_apart() -> None:
    twin, x = truncate(net("gru"), 3), sequence()
    y = x.flip(0)
    _, of_x = twin(x[:5])
    _, of_y = twin(y[:4])
    same([twin(x[5:], of_x)[0]], [twin(x)[0][5:]])
    same([twin(y[4:], of_y)[0]], [twin(y)[0][4:]])
    # A state can be continued more than once.
    same([twin(x[5:], of_x)[0]], [twin(x)[0][5:]])


# Models that hold states ----------------------------------------------------------------------------------------------
class Streaming(nn.Module):
    """Keeps its state in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.core = net("gru")
        self.register_buffer("state", torch.zeros(1, BATCH, 5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        output, state = self.core(x, self.state)
        self.state = state.detach()
        return output


@pytest.mark.parametrize("length", [2, 5])
def test_models_with_a_carried_state_are_copied(length: int) -> None:
    twin, x = truncate(Streaming(), 3), sequence()
    whole, _ = twin.core(x)
    twin(x[:length])
    other = copy.deepcopy(twin)
    assert other.state.memory.layer is other.core
    with torch.no_grad():
        for value in other.core.parameters():
            value.mul_(2)
    changed = other(x[length:])
    assert not torch.allclose(changed, whole[length:])
    same([twin(x[length:])], [whole[length:]])


def test_a_carried_state_in_a_state_dict_is_a_tensor() -> None:
    model, x = Streaming(), sequence()
    twin = truncate(model, 3)
    twin(x[:5])
    stored = twin.state_dict()
    assert stored.keys() == model.state_dict().keys()
    file = io.BytesIO()
    torch.save(stored, file)
    assert file.tell() < 8000  # the layer is not saved with the state
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["state"], twin.state)
    model.load_state_dict(loaded)
    fresh = truncate(Streaming(), 3)
    fresh.load_state_dict(stored)
    # Windows over the border have been left behind: the state is one to start from.
    same([fresh(x[5:])], [restarted(model.core, x[5:], 3, model.state)[0]])
    # So is one that is overwritten.
    twin.load_state_dict(loaded)
    same([twin(x[5:])], [restarted(model.core, x[5:], 3, model.state)[0]])


def test_a_pickled_state_is_a_tensor() -> None:
    _, (h_n, _) = truncate(net("lstm"), 3)(sequence())
    for state in (h_n.detach(), h_n.detach() * 1.0):
        loaded = pickle.loads(pickle.dumps(state))
        assert type(loaded) is Tensor
        assert torch.equal(loaded, state)


def test_copies_of_a_state_without_its_layer_copy_the_layer() -> None:
    twin, x = truncate(net("gru"), 3), sequence()
    _, state = twin(x[:5])
    together = copy.deepcopy({"layer": twin, "state": (state, state)})
    assert together["state"][0] is together["state"][1]
    assert together["state"][0].memory.layer is together["layer"]
    same([together["layer"](x[5:], together["state"][0])[0]], [twin(x)[0][5:]])


@pytest.mark.parametrize("window", [2, 50])
def test_detached_in_place(window: int) -> None:
    """Older code for truncated backpropagation does."""
    twin = truncate(nn.LSTM(3, 4), window)
    _, state = twin(torch.randn(5, 2, 3))
    for part in state:
        part.detach_()
    output, _ = twin(torch.randn(5, 2, 3), state)
    assert not any(part.requires_grad for part in state)
    output.sum().backward()
