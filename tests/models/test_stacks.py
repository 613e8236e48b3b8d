from typing import Any

import pytest
import torch
from torch import nn

from lightning_stable import project_, truncate
from lightning_stable.models import LanguageModel, build_core
from lightning_stable.models.cores import evaluate, pack, receptive_field, unpack
from lightning_stable.models.stacks import RecurrentStack

CELLS = ("rnn", "lstm", "gru", "leaky", "mingru", "minlstm")
OPTIONS = [{"residual": True}, {"normalize": True}, {"residual": True, "normalize": True}]


def stack(cell: str = "lstm", **kwargs: Any) -> RecurrentStack:
    torch.manual_seed(0)
    core = build_core(3, 4, **{"cell": cell, "num_layers": 3, "residual": True, "normalize": True, **kwargs})
    assert isinstance(core, RecurrentStack)
    return core.double().eval()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_are_joined_as_written(cell: str, options: dict[str, bool]) -> None:
    core = stack(cell, **{"residual": False, "normalize": False, **options})
    x = torch.randn(2, 7, 3).double()
    expected = core.layers[0](x)[0]
    for layer, norm in zip(core.layers[1:], core.norms, strict=True):
        assert isinstance(norm, nn.LayerNorm) == bool(options.get("normalize"))
        output = layer(norm(expected))[0]
        expected = expected + output if options.get("residual") else output
    torch.testing.assert_close(core(x)[0], expected)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_goes_on_over_chunks_and_through_a_checkpoint(cell: str, window: int | None) -> None:
    core, x = stack(cell, window=window), torch.randn(2, 20, 3).double()
    state, outputs = None, []
    for chunk in x.split(7, 1):
        output, state = core(chunk, state)
        state = unpack(core, pack(core, state))
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), core(x)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_the_receptive_field_is_exact(cell: str) -> None:
    core = stack(cell, window=3)
    assert receptive_field(core) == 7
    assert receptive_field(stack(cell)) is None
    x = torch.randn(1, 12, 3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(core(x)[0][0, -1].sum(), x)
    assert (gradient[0].abs().amax(1) > 0).tolist() == [False] * 5 + [True] * 7


def test_padded_sequences_are_read_as_each_alone() -> None:
    core, x, lengths = stack(bidirectional=True), torch.randn(3, 6, 3).double(), torch.tensor([4, 6, 1])
    outputs = evaluate(core, x, lengths)
    for index, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(outputs[index, :length], core(x[index : index + 1, :length])[0][0])


@pytest.mark.parametrize("cell", CELLS)
def test_inputs_above_a_norm_are_derived(cell: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(11, embedding_size=3, hidden_size=4, num_layers=3, cell=cell, residual=True, normalize=True)
    report = project_(model, 0.9)
    assert report.rate <= 0.9
    assert len(report.layers) == 3
    assert report.guarantee == ("guaranteed" if cell in ("rnn", "leaky") else "derived")
    assert list(truncate(model, 5).state_dict()) == list(model.state_dict())


def test_wrong_arguments() -> None:
    for name in ("residual", "normalize"):
        with pytest.raises(TypeError, match=f"`{name}` must be"):
            build_core(3, 4, **{name: 1})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"`{name}` must be False beside a convolutional `core`.*Got True"):
            build_core(3, 4, core="tcn", **{name: True})  # type: ignore[arg-type]
