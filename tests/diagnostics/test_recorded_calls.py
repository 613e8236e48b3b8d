"""The longest call of a layer, and the steps of a cell as one sequence."""

import copy

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lightning_stable.diagnostics.recorded_calls import RecordedCalls
from lightning_stable.recurrence import recurrences_by_module

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


def recorder(model: nn.Module, **options: bool) -> RecordedCalls:
    return RecordedCalls({name: group[0] for name, group in recurrences_by_module(model).items()}, **options)


def test_the_longest_call_of_a_layer_and_all_steps_of_a_cell() -> None:
    model = nn.ModuleDict({"layer": nn.GRU(3, 4), "cell": nn.GRUCell(3, 4), "never": nn.GRU(3, 4)})
    recorded = recorder(model)
    with recorded.attached():
        for inputs in (X[:2], X, X[:1]):
            model["layer"](input=inputs)
        state = torch.ones(2, 4)
        for inputs in X:
            state = model["cell"](inputs, state)
    model["layer"](torch.zeros(9, 2, 3))  # no longer recorded
    runs = recorded.take()
    assert runs.keys() == {"layer", "cell"}
    assert torch.equal(runs["layer"].inputs, X)
    assert runs["layer"].state is None
    assert torch.equal(runs["cell"].inputs, X)
    assert torch.equal(runs["cell"].state, torch.ones(2, 4))
    assert runs["cell"].returned == (None,) * 5
    assert recorded.take() == {}


def test_calls_that_autograd_follows() -> None:
    layer = nn.GRU(3, 4)
    recorded = recorder(layer, differentiated=True)
    with recorded.attached():
        with torch.no_grad():
            layer(X)
        assert recorded.take() == {}
        layer(X[:2])
    assert torch.equal(recorded.take()[""].inputs, X[:2])


def test_results_keep_their_history_and_steps_are_cut_apart() -> None:
    cell = nn.LSTMCell(3, 4)
    recorded, state = recorder(cell, results=True), None
    with recorded.attached():
        for inputs in X[:3]:
            state = cell(inputs, state)
    (run,) = recorded.take().values()
    first, _, last = (h for h, _ in run.returned)
    gradients = torch.autograd.grad(last.sum(), [first, last], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1] is not None


def test_batches_are_joined() -> None:
    layer, cell = nn.GRU(3, 4, batch_first=True), nn.RNNCell(3, 4)
    recorded = recorder(nn.ModuleDict({"layer": layer, "cell": cell}))
    with recorded.attached():
        layer(X)
        recorded.end_batch()
        layer(pack_sequence([X[0], X[1, :1]]))
        layer(X[0])
        [cell(inputs) for inputs in X]
        recorded.end_batch()
        [cell(inputs) for inputs in X[:3]]
        recorded.end_batch()
    joined = recorded.joined()
    assert isinstance(joined["layer"], PackedSequence)
    assert joined["layer"].data.shape == (5 * 2 + 3, 3)
    assert torch.equal(joined["cell"], torch.cat((X[:3], X[:3]), 1))


def test_a_copy_of_the_model_records_nothing() -> None:
    layer = nn.GRU(3, 4)
    recorded = recorder(layer)
    with recorded.attached():
        copy.deepcopy(layer)(X)
    assert recorded.take() == {}
    assert not layer._forward_hooks


def test_empty_batches_show_nothing() -> None:
    model = nn.ModuleDict({"layer": nn.GRU(3, 4), "cell": nn.GRUCell(3, 4)})
    recorded = recorder(model)
    with recorded.attached():
        model["layer"](X[:, :0])
        model["cell"](X[0, :0])
        recorded.end_batch()
        model["layer"](X)
        model["layer"](X[:, :0])
        recorded.end_batch()
    (layer,) = recorded.batches["layer"]
    assert torch.equal(layer, X)
    assert recorded.batches.keys() == {"layer"}
