"""The forms that are exported, run as modules: equal to the truncated model, whole and step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_stable import certify_windows, project_, truncate
from lightning_stable.export import BatchForm, StreamingForm
from lightning_stable.export.bounds import bounded
from lightning_stable.models import LanguageModel, MusicModel, SequenceRegressor, SlotTagger
from tests.nets import LAYERS, net

WINDOW = 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(form: StreamingForm, inputs: Tensor) -> Tensor:
    """All answers for inputs ``(batch, time, ...)``."""
    count, recent = form.start(len(inputs))
    answers = []
    for step in inputs.unbind(1):
        answer, count, recent, *_ = form(step, count, recent)
        answers.append(answer)
    return torch.stack(answers, 1)


@pytest.mark.parametrize(
    ("layers", "bidirectional", "time"),
    [
        *((1, False, 1), (1, False, 2 * WINDOW + 3), (2, False, WINDOW)),
        *((1, True, WINDOW), (2, True, 1), (2, True, 2 * WINDOW + 3)),
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_whole_sequences(name: str, layers: int, bidirectional: bool, time: int) -> None:
    layer = net(name, num_layers=layers, bidirectional=bidirectional)
    inputs = random(time, 3, 3)
    expected, _ = truncate(layer, WINDOW)(inputs)
    torch.testing.assert_close(BatchForm(layer, WINDOW)(inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, WINDOW])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_streams(name: str, layers: int, window: int) -> None:
    layer, inputs = net(name, num_layers=layers, batch_first=True), random(3, 2 * window + 3, 3)
    expected, _ = truncate(layer, window)(inputs)
    torch.testing.assert_close(streamed(StreamingForm(layer, window), inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_that_are_given_and_returned(bidirectional: bool) -> None:
    layer = net("lstm", num_layers=2, bidirectional=bidirectional)
    lines, start = 4 if bidirectional else 2, 3
    states = (random(lines, start, 5, seed=1), random(lines, start, 5, seed=2))
    form = BatchForm(layer, WINDOW).model
    for inputs, hx in ((random(9, start, 3), states), (random(9, 3), tuple(part[:, 0] for part in states))):
        (output, state), (expected, after) = form(inputs, hx), truncate(layer, WINDOW)(inputs, hx)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        for part, value in zip(state, after, strict=True):
            torch.testing.assert_close(part, value.as_subclass(Tensor), rtol=0, atol=1e-12)


def test_one_stream_starts_afresh_beside_others() -> None:
    layer, inputs = net("gru", batch_first=True), random(2, 11, 3)
    form, twin = StreamingForm(layer, WINDOW), truncate(layer, WINDOW)
    count, recent = form.start(2)
    for step in range(11):
        if step == 5:
            count = count * torch.tensor([1, 0])
        answer, count, recent = form(inputs[:, step], count, recent)
        torch.testing.assert_close(answer[0], twin(inputs[:1, : step + 1])[0][0, -1])
        torch.testing.assert_close(answer[1], twin(inputs[1:, 5 if step >= 5 else 0 : step + 1])[0][0, -1])


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "language": lambda: (LanguageModel(7, hidden_size=6, embedding_size=5), torch.arange(18).view(2, 9) % 7),
    "music": lambda: (MusicModel(4, hidden_size=5, cell="rnn"), random(2, 9, 4).float()),
    "slots": lambda: (
        SlotTagger(7, ["O", "B-x"], embedding_size=4, hidden_size=5, bidirectional=False),
        torch.arange(18).view(2, 9) % 7,
    ),
    "numbers": lambda: (SequenceRegressor(3, 1, cell="gru", hidden_size=5), random(2, 9, 3).float()),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    model, inputs = MODELS[name]()
    expected = truncate(model, WINDOW).eval()(inputs)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(BatchForm(model, WINDOW)(inputs), expected)
    torch.testing.assert_close(streamed(StreamingForm(model, WINDOW), inputs), expected)


class Two(nn.Module):
    """Two recurrent modules, the second of which sees the input too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 4)
        self.second = nn.LSTM(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.cat((self.first(x)[0], x), -1))[0]


def test_several_recurrent_modules_share_the_memory() -> None:
    model, inputs = Two().double(), random(11, 2, 3)
    form = StreamingForm(model, WINDOW, batch_first=False)
    assert form.start(2)[1].shape == (2, WINDOW, 3 + 7)
    torch.testing.assert_close(streamed(form, inputs.transpose(0, 1)).transpose(0, 1), truncate(model, WINDOW)(inputs))


