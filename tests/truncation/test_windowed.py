"""Windowed layers and cells are torch's own, restarted for every output."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_stable import certify, project_
from lightning_stable.recurrence import Recurrence, register_recurrence_factory
from lightning_stable.recurrence.base import State as Parts
from lightning_stable.truncation import Windowed, truncate
from lightning_stable.truncation.exact import evaluate, fused
from tests.nets import CELLS, LAYERS, net
from tests.recurrence.test_registry import LeakyCell, LeakyRecurrence
from tests.truncation.brute import each, flat, gradients, own, restarted, restarted_cell, same, start_state

T, BATCH = 7, 2
# Layers, both directions, window: every pair of two of them but a few, which any lengths and windows are drawn from.
STACKS = [
    *((1, False, 1), (1, False, T + 3), (2, False, 2), (2, False, T - 1), (3, False, 5), (3, False, T)),
    *((1, True, 2), (1, True, T), (2, True, 1), (2, True, 5), (3, True, T - 1), (3, True, T + 3)),
]


def sequence(time: int = T, batch: int = BATCH, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(time, batch, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(module: nn.Module, twin: nn.Module, x: Tensor, window: int, hx: Any) -> None:
    """Outputs, final states and all gradients are those of the restarted module."""
    for tensor in (x, *flat(hx)):
        tensor.requires_grad_()
    found, expected = flat(own(twin, x, hx)), flat(restarted(module, x, window, hx))
    same(found, expected)
    sources = [x, *flat(hx)]
    same(
        gradients(found, [*sources, *twin.parameters()]),
        gradients(expected, [*sources, *module.parameters()]),
    )


# Layers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("layers", "bidirectional", "window"), STACKS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_those_of_the_restarted_layer(name: str, layers: int, bidirectional: bool, window: int) -> None:
    module = net(name, units=4, num_layers=layers, bidirectional=bidirectional)
    check(module, truncate(module, window), sequence(), window, start_state(module, BATCH))


@pytest.mark.parametrize(
    ("options", "recompute"),
    [
        ({"batch_first": True}, True),
        ({"bidirectional": True, "batch_first": True}, False),
        ({"num_layers": 2}, True),
        ({"num_layers": 2}, False),
        ({"num_layers": 2, "bidirectional": True, "batch_first": True}, True),
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_every_option(name: str, options: dict[str, Any], recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several blocks of rows, both in the fused function and without it.
    monkeypatch.setattr(fused, "_CPU_BLOCK", 2 * BATCH)
    monkeypatch.setattr(evaluate, "_BLOCK", 2)
    module = net(name, units=4, bias=False, **options)
    twin = truncate(module, 3, recompute=recompute)
    check(module, twin, sequence(), 3, None)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["proj", "gru"])
def test_unbatched_input(name: str, bidirectional: bool, batch_first: bool) -> None:
    window = 2
    module = net(name, units=4, num_layers=2, bidirectional=bidirectional, batch_first=batch_first)
    twin, x = truncate(module, window), sequence(batch=1)
    hx = start_state(module, 1)
    for given_state in (None, hx):
        output, state = twin(x[:, 0], each(given_state, lambda part: part[:, 0]))
        expected, last = restarted(module, x, window, given_state)
        same(flat(output, state), flat(expected[:, 0], each(last, lambda part: part[:, 0])))


@given(
    name=st.sampled_from(sorted(LAYERS)),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    time=st.integers(1, 9),
    window=st.integers(1, 11),
    recompute=st.sampled_from([None, True, False]),
)
@settings(max_examples=30, deadline=None)
def test_any_length_and_any_window(
    name: str, layers: int, bidirectional: bool, time: int, window: int, recompute: bool | None
) -> None:
    module = net(name, units=4, num_layers=layers, bidirectional=bidirectional)
    check(module, truncate(module, window, recompute=recompute), sequence(time), window, start_state(module, BATCH))


# Packed sequences -----------------------------------------------------------------------------------------------------
def packed_check(module: nn.Module, window: int, lengths: list[int], *, enforce_sorted: bool, started: bool) -> None:
    x = sequence(max(lengths), len(lengths)).requires_grad_()
    hx = start_state(module, len(lengths)) if started else None
    twin = truncate(module, window)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
    output, state = twin(packed, hx)
    theirs, _ = module(packed, hx)
    assert isinstance(output, PackedSequence)
    for mine, own_one in zip(output[1:], theirs[1:], strict=True):
        assert (mine is None and own_one is None) or torch.equal(mine, own_one)
    padded, found_lengths = pad_packed_sequence(output)
    assert found_lengths.tolist() == lengths
    found, expected = [], []
    for lane, length in enumerate(lengths):
        alone = each(hx, lambda part, lane=lane: part[:, lane : lane + 1])
        found += flat(padded[:length, lane], each(state, lambda part, lane=lane: part[:, lane]))
        run, last = restarted(module, x[:length, lane : lane + 1], window, alone)
        expected += flat(run[:, 0], each(last, lambda part: part[:, 0]))
    same(found, expected)
    same(gradients(found, [x, *twin.parameters()]), gradients(expected, [x, *module.parameters()]))


@pytest.mark.parametrize("lengths", [[6, 4, 1], [2, 6, 3]])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["proj", "gru", "intersection"])
def test_packed_sequences_are_run_alone(name: str, layers: int, bidirectional: bool, lengths: list[int]) -> None:
    module = net(name, units=4, num_layers=layers, bidirectional=bidirectional)
    sorted_before = lengths[0] == 6
    packed_check(module, 3, lengths, enforce_sorted=sorted_before, started=not sorted_before)


@given(
    name=st.sampled_from(["rnn", "lstm", "gru"]),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    window=st.integers(1, 7),
)
@settings(max_examples=15, deadline=None)
def test_any_lengths_of_packed_sequences(
    name: str, layers: int, bidirectional: bool, lengths: list[int], window: int
) -> None:
    module = net(name, units=4, num_layers=layers, bidirectional=bidirectional)
    packed_check(module, window, lengths, enforce_sorted=False, started=True)


def test_packed_sequences_ignore_batch_first() -> None:
    module = net("gru", units=4, batch_first=True)
    x = sequence()
    packed = pack_padded_sequence(x.transpose(0, 1), torch.tensor([T, 4]), batch_first=True)
    output, _ = truncate(module, 2)(packed)
    padded, _ = pad_packed_sequence(output)
    same([padded[:, 0]], [restarted(module, x[:, :1], 2)[0][:, 0]])


# What an output depends on --------------------------------------------------------------------------------------------
@given(
    name=st.sampled_from(sorted(LAYERS)),
    layers=st.integers(1, 3),
    window=st.integers(1, 6),
    t=st.integers(0, T - 1),
    changed=st.integers(0, T - 1),
    recompute=st.sampled_from([True, False]),
)
@settings(max_examples=40, deadline=None)
def test_an_output_depends_on_its_window_alone(
    name: str, layers: int, window: int, t: int, changed: int, recompute: bool
) -> None:
    twin = truncate(net(name, num_layers=layers, dtype=torch.float32), window, recompute=recompute)
    x = sequence(dtype=torch.float32)
    other = x.clone()
    other[changed] += 1
    before, after = twin(x)[0][t], twin(other)[0][t]
    inside = t - window < changed <= t
    # Entries of relu may be zero in both.
    assert torch.equal(before, after) or inside
    if inside and name != "relu":
        assert not torch.equal(before, after)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["lstm", "gru", "intersection"])
def test_a_bidirectional_output_depends_on_its_window_alone(name: str, layers: int) -> None:
    window, t, time = 2, 4, 9
    twin = truncate(net(name, num_layers=layers, bidirectional=True, dtype=torch.float32), window)
    x = sequence(time, dtype=torch.float32)
    before = twin(x)[0][t]
    for changed in range(time):
        other = x.clone()
        other[changed] += 1
        assert torch.equal(before, twin(other)[0][t]) == (abs(changed - t) >= window)


@pytest.mark.parametrize("name", LAYERS)
def test_a_window_over_everything_is_the_layer(name: str) -> None:
    module = net(name, num_layers=2, bidirectional=True, dtype=torch.float32)
    x = sequence(dtype=torch.float32)
    expected = flat(module(x))
    for window in (T, 10**9):
        assert all(map(torch.equal, flat(truncate(module, window)(x)), expected))


# Dropout --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_masks_are_the_layers_own(name: str, options: dict[str, Any]) -> None:
    module = net(name, num_layers=3, dropout=0.5, **options)
    x, window = sequence(), 3
    torch.manual_seed(5)
    expected, _ = own(module, x)
    after = torch.get_rng_state()
    # As long as a window meets the beginning it is the layer's own run; backward the end of the sequence is met later.
    exact = slice(0, window)
    for k in (window, T):
        torch.manual_seed(5)
        output, _ = own(truncate(module, k), x)
        assert torch.equal(torch.get_rng_state(), after)
        if k == T:
            assert torch.equal(output, expected)
        elif not options.get("bidirectional"):
            same([output[exact]], [expected[exact]], 1e-6)
            assert (output[window:] - expected[window:]).abs().amax((1, 2)).min() > 1e-6


class Drop(nn.Module):
    """A recurrent module of torch's own single layers with given masks between them: what dropout does."""

    batch_first = False

    def __init__(self, module: nn.Module, masks: list[Tensor]) -> None:
        super().__init__()
        self.bidirectional, self.num_layers, self.masks = module.bidirectional, module.num_layers, masks
        self.layers = nn.ModuleList()
        for depth in range(module.num_layers):
            size = module.input_size if depth == 0 else module.hidden_size * (1 + module.bidirectional)
            layer = type(module)(size, module.hidden_size, bidirectional=module.bidirectional).double()
            for name, value in layer.named_parameters():
                value.data = getattr(module, name.replace("_l0", f"_l{depth}")).data
            self.layers.append(layer)

    def forward(self, given_inputs: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        # The position comes with the inputs, in the last feature.
        x, positions = given_inputs[..., :-1], given_inputs[:, 0, -1].long()
        for layer, mask in zip(self.layers, [*self.masks, None], strict=True):
            x, _ = layer(x)
            x = x if mask is None else x * mask[positions]
        return x, x.new_zeros(len(self.layers) * (1 + self.bidirectional), 1, 1)


@pytest.mark.parametrize(("window", "recompute"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_dropout_masks_belong_to_positions(name: str, bidirectional: bool, recompute: bool, window: int) -> None:
    module = net(name, units=4, num_layers=3, dropout=0.5, bidirectional=bidirectional)
    torch.manual_seed(3)
    size = 4 * (1 + bidirectional)
    masks = [nn.functional.dropout(torch.ones(T, BATCH, size, dtype=torch.float64), 0.5) for _ in range(2)]
    x = sequence().requires_grad_()
    positions = torch.arange(T, dtype=torch.float64)[:, None, None].expand(T, BATCH, 1)
    expected, _ = restarted(Drop(module, masks), torch.cat((x, positions), -1), window)
    torch.manual_seed(3)
    found, _ = truncate(module, window, recompute=recompute)(x)
    same([found], [expected])
    same(gradients([found], [x]), gradients([expected], [x]))


def test_dropout_masks_of_packed_sequences_are_the_layers_own() -> None:
    module = net("lstm", num_layers=2, dropout=0.5)
    packed = pack_padded_sequence(sequence(batch=3), torch.tensor([3, T, 2]), enforce_sorted=False)
    torch.manual_seed(5)
    expected = pad_packed_sequence(module(packed)[0])[0]
    after = torch.get_rng_state()
    torch.manual_seed(5)
    found = pad_packed_sequence(truncate(module, 4)(packed)[0])[0]
    same([found[:4]], [expected[:4]], 1e-6)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_there_is_no_dropout_in_evaluation(bidirectional: bool) -> None:
    module = net("gru", num_layers=2, dropout=0.5, bidirectional=bidirectional).eval()
    before, x = torch.get_rng_state(), sequence()
    same(flat(truncate(module, 3)(x)), flat(restarted(module, x, 3)))
    assert torch.equal(torch.get_rng_state(), before)


# Cells ----------------------------------------------------------------------------------------------------------------
def loop(cell: nn.Module, x: Tensor, hx: Any = None) -> list[Any]:
    states = []
    for values in x:
        hx = cell(values, hx)
        states.append(hx)
    return states


def cell_start(name: str, units: int = 5, batch: int = BATCH) -> Any:
    torch.manual_seed(1)
    parts = tuple(torch.randn(batch, units, dtype=torch.float64) for _ in range(2))
    return parts if name == "lstm_cell" else parts[0]


@pytest.mark.parametrize(("window", "started"), [(1, False), (2, True), (T - 1, False), (10**9, True)])
@pytest.mark.parametrize("name", CELLS)
def test_cells_in_a_loop_are_restarted(name: str, window: int, started: bool) -> None:
    cell = net(name, bias=started)
    twin, hx, x = truncate(cell, window), cell_start(name) if started else None, sequence().requires_grad_()
    for part in flat(hx):
        part.requires_grad_()
    found, expected = flat(loop(twin, x, hx)), flat(restarted_cell(cell, x, window, hx))
    same(found, expected)
    sources = [x, *flat(hx)]
    same(gradients(found, [*sources, *twin.parameters()]), gradients(expected, [*sources, *cell.parameters()]))


@pytest.mark.parametrize("name", CELLS)
def test_unbatched_cells(name: str) -> None:
    cell, x = net(name), sequence()
    hx = cell_start(name)
    found = loop(truncate(cell, 3), x[:, 0], each(hx, lambda part: part[0]))
    expected = restarted_cell(cell, x[:, :1], 3, each(hx, lambda part: part[:1]))
    same(flat(found), [part[0] for part in flat(expected)])


@pytest.mark.parametrize("name", CELLS)
def test_states_of_cells_belong_together_and_detach(name: str) -> None:
    cell, x = net(name), sequence()
    twin, hx = truncate(cell, 3), None
    for t, values in enumerate(x):
        hx = each(twin(values, hx), torch.Tensor.detach)
        same(flat(hx), flat(restarted_cell(cell, x, 3)[t]))
    with pytest.raises(ValueError, match=r"Got `add`\."):
        twin(x[0], each(hx, lambda part: part + 0))
    # Sequences reset and chosen.
    reset = each(hx, lambda part: part * torch.tensor([[0.0], [1.0]]))
    fresh, on = flat(twin(x[0])), flat(twin(x[0], hx))
    same(flat(twin(x[0], reset)), [torch.stack((a[0], b[1])) for a, b in zip(fresh, on, strict=True)])
    same(flat(twin(x[0, [1]], each(hx, lambda part: part[[1]]))), [part[1:] for part in on])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("shape", [(BATCH, 7), (BATCH + 1, 3), (3,)])
def test_a_step_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    twin, hx = truncate(net(name), 2), None
    for values in sequence():
        hx = twin(values, hx)
    with pytest.raises(ValueError, match=r"`input` must have shape \(2, 3\), as the state it continues. Got"):
        twin(torch.zeros(shape, dtype=torch.float64), hx)


def test_own_cells_are_restarted() -> None:
    torch.manual_seed(0)
    cell = LeakyCell(3, 4).double()
    twin, x = truncate(cell, 3), sequence().requires_grad_()
    hx = torch.randn(BATCH, 4, dtype=torch.float64, requires_grad=True)
    found = flat(loop(twin, x, hx))
    states = []
    for t in range(T):
        state = hx if t < 3 else torch.zeros_like(hx)
        for values in x[max(0, t - 2) : t + 1]:
            state = cell(values, state)
        states.append(state)
    same(found, states)
    same(gradients(found, [x, hx, *twin.parameters()]), gradients(states, [x, hx, *cell.parameters()]))


class OwnLayer(nn.Module):
    """Layers that take a whole sequence and are none of torch's."""

    batch_first, bidirectional = False, False

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.num_layers = layers
        self.cells = nn.ModuleList(LeakyCell(3 if depth == 0 else 4, 4) for depth in range(layers))

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = []
        for depth, cell in enumerate(self.cells):
            state, outputs = x.new_zeros(x.shape[1], 4) if hx is None else hx[depth], []
            for values in x:
                state = cell(values, state)
                outputs.append(state)
            x = torch.stack(outputs)
            states.append(state)
        return x, torch.stack(states)


class OwnRecurrence(LeakyRecurrence):
    takes_sequences = True

    def __init__(self, module: nn.Module, *, layer: int, **kwargs: Any) -> None:
        super().__init__(module, layer=layer, **kwargs)
        self.cell_module = module.cells[layer]

    def parameters(self) -> dict[str, nn.Parameter]:
        return {role: getattr(self.cell_module, role) for role in self.roles}

    def step(self, inputs: Tensor, state: Parts) -> Parts:
        return (self.cell_module(inputs, state[0]),)


def own_factory(module: nn.Module, name: str) -> list[Recurrence]:
    return [OwnRecurrence(module, name=f"{name}.{i}", layer=i) for i in range(module.num_layers)]


register_recurrence_factory(OwnLayer, own_factory)


@pytest.mark.parametrize(
    ("window", "layers", "recompute"), [(1, 2, True), (3, 1, True), (3, 2, False), (3, 2, None), (T + 1, 1, False)]
)
def test_own_layers_are_restarted(window: int, layers: int, recompute: bool | None) -> None:
    torch.manual_seed(0)
    module = OwnLayer(layers).double()
    hx = torch.randn(layers, BATCH, 4, dtype=torch.float64)
    twin = truncate(module, window, recompute=recompute)
    check(module, twin, sequence(), window, hx)
    first, state = twin(sequence()[:4])
    second, _ = twin(sequence()[4:], state)
    same([torch.cat((first, second))], [twin(sequence())[0]])


# Precision and modes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "bidirectional"), [("relu", False), ("lstm", True), ("proj", False), ("gru", False)])
def test_float32_is_close_to_float64(name: str, bidirectional: bool) -> None:
    module = net(name, num_layers=2, bidirectional=bidirectional)
    x = sequence().requires_grad_()
    single = copy.deepcopy(module).float()
    x32 = x.detach().float().requires_grad_()
    exact, rounded = truncate(module, 3), truncate(single, 3)
    found, expected = flat(rounded(x32)), flat(exact(x))
    assert {value.dtype for value in found} == {torch.float32}
    same([value.double() for value in found], expected, 2e-6)
    grads = gradients(found, [x32, *rounded.parameters()])
    same([grad.double() for grad in grads], gradients(expected, [x, *exact.parameters()]), 2e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["rnn", "lstm", "proj", "gru", "ugrnn", "intersection"])
def test_half_precision_runs(name: str, bidirectional: bool, autocast: bool) -> None:
    module = net(name, num_layers=2, bidirectional=bidirectional, dtype=torch.float32)
    x = sequence(dtype=torch.float32)
    with torch.no_grad():
        exact, _ = truncate(module, 3)(x)
    twin = truncate(module if autocast else copy.deepcopy(module).bfloat16(), 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, state = twin(x if autocast else x.bfloat16())
        if not bidirectional:
            again, _ = twin(x if autocast else x.bfloat16(), each(state, torch.Tensor.detach))
            output = torch.cat((output, again))
    torch.testing.assert_close(output[:T].float(), exact, rtol=0, atol=0.05)
    output.float().square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in twin.parameters())
    assert {value.grad.dtype for value in twin.parameters()} == {torch.float32 if autocast else torch.bfloat16}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["proj", "gru"])
def test_without_gradients(name: str, bidirectional: bool, mode: Any) -> None:
    module = net(name, num_layers=2, bidirectional=bidirectional)
    twin, x = truncate(module, 3), sequence()
    with mode():
        output, state = twin(x)
        if not bidirectional:
            twin(x, state)
    assert not output.requires_grad
    same([output.clone()], [restarted(module, x, 3)[0].detach()])


def test_parameters_without_gradients() -> None:
    module = net("lstm", num_layers=2)
    module.weight_hh_l0.requires_grad_(False)
    twin, x = truncate(module, 3), sequence()
    found, expected = flat(twin(x)), flat(restarted(module, x, 3))
    wanted = [value for value in twin.parameters() if value.requires_grad]
    theirs = [value for value in module.parameters() if value.requires_grad]
    assert len(wanted) == 7
    same(gradients(found, wanted), gradients(expected, theirs))


# Calls that cannot be answered ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [2, T])
@pytest.mark.parametrize(
    ("x", "hx"),
    [
        (torch.zeros(T, BATCH, 4), None),
        (torch.zeros(T, BATCH, 3, 1), None),
        (torch.zeros(3), None),
        (torch.zeros(T, BATCH, 3), torch.zeros(1, BATCH + 1, 5)),
        (torch.zeros(T, BATCH, 3), torch.zeros(1, BATCH, 6)),
        (torch.zeros(T, BATCH, 3), torch.zeros(2, BATCH, 5)),
    ],
)
def test_wrong_shapes_are_refused(x: Tensor, hx: Tensor | None, window: int) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"[Ii]nput|[Hh]idden|hx"):
        truncate(nn.GRU(3, 5), window)(x, hx)


def test_the_dimensions_of_the_input_are_named() -> None:
    with pytest.raises(ValueError, match=r"`input` must be .* 2 or 3 dimensions\. Got \(3,\)"):
        truncate(nn.GRU(3, 5), 2)(torch.zeros(3))
    with pytest.raises(TypeError, match=r"2 or 3 dimensions\. Got list"):
        truncate(nn.GRU(3, 5), 2)([1.0])
    with pytest.raises(ValueError, match=r"must have 3 features\. Got 4"):
        truncate(nn.GRU(3, 5), 2)(torch.zeros(T, BATCH, 4))


def test_lists_are_states_as_for_torch() -> None:
    module, x = net("lstm"), sequence()
    hx = start_state(module, BATCH)
    twin = truncate(module, 3)
    same(flat(twin(x, list(hx))), flat(restarted(module, x, 3, hx)))
    _, state = twin(x)
    same(flat(twin(x, list(state))), flat(twin(x, state)))


# What a windowed module is --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_a_windowed_module_is_a_module_of_its_class(name: str) -> None:
    module = net(name)
    twin = truncate(module, 3)
    assert isinstance(twin, type(module))
    assert isinstance(twin, Windowed)
    assert type(twin) is type(truncate(module, 5))
    assert type(twin) is not type(module)
    assert repr(twin) == repr(module).replace(type(module).__name__, type(twin).__name__)[:-1] + ", window=3)"
    assert type(twin).__name__ == f"Windowed{type(module).__name__}"


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_windowed_modules_are_copied_and_pickled(name: str) -> None:
    twin = truncate(net(name), 3, recompute=True)
    x = sequence() if name in LAYERS else sequence()[0]
    expected = flat(twin(x))
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert type(other) is type(twin)
        assert (other.window, other.recompute) == (3, True)
        assert all(map(torch.equal, flat(other(x)), expected))
        assert not {id(value) for value in other.parameters()} & {id(value) for value in twin.parameters()}


def test_the_stored_form_ends_with_its_context() -> None:
    module = net("rnn")
    twin, x = truncate(module, 2), sequence()
    with twin.as_stored():
        assert torch.equal(twin(x)[0], module(x)[0])
    assert not torch.equal(twin(x)[0], module(x)[0])
    with pytest.raises((ValueError, RuntimeError)):
        twin(x[..., :2])
    same([twin(x)[0]], [restarted(module, x, 2)[0]])


def test_windowed_modules_are_certified_as_what_they_are() -> None:
    module = net("lstm", scale=2)
    twin = truncate(module, 3)
    assert certify(twin, input_bound=1.0).to_dict() == certify(module, input_bound=1.0).to_dict()
    project_(module, 0.9, input_bound=1.0)
    report = project_(twin, 0.9, input_bound=1.0)
    assert report.rate <= 0.9
    assert all(map(torch.equal, twin.parameters(), module.parameters()))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_that_a_mask_left_empty(name: str, layers: int, bidirectional: bool, batch_first: bool) -> None:
    module = net(name, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    twin, shape = truncate(module, 3), (0, 7, 3) if batch_first else (7, 0, 3)
    for options in ({}, {"recompute": True}):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        twin = truncate(module, 3, **options)
        output, state = twin(x)
        expected, last = module(x)
        assert output.shape == expected.shape
        for mine, theirs in zip(flat(state), flat(last), strict=True):
            assert mine.shape == theirs.shape
        output.sum().backward()
        assert x.grad is not None
        assert not any(parameter.grad.any() for parameter in twin.parameters() if parameter.grad is not None)
        if not bidirectional:
            assert twin(x, state)[0].shape == expected.shape
