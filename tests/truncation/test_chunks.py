"""Windows go on over the borders of chunks."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable.truncation import truncate
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, stacks_of
from tests.nets import LAYERS, net
from tests.truncation.brute import each, flat, gradients, parts, restarted, run_chunks, same, sequence, start_state

T, BATCH = 9, 2


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
@settings(max_examples=25, deadline=None)
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


@pytest.mark.parametrize(("window", "chunks"), [(1, [2, 7]), (3, [4, 3, 2]), (6, [1] * T)])
@pytest.mark.parametrize("name", LAYERS)
def test_chunks_are_the_restarted_layer(name: str, window: int, chunks: list[int]) -> None:
    module = net(name, num_layers=2)
    hx = start_state(module, BATCH)
    output, last, states = run_chunks(truncate(module, window), sequence(), chunks, hx)
    same(flat(output, last), flat(restarted(module, sequence(), window, hx)))
    for end, state in zip(torch.tensor(chunks).cumsum(0).tolist(), states, strict=True):
        same(flat(state), flat(restarted(module, sequence()[:end], window, hx)[1]))


@pytest.mark.parametrize(
    ("window", "chunks", "calls"),
    [(1, [4, 5], 0), (3, [2, 3, 4], 5), (3, [7, 2], 0), (6, [2, 3, 4], 0), (6, [4, 5], 5), (20, [7, 2], 5)],
)
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


@pytest.mark.parametrize(("first", "window"), [(5, 1), (2, 3), (5, 3), (2, 20)])
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


@given(
    name=st.sampled_from(["rnn", "lstm", "proj", "gru", "intersection"]),
    layers=st.integers(1, 2),
    calls=st.lists(st.lists(st.integers(1, 5), min_size=3, max_size=3) | st.integers(1, 5), min_size=2, max_size=4),
    window=st.sampled_from([1, 2, 3, 4, 6, 20]),
    training=st.booleans(),
    detach=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_chunks_of_any_lengths_are_one_sequence_each(
    name: str, layers: int, calls: list[Any], window: int, training: bool, detach: bool
) -> None:
    """Every call takes one length for all, or a PackedSequence with one for each."""
    module = net(name, units=4, num_layers=layers)
    twin, x, ends = truncate(module, window).train(training), sequence(20, 3), [0, 0, 0]
    start = hx = None if name == "intersection" else start_state(module, 3)
    for call in calls:
        lengths = call if isinstance(call, list) else [call] * 3
        chunk = x.new_zeros(max(lengths), 3, x.shape[-1])
        for lane, length in enumerate(lengths):
            chunk[:length, lane] = x[ends[lane] : ends[lane] + length, lane]
        packed = pack_padded_sequence(chunk, torch.tensor(lengths), enforce_sorted=False)
        output, hx = twin(packed if isinstance(call, list) else chunk, each(hx, Tensor.detach) if detach else hx)
        output = pad_packed_sequence(output)[0] if isinstance(call, list) else output
        for lane, length in enumerate(lengths):
            alone = each(start, lambda part, lane=lane: part[:, lane : lane + 1])
            before, ends[lane] = ends[lane], ends[lane] + length
            expected, end = restarted(module, x[: ends[lane], lane : lane + 1], window, alone)
            same([output[:length, lane]], [expected[before:, 0]])
            same([part[:, lane] for part in flat(hx)], [part[:, 0] for part in flat(end)])


@pytest.mark.parametrize("window", [2, 4, 20])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_an_encoder_of_any_lengths_hands_its_state_to_a_decoder(name: str, window: int) -> None:
    """Sequences without an input start with the decoder; the others are chosen twice, and learn over the border."""
    module = net(name, num_layers=2)
    twin, x, lengths = truncate(module, window), sequence(9, 3).requires_grad_(), [4, 0, 2]
    packed = pack_padded_sequence(x[:4], torch.tensor(lengths).clamp(min=1), enforce_sorted=False)
    _, state = twin(packed)
    empty = torch.tensor(lengths)[:, None] == 0
    state = each(state, lambda part: part.masked_scatter(empty, torch.zeros(1)[0].double().expand(part.shape)))
    found, _ = twin(x[4:].repeat_interleave(2, 1), each(state, lambda part: part.repeat_interleave(2, 1)))
    expected = [
        restarted(module, torch.cat((x[:length, lane], x[4:, lane]))[:, None], window)[0][length:, 0]
        for lane, length in enumerate(lengths)
    ]
    same([found[:, 0::2]], [torch.stack(expected, 1)])
    same([found[:, 1::2]], [torch.stack(expected, 1)])
    sources, theirs = [x, *twin.parameters()], [x, *module.parameters()]
    same(gradients([found[:, 0::2]], sources), gradients([torch.stack(expected, 1)], theirs))


@pytest.mark.parametrize("window", [3, 20])
def test_dropout_of_a_packed_chunk_is_drawn_once(window: int) -> None:
    """The windows that go on over the border have the masks that the outputs had."""
    twin, x = truncate(net("gru", num_layers=2, dropout=0.5), window).train(), sequence(6, 1)

    def run(packed: bool) -> list[Tensor]:
        torch.manual_seed(0)
        chunk = pack_padded_sequence(x[:4], torch.tensor([4])) if packed else x[:4]
        output, state = twin(chunk)
        return [pad_packed_sequence(output)[0] if packed else output, twin(x[4:], state)[0]]

    same(run(packed=True), run(packed=False))


@pytest.mark.parametrize(("window", "detach"), [(1, True), (2, False), (4, True), (7, False), (7, True)])
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


@pytest.mark.parametrize("chunks", [[5, 4], [3, 6], [2, 1, 6]])
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
