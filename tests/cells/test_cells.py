"""Layers against the equations of the paper, one step at a time, and against the conventions of torch's own."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM, irnn_
from tests.nets import net
from tests.truncation.brute import flat, gradients, same

CLASSES = {
    "ugrnn": UGRNN,
    "intersection": IntersectionRNN,
    "leaky": LeakyRNN,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
}
NAMES = tuple(CLASSES)
every_cell = pytest.mark.parametrize("name", NAMES)
BATCH = 2


def sequence(time: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(time, BATCH, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine(p: dict[str, Tensor], first: str, second: str, row: slice, x: Tensor, h: Tensor) -> Tensor:
    """``W x + b + W' h + b'`` for some of the rows, a sum over entries."""
    total = (p["weight_" + first][row] * x[:, None]).sum(-1) + (p["weight_" + second][row] * h[:, None]).sum(-1)
    return total + p["bias_" + first][row] + p["bias_" + second][row] if "bias_" + first in p else total


def reference_step(name: str, p: dict[str, Tensor], x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Output and next state, as written in the papers."""
    units = h.shape[1]
    if name == "leaky":
        leak = 1 / (1 + torch.exp(-p["leak"]))
        state = leak * h + (1 - leak) * torch.tanh(affine(p, "ih", "hh", slice(None), x, h))
        return state, state
    if name in ("mingru", "minlstm"):
        gates = torch.stack([(row * x).sum(-1) for row in p["weight_ih"]], 1) + p.get("bias_ih", 0)
        *gates, candidate = gates.view(len(x), -1, units).unbind(1)
        gates = [1 / (1 + torch.exp(-gate)) for gate in gates]
        enter = gates[0] if name == "mingru" else gates[1] / (gates[0] + gates[1])
        state = (1 - enter) * h + enter * torch.tanh(candidate)
        return state, state
    first, second = slice(0, units), slice(units, 2 * units)
    gate = 1 / (1 + torch.exp(-affine(p, "ih", "hh", first, x, h)))
    state = gate * h + (1 - gate) * torch.tanh(affine(p, "ih", "hh", second, x, h))
    if name == "ugrnn":
        return state, state
    gate = 1 / (1 + torch.exp(-affine(p, "iy", "hy", first, x, h)))
    passed = x if "weight_ix" not in p else x @ p["weight_ix"].T + p.get("bias_ix", 0)
    return gate * passed + (1 - gate) * affine(p, "iy", "hy", second, x, h).clamp(min=0), state