def test_what_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match=r"takes a whole sequence. Got 'the module', a GRUCell"):
        BatchForm(nn.GRUCell(3, 4), 2)
    with pytest.raises(ValueError, match=r"`window` must be a positive integer. Got 0"):
        BatchForm(nn.GRU(3, 4), 0)
    with pytest.raises(ValueError, match=r"run forward.* Got the bidirectional 'core'"):
        StreamingForm(SlotTagger(7, ["O"], hidden_size=4), 2)
    with pytest.raises(ValueError, match="Got a PackedSequence"):
        BatchForm(nn.GRU(3, 4), 2)(pack_sequence([torch.ones(2, 3)]))
    with pytest.raises(ValueError, match=r"must return a tensor, or one first. Got dict"):
        BatchForm(Answers(), 2)(torch.ones(2, 3, 3))
    form = StreamingForm(nn.GRU(3, 4, batch_first=True), 2, batch_first=False)
    with pytest.raises(ValueError, match=r"takes one input per step. Got 3 inputs"):
        form(torch.ones(3, 3), *form.start(3))


class Answers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.core(x)[0]}


# Bounds ---------------------------------------------------------------------------------------------------------------
def uniform(*shape: int) -> Tensor:
    return random(*shape).clamp(-1, 1)


def stable(name: str, **kwargs: Any) -> nn.Module:
    layer = net(name, **kwargs)
    project_(layer, 0.9, input_bound=1.0)
    return layer


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("name", LAYERS)
def test_bounds_are_those_of_the_windows(name: str, layers: int, bidirectional: bool) -> None:
    layer = stable(name, num_layers=layers, bidirectional=bidirectional)
    inputs = uniform(2 * WINDOW + 3, 3, 3)
    form = BatchForm(layer, WINDOW, bounded(layer, 1.0).premises, batch_first=False)
    output, bound = form(inputs)
    torch.testing.assert_close(output, truncate(layer, WINDOW)(inputs)[0], rtol=0, atol=1e-12)
    assert bound.shape == (2 * WINDOW + 3, 3)
    places = 2 * WINDOW - 1 if bidirectional else WINDOW
    for position in range(WINDOW - 1, WINDOW + 2):
        windows = inputs[position - WINDOW + 1 :][:places]
        expected = certify_windows(layer, windows, input_bound=1.0)
        torch.testing.assert_close(bound[position], expected, rtol=1e-9, atol=0)
    # Where the past is out of the sequence, it may have been anything, too.
    if not bidirectional:
        torch.testing.assert_close(bound[1], certify_windows(layer, inputs[:2], input_bound=1.0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_bounds_of_streams(name: str) -> None:
    layer, inputs = stable(name, num_layers=2, batch_first=True), uniform(3, 2 * WINDOW + 1, 3)
    premises = bounded(layer, 1.0).premises
    answers, bounds = BatchForm(layer, WINDOW, premises)(inputs)
    form = StreamingForm(layer, WINDOW, premises)
    count, recent = form.start(3)
    for step, answer, bound in zip(inputs.unbind(1), answers.unbind(1), bounds.unbind(1), strict=True):
        found, count, recent, found_bound = form(step, count, recent)
        torch.testing.assert_close(found, answer, rtol=0, atol=1e-12)
        torch.testing.assert_close(found_bound, bound, rtol=1e-9, atol=0)


@pytest.mark.parametrize("window", [2, 30])
@pytest.mark.parametrize("name", LAYERS)
def test_bounds_hold_in_float32_whatever_came_before(name: str, window: int) -> None:
    exact = stable(name, num_layers=2, batch_first=True)
    layer = net(name, num_layers=2, batch_first=True, dtype=torch.float32)
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())  # the rounded weights
    inputs = uniform(64, window + 40, 3).float()
    outputs, bounds = BatchForm(layer, window, bounded(layer, 1.0).premises)(inputs)
    expected = exact(inputs.double())[0]  # from inputs that the last windows do not see
    apart = (outputs.double() - expected).norm(dim=-1)[:, -5:]
    assert (apart <= bounds[:, -5:].double()).all()
    assert window == 2 or bounds[:, -5:].median() < 0.5 or name in ("rnn", "relu", "leaky")


def test_a_form_that_calls_its_layer_twice_has_no_bound() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = stable("gru", batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.core(x)[0] + self.core(-x)[0]

    model = Twice()
    form = BatchForm(model, WINDOW, bounded(model, 1.0).premises)
    with pytest.raises(ValueError, match=r"calls its recurrent module once.*Got 2 calls"):
        form(uniform(2, 5, 3))
