"""States that carry unfinished windows: what the windows follow, what is refused, and what is a start."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_stable.truncation import truncate
from lightning_stable.truncation.carried_state import CarriedState
from tests.nets import net
from tests.truncation.brute import each, flat, restarted, run_chunks, same, sequence, start_state

T, BATCH = 9, 2


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
    own_starts = (torch.zeros_like(h_n), h_n.new_zeros(1, BATCH, 5), h_n.as_subclass(Tensor))
    for computed in (h_n.mean(), h_n.argmax(-1), h_n @ plain.mT, linear(h_n[-1]), linear(h_n), *own_starts):
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


@pytest.mark.parametrize("chunks", [[2, 7], [4, 2, 3]])
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


REFUSED: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "add": ("`add`", lambda state: state + 1.0),
    "add in front": ("`add`", lambda state: 1.0 + state),
    "tanh": ("`tanh`", torch.tanh),
    "linear": ("`linear`", lambda state: nn.functional.linear(state, torch.eye(5).double())),
    "clamp": ("`clamp`", lambda state: state.clamp(-1, 1)),
    "flip": ("`flip`", lambda state: state.flip(1)),
    "cat": ("`cat`", lambda state: torch.cat((state, state), 1)),
    "parts put together": ("`__getitem__`", lambda state: torch.stack([state[0]])),
    "unbound": ("`unbind`", lambda state: torch.stack(state.unbind(0))),
    "iterated": ("`unbind`", lambda state: torch.stack(list(state))),
    "repeated": ("`repeat`", lambda state: state.repeat(1, 2, 1)),
    "layers repeated": ("`repeat_interleave`", lambda state: state.repeat_interleave(2, 0)),
    "a layer": ("`__getitem__`", lambda state: state[[0]]),
    "turned and back": ("`transpose`", lambda state: state.transpose(0, 1).contiguous().transpose(0, 1)),
    "a property": ("`mT`", lambda state: state.mT.mT),
    "flattened and back": ("`view`", lambda state: state.view(-1).view(state.shape)),
    "in place": ("`add_`", lambda state: in_place(state, lambda part: part.__iadd__(1))),
    "mul_": ("`mul_`", lambda state: in_place(state, lambda part: part.mul_(2))),
    "setitem": ("`__setitem__`", lambda state: in_place(state, lambda part: part.__setitem__((0, 0), 0.0))),
    "copy_": ("`copy_`", lambda state: in_place(state, lambda part: part.copy_(state.clone()))),
    "copied into a buffer": ("`copy_`", lambda state: torch.zeros_like(state).copy_(state)),
    "a view set": ("through a view", lambda state: in_place(state, lambda part: part.transpose(0, 1)[0].zero_())),
    "data set": ("through a view", lambda state: in_place(state, lambda part: part.data[0, 0].fill_(1.0))),
    "edited, then copied": ("`add`", lambda state: (state + 1.0).detach().clone()),
    "edited twice": ("`add`", lambda state: (state + 1.0) * torch.ones(1)),
    "two states": ("`where`", lambda state: torch.where(torch.ones(1, BATCH, 1).bool(), state, state.clone())),
}


@pytest.mark.parametrize("change", REFUSED)
def test_other_states_are_refused(change: str) -> None:
    named, edit = REFUSED[change]
    for name, length in (("gru", 2), ("lstm", 5)):
        twin, x = truncate(net(name), 3), sequence()
        _, state = twin(x[:length])
        with pytest.raises(ValueError, match=rf"Carry the state of .* as it was returned.*Got .*{named}.*Start from"):
            twin(x[length:], each(state, edit))
    # One part is enough.
    _, (h_n, c_n) = twin(x[:5])
    with pytest.raises(ValueError, match="state of a windowed LSTM as it was returned"):
        twin(x[5:], (h_n, edit(c_n)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_states_are_refused_without_gradients_too(mode: Any) -> None:
    twin, x = truncate(net("gru"), 3), sequence()
    with mode():
        _, state = twin(x[:5])
        for edited in (
            state + 1.0,
            state.transpose(0, 1).transpose(0, 1),
            in_place(state.clone(), lambda s: s.add_(1)),
        ):
            with pytest.raises(ValueError, match="Carry the state"):
                twin(x[5:], edited)
        same([twin(x[5:], state)[0]], [twin(x)[0][5:]])


# Edits that the windows follow ----------------------------------------------------------------------------------------
EDITS = pytest.mark.parametrize(
    ("window", "chunks"), [(1, [5, 4]), (3, [2, 7]), (3, [3, 2, 4]), (4, [5, 4]), (20, [3, 2, 4])]
)
ROWS = torch.tensor([1, 0, 1])
CHOSEN: dict[str, Callable[[Tensor], Tensor]] = {
    "indices": lambda state: state[:, ROWS],
    "list": lambda state: state[:, [1, 0, 1]],
    "index_select": lambda state: state.index_select(1, ROWS),
    "index_select from the end": lambda state: torch.index_select(state, -2, ROWS),
    "repeated": lambda state: state.repeat_interleave(2, 1)[:, [2, 0, 3]],
    "repeated, by name": lambda state: torch.repeat_interleave(state, repeats=2, dim=-2)[:, [2, 0, 3]],
    "in two steps": lambda state: state[:, [1, 0]].detach()[:, torch.tensor([0, 1, 0])],
}


@EDITS
@pytest.mark.parametrize("change", CHOSEN)
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
    "masked_scatter": lambda state: state.masked_scatter(DONE, torch.zeros_like(state)),
    "by name": lambda state: torch.mul(input=state, other=~DONE),
}


@EDITS
@pytest.mark.parametrize("change", RESET)
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
@pytest.mark.parametrize(("window", "border"), [(1, 5), (3, 2), (4, 5), (20, 2)])
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


@pytest.mark.parametrize("by", ["where", "masked_scatter"])
def test_a_given_start_of_single_sequences(by: str) -> None:
    """Reset to a state of the user's own, not to zero."""
    module, x = net("gru"), sequence()
    twin, start = truncate(module, 3), start_state(module, BATCH)
    _, hx = twin(x[:5])
    hx = torch.where(DONE, start, hx) if by == "where" else hx.masked_scatter(DONE, start[:, :1])
    found, _ = twin(x[5:], hx)
    same([found[:2, 0]], [twin(x[5:], start)[0][:2, 0]])
    same([found[2:, 0]], [twin(x[5:])[0][2:, 0]])  # no longer reaching over the border
    same([found[:, 1]], [twin(x)[0][5:, 1]])


OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "zero_": lambda state: in_place(state, Tensor.zero_),
    "fill_": lambda state: in_place(state, lambda part: part.fill_(0.25)),
    "copy_": lambda state: in_place(state, lambda part: part.copy_(torch.full_like(part, -0.5))),
    "computed": lambda state: torch.tanh(state.as_subclass(Tensor)).detach(),
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


def test_parts_of_different_states_are_refused() -> None:
    twin, x = truncate(net("lstm"), 3), sequence()
    _, (h_1, c_1) = twin(x[:5])
    _, (h_2, c_2) = twin(x[:4])
    _, (h_3, c_3) = twin(x[4:])  # as long as the first one
    for state in ((h_1, c_2), (h_2, c_1), (h_1, c_3), (h_3, c_1), (h_1.detach(), torch.zeros_like(c_1[0])[None])):
        with pytest.raises(ValueError, match="only a part of it, or parts of different states"):
            twin(x, state)
    twin(x, (h_1.detach(), c_1.clone()))


def test_an_edited_state_goes_on_in_a_packed_sequence_once() -> None:
    twin, x = truncate(net("gru"), 20), sequence()
    _, state = twin(x[:2])
    packed = pack_padded_sequence(x[2:], torch.tensor([4, 3]))
    _, state = twin(packed, state * 0.5)
    with pytest.raises(ValueError, match="Got a state of a PackedSequence that went on from an edited state"):
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