def reference(name: str, module: nn.Module, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and final states of all layers and directions."""
    last = []
    for layer in range(module.num_layers):
        sides = []
        for direction, suffix in enumerate(("", "_reverse")[: 1 + module.bidirectional]):
            end = f"_l{layer}{suffix}"
            p = {n.removesuffix(end): value for n, value in module.named_parameters() if n.endswith(end)}
            h, outputs = h0[len(last)], []
            for step in x.flip(0) if direction else x:
                y, h = reference_step(name, p, step, h)
                outputs.append(y)
            last.append(h)
            sides.append(torch.stack(outputs[::-1] if direction else outputs))
        x = torch.cat(sides, -1)
    return x, torch.stack(last)


def start(module: nn.Module) -> Tensor:
    shape = (module.num_layers * (1 + module.bidirectional), BATCH, module.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("units", [3, 5])  # with 3, inputs have the size of the state
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@every_cell
def test_values_and_gradients_are_those_of_the_equations(
    name: str, layers: int, bidirectional: bool, bias: bool, units: int
) -> None:
    module = net(name, units=units, scale=2, num_layers=layers, bidirectional=bidirectional, bias=bias)
    x, h0 = sequence().requires_grad_(), start(module).requires_grad_()
    found, expected = module(x, h0), reference(name, module, x, h0)
    same(flat(found), flat(expected), atol=1e-12)
    sources = [x, h0, *module.parameters()]
    same(gradients(flat(found), sources), gradients(flat(expected), sources), atol=1e-11)
    same(flat(module(x)), flat(reference(name, module, x, torch.zeros_like(h0))), atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@every_cell
def test_layouts(name: str, bidirectional: bool) -> None:
    module = net(name, num_layers=2, bidirectional=bidirectional)
    turned = net(name, num_layers=2, bidirectional=bidirectional, batch_first=True)
    x, h0 = sequence(), start(module)
    output, last = module(x, h0)
    same(flat(turned(x.transpose(0, 1), h0)), [output.transpose(0, 1), last])
    for layer in (module, turned):  # one sequence is time first in any case
        same(flat(layer(x[:, 1], h0[:, 1])), [output[:, 1], last[:, 1]])
        same(flat(layer(x[:, 0])), flat(module(x)[0][:, 0], module(x)[1][:, 0]))


@pytest.mark.parametrize("sorted_", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@every_cell
def test_packed_sequences_are_run_each_alone(name: str, bidirectional: bool, sorted_: bool) -> None:
    module = net(name, num_layers=2, bidirectional=bidirectional)
    lengths = [6, 4, 1] if sorted_ else [4, 6, 1]
    sequences = [sequence(length, seed=length)[:, 0].requires_grad_() for length in lengths]
    h0 = torch.cat((start(module), start(module)[:, :1]), 1).requires_grad_()
    packed, last = module(pack_sequence(sequences, enforce_sorted=sorted_), h0)
    padded, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths
    alone = [module(x, h0[:, index]) for index, x in enumerate(sequences)]
    outputs = [padded[: len(x), index] for index, x in enumerate(sequences)]
    expected = [*(output for output, _ in alone), torch.stack([state for _, state in alone], 1)]
    same([*outputs, last], expected)
    sources = [*sequences, h0, *module.parameters()]
    same(gradients([*outputs, last], sources), gradients(expected, sources))


@every_cell
def test_names_and_shapes_are_torchs(name: str) -> None:
    module = net(name, num_layers=2, bidirectional=True, dtype=torch.float32)
    theirs = nn.GRU(3, 5, num_layers=2, bidirectional=True)
    mine = {n: tuple(value.shape) for n, value in module.named_parameters()}
    rows = {"leaky": 5, "minlstm": 15}.get(name, 10)
    missing = ("weight_hh", "bias_hh") if name in ("mingru", "minlstm") else ()
    shared = {n: value for n, value in theirs.named_parameters() if not n.startswith(missing)}
    assert all(mine[n] == (rows, *value.shape[1:]) for n, value in shared.items())
    extra = {n.rsplit("_l", 1)[0] for n in mine.keys() - shared.keys()}
    output = {f"{k}_{v}" for k in ("weight", "bias") for v in ("iy", "hy", "ix")}
    assert extra == {"intersection": output, "leaky": {"leak"}}.get(name, set())
    assert [len(part) for part in module.all_weights] == [len(mine) // 4] * 4
    assert not any("bias" in n for n, _ in net(name, bias=False).named_parameters())
    assert repr(module).startswith(f"{type(module).__name__}(3, 5, num_layers=2, bidirectional=True")
    if name == "intersection":  # where sizes fit, the input itself passes
        assert "weight_ix_l0" not in dict(net(name, units=3).named_parameters())
        assert "weight_ix_l1" not in dict(net(name, num_layers=2).named_parameters())


@every_cell
def test_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    module = CLASSES[name](3, 16, num_layers=2, gate_bias=2.5)
    assert "gate_bias=2.5" in repr(module)
    opened = ("leak",) if name == "leaky" else ("bias_ih", "bias_iy")
    for parameter_name, value in module.named_parameters():
        moved = 2.5 if parameter_name.startswith(opened) else 0.0
        moved = -moved if name == "mingru" else moved  # its gate opens to what is new
        centred = torch.cat((value[:16] - moved, value[16:]))
        assert centred.abs().max() <= 0.25 + 1e-6
        assert centred.abs().max() > 0.1
    before = copy.deepcopy(module.state_dict())
    module.reset_parameters()
    assert all(not torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert CLASSES[name](3, 16).gate_bias == 1.0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@every_cell
def test_copies(name: str, duplicate: Any) -> None:
    module, x = net(name, num_layers=2, bidirectional=True), sequence()
    twin = duplicate(module)
    same(flat(twin(x)), flat(module(x)))
    other = net(name, num_layers=2, bidirectional=True, seed=1)
    twin.load_state_dict(other.state_dict())
    same(flat(twin(x)), flat(other(x)))
    assert twin.float()(x.float())[0].dtype == torch.float32
    assert not torch.equal(module(x)[0], other(x)[0])


@every_cell
def test_dropout_between_layers(name: str) -> None:
    module, x = net(name, units=40, num_layers=2, dropout=0.5), sequence(20)
    plain = net(name, units=40, num_layers=2)
    same(flat(module.eval()(x)), flat(plain(x)))
    packed = pack_sequence([x[:, 0], x[:7, 1]])
    first = net(name, units=40)
    first.load_state_dict({k: v for k, v in plain.state_dict().items() if k.endswith("_l0")})
    for given, seen in ((x, first(x)[0]), (packed, first(packed)[0].data)):
        torch.manual_seed(0)
        found = module.train()(given)[0]
        torch.manual_seed(0)
        dropped = nn.functional.dropout(seen, 0.5)
        second = net(name, inputs=40, units=40)
        second.load_state_dict({k[:-1] + "0": v for k, v in plain.state_dict().items() if k.endswith("_l1")})
        given = dropped if given is x else given._replace(data=dropped)
        same([getattr(found, "data", found)], [getattr(second(given)[0], "data", second(given)[0])])


@every_cell
def test_half_precision(name: str) -> None:
    module, x = net(name, num_layers=2, dtype=torch.float32), sequence().float()
    exact = module(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(x)[0]
    halved = copy.deepcopy(module).bfloat16()(x.bfloat16())[0]
    assert halved.dtype == torch.bfloat16
    for rounded in (mixed, halved):
        torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05)
        assert not torch.equal(rounded.float(), exact)


@every_cell
def test_exported_programs_take_batches_of_any_size(name: str) -> None:
    module = net(name, num_layers=2, bidirectional=True)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (sequence(3),), dynamic_shapes=({1: batch},), strict=False)
    x = torch.cat([sequence(3, seed) for seed in range(3)], 1)
    same(flat(program.module()(x)), flat(module(x)))


@every_cell
def test_wrong_arguments(name: str) -> None:
    module = net(name, num_layers=2)
    for x, error, message in (
        (torch.zeros(3).double(), ValueError, r"`input` must be a PackedSequence .* Got \(3,\)"),
        ([1.0], ValueError, r"`input` must be .* Got list"),
        (torch.zeros(0, 2, 3).double(), ValueError, r"`input` must have at least one time step. Got shape \(0, 2, 3\)"),
        (torch.zeros(4, 2, 7).double(), RuntimeError, "Expected 3, got 7"),
        (torch.zeros(4, 2, 3), ValueError, r"dtype|type torch.float64"),
    ):
        with pytest.raises(error, match=message):
            module(x)
    for h0, message in ((torch.zeros(2, 3, 5), r"Expected hidden size \(2, 2, 5\)"), (torch.zeros(2, 5), "`hx` must")):
        with pytest.raises(RuntimeError, match=message):
            module(sequence(), h0.double())
    for arguments in ({"dropout": 1.5}, {"num_layers": 0}, {"hidden_size": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            CLASSES[name](**{"input_size": 3, "hidden_size": 5, **arguments})


def test_irnn() -> None:
    module = irnn_(nn.RNN(3, 5, num_layers=2, nonlinearity="relu", bidirectional=True))
    for name, value in module.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.equal(value, torch.eye(5))
        else:
            assert bool(value.any()) == name.startswith("weight_ih")
    for wrong in (nn.RNN(3, 5), nn.GRU(3, 5)):
        with pytest.raises(ValueError, match=r"`module` must be nn\.RNN with nonlinearity='relu'\. Got"):
            irnn_(wrong)  # type: ignore[type-var]
