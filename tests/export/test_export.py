"""Exported files agree with the truncated model, and with the recurrent one within what is certified."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable import certify, project_, truncate
from lightning_stable.export import Exported, Metadata, StreamingForm, export, formats, read_metadata
from lightning_stable.models import LanguageModel, SlotTagger
from tests.export.test_forms import streamed
from tests.nets import LAYERS, net

WINDOW = 3
SUFFIX = {name: found.suffix for name, found in formats.FORMATS.items()}
FORMS = [("torch-export", False), ("torch-export", True), ("onnx", False), ("onnx", True)]


def layer(cell: str, num_layers: int, **kwargs: Any) -> nn.Module:
    """A certified stable layer for inputs of at most 1."""
    made = net(cell, num_layers=num_layers, batch_first=True, dtype=torch.float32, **kwargs)
    project_(made, 0.8, input_bound=1.0)
    return made


def inputs(batch: int, time: int) -> Tensor:
    return torch.rand(batch, time, 3, generator=torch.Generator().manual_seed(batch)) * 2 - 1


class Memory(nn.Module):
    """A streaming file as a module, to be run as the form is."""

    def __init__(self, model: nn.Module, window: int, run: formats.Runner) -> None:
        super().__init__()
        self.start, self.run = StreamingForm(model, window).start, run

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.run(given)


def check(model: nn.Module, done: Exported, format: str, streaming: bool) -> None:
    twin = truncate(model, WINDOW)
    (bound,) = done.metadata.error_bound.values()
    assert bound is not None
    run = formats.FORMATS[format].open(done.path)
    memory = Memory(model, WINDOW, run) if streaming else None
    for batch, time in ((1, 9), (3, 1), (17, 6), (2, WINDOW)):
        x = inputs(batch, time)
        found = streamed(memory, x) if streaming else run((x,))[0]  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(found, twin(x)[0], rtol=0, atol=1e-5)
            apart = (found - model(x)[0]).norm(dim=-1).max().item()
        assert apart <= bound + 1e-6
        assert time <= WINDOW or apart > 1e-4  # it is another function than the recurrent one


@pytest.mark.parametrize(("format", "streaming"), FORMS)
def test_a_stable_lstm(format: str, streaming: bool, tmp_path: Path) -> None:
    model = layer("lstm", 1 if streaming else 2)
    path = tmp_path / f"lstm{SUFFIX[format]}"
    done = export(model, WINDOW, path, format=format, streaming=streaming, input_bound=1.0)
    check(model, done, format, streaming)
    assert done.difference < 1e-5 < done.recurrent_difference
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    metadata = read_metadata(path)
    assert metadata == done.metadata
    report = certify(model, input_bound=1.0)
    assert (metadata.window, metadata.rate, metadata.guarantee) == (WINDOW, report.rate, "guaranteed")
    assert metadata.error_bound == {"": report.bounds[0].errors(WINDOW)[-1].item()}
    assert metadata.input_bound["l0"] == "|x| <= 1"
    assert metadata.form == ("streaming" if streaming else "batch")
    if streaming:
        assert list(metadata.inputs) == ["input", "count", "recent"]
        assert metadata.inputs["recent"] == {"shape": ["batch", WINDOW, 3], "dtype": "float32"}
        assert metadata.outputs["output"]["shape"] == ["batch", 5]
    else:
        assert metadata.inputs == {"input": {"shape": ["batch", "time", 3], "dtype": "float32"}}
        assert metadata.outputs == {
            "output": {"shape": ["batch", "time", 5], "dtype": "float32"},
            "bound": {"shape": ["batch", "time"], "dtype": "float32"},
        }
    assert list(metadata.outputs)[-1] == "bound"
    assert metadata.bound == {
        "module": "",
        "norm": "euclidean",
        "state_bound": 1.0,
        "inputs_before": "|x| <= 1",
        "guarantee": "guaranteed",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("format", "streaming"), FORMS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", LAYERS)
def test_every_cell(cell: str, layers: int, format: str, streaming: bool, tmp_path: Path) -> None:
    model = layer(cell, layers, scale=2.0)
    path = tmp_path / f"file{SUFFIX[format]}"
    check(model, export(model, WINDOW, path, format=format, streaming=streaming, input_bound=1.0), format, streaming)


@pytest.mark.slow
def test_a_program_runs_where_this_package_is_not(tmp_path: Path) -> None:
    export(nn.GRU(3, 4, batch_first=True), 2, tmp_path / "m.pt2", format="torch-export")
    code = (
        "import sys; sys.modules['lightning_stable'] = None\nimport torch\n"
        "print(*torch.export.load('m.pt2').module()(torch.ones(5, 7, 3)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "5 7 4\n"


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("layers", [1, 2])
def test_both_directions(layers: int, format: str, tmp_path: Path) -> None:
    model = layer("gru", layers, bidirectional=True)
    path = tmp_path / f"file{SUFFIX[format]}"
    check(model, export(model, WINDOW, path, format=format, input_bound=1.0), format, False)


class User(nn.Module):
    """A user's model whose parts are chosen by a test."""

    def __init__(self, before: nn.Module | None = None, after: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.core = nn.RNN(3, 4, batch_first=True, **kwargs)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.core(self.before(x))[0])


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Positions(nn.Module):
    def __init__(self, time: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(time, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_bounds_are_an_option(tmp_path: Path) -> None:
    path, given = tmp_path / "m.pt2", {"format": "torch-export"}
    model = layer("rnn", 1)
    assert list(export(model, 2, path, bound=False, **given).metadata.outputs) == ["output"]
    assert read_metadata(path).bound is None
    with torch.no_grad():
        model.weight_hh_l0.mul_(5.0)
    assert export(model, 2, path, **given).metadata.bound is None  # the tube of an unstable layer says nothing
    assert export(model, 2, path, bound=True, **given).metadata.bound is not None


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("cell", LAYERS)
def test_no_history_leaves_an_exported_bound(cell: str, format: str, tmp_path: Path) -> None:
    """A program sees the last inputs of 512 sequences; 16,000 windows of them have histories it knows nothing of."""
    model, path = layer(cell, 2, scale=1.5), tmp_path / f"file{SUFFIX[format]}"
    export(model, WINDOW, path, format=format, input_bound=1.0, bound=True)
    exact = net(cell, num_layers=2, batch_first=True)
    exact.load_state_dict(model.state_dict())
    x = inputs(512, 40).sign() * inputs(512, 40).abs() ** 0.2  # near the corners
    found, bound = formats.FORMATS[format].open(path)((x[:, 8:],))
    apart = (exact(x.double())[0][:, 8:] - found).norm(dim=-1)
    assert (apart <= bound).all()
    print(f"\n{cell}, {format}: {apart.numel()} evaluations, tightest {(apart / bound).max():.3f}")


@pytest.mark.parametrize("operator", ["Tanh", "Sigmoid"])
def test_functions_of_the_runtime_are_as_exact_as_bounds_ask(operator: str) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["y"])], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    x = torch.cat((torch.linspace(-30, 30, 200_001), torch.linspace(-3, 3, 200_001)))
    found = torch.from_numpy(runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})[0])
    exact = {"Tanh": torch.tanh, "Sigmoid": torch.sigmoid}[operator](x.double())
    assert (found - exact).abs().max() <= 4 * torch.finfo(torch.float32).eps


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = layer("gru", 1), nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x)[0])[0]


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = layer("gru", 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(torch.cat((x, x), dim=1))[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Both(), r"one recurrent module. Got 2: \['low', 'high'\]"),
        (Doubled(), r"the steps of its inputs one by one. Got bounds of shape \(2, 12\) for inputs of \(2, 6, 3\)"),
        (nn.LSTM(3, 4, batch_first=True), "declare `input_bound`"),
    ],
)
def test_models_without_bounds(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(model, 2, tmp_path / "m.pt2", format="torch-export", bound=True, example=inputs(2, 6), input_bound=None)


def test_a_bound_that_is_too_small_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = formats.FORMATS["torch-export"]

    def wrong(path: Path) -> formats.Runner:
        run = right.open(path)
        return lambda given: (*run(given)[:-1], 0.9 * run(given)[-1])

    monkeypatch.setitem(formats.FORMATS, "torch-export", right._replace(open=wrong))
    with pytest.raises(ValueError, match="bounds of an exported program must be"):
        export(layer("rnn", 1), 2, tmp_path / "m.pt2", format="torch-export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_at_the_last_step(streaming: bool, tmp_path: Path) -> None:
    model = User(after=Last())
    done = export(
        model, 2, tmp_path / "m.pt2", format="torch-export", example=torch.randn(2, 5, 3), streaming=streaming
    )
    assert done.metadata.outputs["output"]["shape"] == ["batch", 4]


def test_a_model_of_one_length(tmp_path: Path) -> None:
    model, example = User(before=Positions(6)), torch.randn(2, 6, 3)
    done = export(model, 2, tmp_path / "m.pt2", format="torch-export", example=example)
    assert done.metadata.inputs["input"]["shape"] == ["batch", 6, 3]
    assert done.metadata.outputs["output"]["shape"] == ["batch", 6, 4]
    with pytest.raises(ValueError, match=r"must take inputs of shape \(2, 4, 3\)"):
        export(model, 2, tmp_path / "s.pt2", format="torch-export", example=example, streaming=True)


def test_a_model_that_looks_at_other_steps_cannot_stream(tmp_path: Path) -> None:
    example = torch.randn(2, 6, 3)
    with pytest.raises(ValueError, match=r"must agree with the truncated model to 1e-05. Got"):
        export(User(after=Mean()), 2, tmp_path / "m.pt2", format="torch-export", example=example, streaming=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = formats.FORMATS["torch-export"]

    def wrong(path: Path) -> formats.Runner:
        run = right.open(path)
        return lambda given: tuple(value + 2e-5 for value in run(given))

    monkeypatch.setitem(formats.FORMATS, "torch-export", right._replace(open=wrong))
    path = tmp_path / "m.pt2"
    path.write_text("before")
    with pytest.raises(ValueError, match=r"must agree with the truncated model to 1e-05. Got 2"):
        export(nn.RNN(3, 4), 2, path, format="torch-export")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_windowed_model_that_is_not_certified(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(7, hidden_size=6, embedding_size=5, window=4, dropout=0.5).train()
    with torch.no_grad():
        model.core.weight_hh_l0.mul_(20)
    before = torch.random.get_rng_state()
    metadata = export(model, None, tmp_path / "m.pt2", format="torch-export").metadata
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert (metadata.model, metadata.window, metadata.error_bound) == ("LanguageModel", 4, {"core": None})
    assert metadata.guarantee == "none"
    assert metadata.inputs["input"] == {"shape": ["batch", "time"], "dtype": "int64"}


def test_time_first(tmp_path: Path) -> None:
    metadata = export(nn.GRU(3, 4), 2, tmp_path / "m.pt2", format="torch-export").metadata
    assert metadata.inputs["input"]["shape"] == ["time", "batch", 3]
    assert (metadata.rate, metadata.guarantee, metadata.error_bound) == (None, "none", {"": None})


def test_a_compiled_model_is_the_one_inside(tmp_path: Path) -> None:
    model: Any = torch.compile(nn.GRU(3, 4))  # compiles nothing until it is called
    metadata = export(model, 2, tmp_path / "m.pt2", format="torch-export").metadata
    assert (metadata.model, list(metadata.error_bound)) == ("GRU", [""])
    assert metadata.inputs["input"]["shape"] == ["time", "batch", 3]


def test_arguments(tmp_path: Path) -> None:
    model, path = nn.RNN(3, 4), tmp_path / "m.pt2"
    (tmp_path / "folder.pt2").mkdir()
    for given, message in (
        ({"format": "onnx2"}, "`format` must be one of .* Got 'onnx2'"),
        ({"format": "onnx"}, "`path` must end in '.onnx'"),
        ({"path": tmp_path / "no" / "m.pt2"}, "in a folder that exists"),
        ({"path": tmp_path / "folder.pt2"}, "`path` must be that of a file. Got '.*', a folder"),
        ({"window": None}, "`window` must be given"),
        ({"window": 0}, "`window` must be a positive integer"),
        ({"model": nn.Linear(2, 2)}, "No recurrence found"),
        ({"model": User()}, "`example` must be a batch of inputs .* Got none for a User"),
        ({"example": torch.ones(3)}, r"`example` must be .* Got \(3,\)"),
        ({"example": torch.ones(2, 3, device="meta")}, "`example` must be .* Got a meta one"),
        ({"model": SlotTagger(7, ["O"], hidden_size=4), "streaming": True}, "bidirectional 'core'"),
    ):
        arguments: dict[str, Any] = {"model": model, "window": 2, "path": path, "format": "torch-export", **given}
        with pytest.raises(ValueError, match=message):
            export(arguments.pop("model"), arguments.pop("window"), arguments.pop("path"), **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.pt2"]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not found"):
        read_metadata(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"must be an ONNX file or a torch.export archive"):
        read_metadata(tmp_path / "m.onnx")
    torch.save({}, tmp_path / "m.pt2")
    with pytest.raises(ValueError, match="that lightning-stable exported"):
        read_metadata(tmp_path / "m.pt2")


def test_onnx_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-stable\[export\]'"):
        export(nn.RNN(3, 4), 2, tmp_path / "m.onnx")


def test_infinite_bounds_are_none() -> None:
    report = certify(nn.GRU(3, 4))
    assert math.isinf(report.rate)
    found = Metadata.of(report, 3, model="GRU", form="batch", inputs={}, outputs={})
    assert replace(found, version="") == Metadata(
        "GRU", "batch", 3, None, "none", {"": None}, {"l0": None}, {}, {}, version=""
    )


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = layer("gru", 1)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).any(-1).sum(1)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_model_that_packs_is_told_to_leave_it(format: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"on tensors: .* Got a PackedSequence for \['rnn'\]. Export a `forward` that"):
        export(Packing(), 3, tmp_path / f"x{SUFFIX[format]}", format=format, example=inputs(2, 5))
    assert not list(tmp_path.iterdir())


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = layer("gru", 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.rnn(x)[0])


def test_what_onnx_has_no_operator_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'`format="torch-export"` needs none. Got DispatchError: .*bessel') as error:
        export(Bessel(), 3, tmp_path / "x.onnx", example=inputs(2, 5))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    export(Bessel(), 3, tmp_path / "x.pt2", format="torch-export", example=inputs(2, 5))


def test_what_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module. Got 3"):
        export(3, 3, tmp_path / "x.onnx")  # type: ignore[arg-type]
