"""Subclasses that wrap a layer's ``forward``: the windows stand between the wrapper and the layer."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import project_, register_recurrence, truncate
from lightning_stable.callbacks import FeedForwardShadowCallback
from lightning_stable.diagnostics import measure_state_gradients, truncation_profile
from lightning_stable.export import BatchForm, StreamingForm, export
from lightning_stable.recurrence import registry
from lightning_stable.recurrence.forms import original_class
from lightning_stable.truncation import Windowed, truncate_at_least, window_
from tests.callbacks.shadows import Noisy
from tests.export.test_forms import streamed
from tests.helpers import FEATURES, UNITS, sequences, trainer
from tests.recurrence.wrappers import (
    CountedCell,
    GRUWithLengths,
    LSTMWithLengths,
    NeedsLengths,
    NormedOutputs,
    UGRNNWithLengths,
)
from tests.truncation.brute import each, flat, gradients, restarted, restarted_cell, run_chunks, same, sequence

WRAPPERS = [LSTMWithLengths, GRUWithLengths, UGRNNWithLengths]


def make(kind: type[nn.Module], **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return kind(3, 5, **options).double()


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_LIKE", dict(registry._LIKE))
    return register_recurrence


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "batch_first": True}, {"bidirectional": True}])
def test_windows_are_restarted_runs(kind: type[nn.Module], window: int, options: dict[str, Any]) -> None:
    module, x = make(kind, **options), sequence().requires_grad_()
    twin = truncate(module, window)
    values = x.transpose(0, 1) if module.batch_first else x
    output, state = twin(values)
    output = output.transpose(0, 1) if module.batch_first else output
    expected = restarted(module, x, window)
    same(flat(output, state), flat(*expected))
    leaves = [x, *twin.parameters()]
    same(gradients(flat(output, state), leaves), gradients(flat(*expected), [x, *module.parameters()]))
    assert window == 20 or not torch.allclose(output, module(values)[0].transpose(0, 1 if module.batch_first else 0))


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_padded_sequences_of_several_lengths(kind: type[nn.Module], batch_first: bool) -> None:
    module, x, lengths = make(kind, batch_first=batch_first), sequence(9, 3), torch.tensor([4, 9, 6])
    values = x.transpose(0, 1) if batch_first else x
    output, state = truncate(module, 3)(values, lengths=lengths, enforce_sorted=False)
    output = output.transpose(0, 1) if batch_first else output
    for lane, length in enumerate(lengths.tolist()):
        expected, end = restarted(module, x[:length, lane : lane + 1], 3)
        same([output[:length, lane]], [expected[:, 0]])
        assert not output[length:, lane].any()
        same(flat(each(state, lambda part, lane=lane: part[:, lane : lane + 1])), flat(end))


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("chunks", [[4, 5], [1, 2, 6], [2] * 4 + [1]])
def test_states_are_carried_over_chunks(kind: type[nn.Module], chunks: list[int]) -> None:
    module, x = make(kind, num_layers=2), sequence()
    output, state, _ = run_chunks(truncate(module, 3), x, chunks, change=Tensor.detach)
    same(flat(output, state), flat(*restarted(module, x, 3)))


def test_a_cell() -> None:
    cell, x = make(CountedCell), sequence()
    twin, state, states = truncate(cell, 3), None, []
    for values in x:
        state = twin(values, state)
        states.append(state)
    same(flat(*states), flat(*restarted_cell(cell, x, 3)))
    assert twin.steps == len(x)  # the wrapper was there at every step


def test_what_a_twin_of_a_wrapper_is() -> None:
    module = make(LSTMWithLengths, batch_first=True)
    twin, x = truncate(module, 3), sequence().transpose(0, 1)
    for other in (twin, copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), truncate(truncate(module, 5), 3)):
        assert isinstance(other, LSTMWithLengths)
        assert isinstance(other, Windowed)
        assert original_class(other) is LSTMWithLengths
        assert type(other) is type(twin)
        assert repr(other) == "WindowedLSTMWithLengths(3, 5, batch_first=True, window=3)"
        same(flat(other(x)), flat(twin(x)))
    with twin.as_stored():
        same(flat(twin(x)), flat(module(x)))
    assert type(module) is LSTMWithLengths
    assert window_(module, 3)(x)[0].equal(twin(x)[0])


def test_chunks_with_a_warm_up() -> None:
    module = make(GRUWithLengths)
    plain = nn.GRU(3, 5).double()
    plain.load_state_dict(module.state_dict())
    same(flat(truncate_at_least(module, 2)(sequence())), flat(truncate_at_least(plain, 2)(sequence())))


def test_a_compiled_model_around_a_wrapper() -> None:
    twin, x = truncate(nn.ModuleDict({"core": make(LSTMWithLengths)}), 3), sequence()

    def run(values: Tensor, hx: Any) -> Any:
        output, state = twin["core"](values + 1, hx)
        return output - 1, state

    compiled, state, outputs = torch.compile(run, backend="eager"), None, []
    for values in x.split([2, 4, 3]):
        output, state = compiled(values, state)
        outputs.append(output)
    same([torch.cat(outputs)], [run(x, None)[0]])


# Declared ones --------------------------------------------------------------------------------------------------------
def test_a_declared_wrapper_is_windowed(declared: Callable[..., None]) -> None:
    declared(NormedOutputs, like=nn.GRU)
    declared(NeedsLengths, like=nn.GRU)
    module, x = make(NormedOutputs), sequence()
    plain = nn.GRU(3, 5).double()
    plain.load_state_dict({name: value for name, value in module.state_dict().items() if "norm" not in name})
    expected, state = restarted(plain, x, 3)
    same(flat(truncate(module, 3)(x)), flat(module.norm(expected), state))
    needing = make(NeedsLengths)
    needing.load_state_dict(plain.state_dict())
    same([truncate(needing, 3)(x, torch.tensor([9, 9]))[0]], [expected])


def test_a_declared_class_that_is_no_wrapper_has_no_windows(declared: Callable[..., None]) -> None:
    class ByHand(nn.GRU):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return nn.GRU.forward(self, input, hx)

    with pytest.raises(ValueError, match=r"a ByHand: it does not call `super\(\)\.forward`"):
        truncate(ByHand(3, 4), 2)
    declared(ByHand, like=nn.GRU)
    with pytest.raises(ValueError, match=r"which a `forward` around .* Got ByHand: it does not call .* of GRU"):
        truncate(ByHand(3, 4), 2)


# What is built on windows ---------------------------------------------------------------------------------------------
def test_measurements_of_a_wrapper() -> None:
    module, x = make(LSTMWithLengths), sequence(12)
    project_(module, 0.9, input_bound=4.0)
    plain = nn.LSTM(3, 5).double()
    plain.load_state_dict(module.state_dict())
    mine, theirs = (truncation_profile(layer, x, 4) for layer in (module, plain))
    assert torch.equal(mine.max_error, theirs.max_error)
    assert torch.equal(mine.bound, theirs.bound)
    assert mine.bound.isfinite().all()
    errors = [(truncate(module, k)(x)[0] - module(x)[0]).norm(dim=-1).max() for k in (1, 2, 3, 4)]
    same([mine.max_error], [torch.stack(errors)])
    mine, theirs = (measure_state_gradients(layer, x, max_lag=4) for layer in (module, plain))
    torch.testing.assert_close(mine.norms, theirs.norms, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(mine.exponents, theirs.exponents)


def test_a_wrapper_in_training_with_its_twin(tmp_path: Path) -> None:
    shadow = FeedForwardShadowCallback(2)
    model = Noisy(LSTMWithLengths(FEATURES, UNITS, batch_first=True))
    trainer(tmp_path, shadow, max_steps=3).fit(model, sequences())
    assert any(isinstance(part, Windowed) for part in shadow.twin.modules())
    assert not any(isinstance(part, Windowed) for part in model.modules())


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_forms_that_are_exported(kind: type[nn.Module]) -> None:
    module, x = make(kind, batch_first=True), sequence().transpose(0, 1)
    expected = truncate(module, 3)(x)[0]
    same([BatchForm(module, 3)(x), streamed(StreamingForm(module, 3), x)], [expected, expected])


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_a_wrapper_is_exported(format: str, streaming: bool, tmp_path: Path) -> None:
    module = make(LSTMWithLengths, batch_first=True).float()
    path = tmp_path / ("layer.onnx" if format == "onnx" else "layer.pt2")
    done = export(module, 3, path, format=format, streaming=streaming, input_bound=1.0)
    assert done.difference < 1e-5
    assert done.metadata.model == "LSTMWithLengths"
