"""``lightning-stable profile``: windows measured on data beside certified ones."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_stable import certify, cli, project_, stability, truncation_profile
from lightning_stable.checkpoints import declare_inputs
from lightning_stable.commands._windows import profile_modules, record
from lightning_stable.commands.profile import Options, _tube, verdict
from lightning_stable.datamodules import CopyMemoryDataModule, LinearSystemDataModule
from lightning_stable.models import LanguageModel, SlotTagger
from lightning_stable.stability.inputs.sets import SupNorm
from lightning_stable.stability.report import format_rate, why_no_bound
from tests.checkpoint_files import CLASS, Cells, Gated, Plain, as_cli, save
from tests.commands.test_certify import error_of, language_model
from tests.models.examples import slots


def inputs(batch: int = 3, time: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(batch, time, 3, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)


def stable(**kwargs: Any) -> Gated:
    model = Gated(4, **kwargs)
    project_(model, 0.9, input_bound=2.0)
    return model


def stored(value: object, path: Path) -> str:
    torch.save(value, path)
    return str(path)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_measured_and_certified_windows(cell: str) -> None:
    model = stable(cell=cell, num_layers=2).eval()
    given = record(model, [inputs()], 1)
    found = profile_modules(model, given, "2", 8, 0.05)["core"]
    expected = truncation_profile(model.core, inputs(), 8, input_bound=SupNorm(2.0))
    torch.testing.assert_close(found.profile.max_error, expected.max_error)
    torch.testing.assert_close(found.profile.mean_error, expected.mean_error)
    torch.testing.assert_close(found.profile.bound, expected.bound)
    assert found.measured == expected.required_window(0.05)
    torch.testing.assert_close(found.profile.tube, expected.tube)
    assert found.tube == expected.tube_window(0.05)
    report = certify(model, input_bound=2.0)
    assert found.certified == report.required_window(0.05)
    assert found.layers == report.layers
    assert found.guarantee == "guaranteed"
    assert (found.sequences, found.time) == (3, 12)


def test_what_the_model_says_about_its_inputs_comes_before_their_range() -> None:
    model = language_model().eval()
    found = profile_modules(model, record(model, [torch.randint(7, (2, 9))], 1), None, 5, 0.05)["core"]
    assert found.guarantee == found.report.guarantee == "derived"
    assert found.layers == certify(model).layers
    assert found.certified == certify(model).required_window(0.05)
    gated = stable().eval()
    found = profile_modules(gated, record(gated, [inputs()], 1), None, 5, 0.05)["core"]
    assert found.guarantee == "data"
    torch.testing.assert_close(found.profile.bound, truncation_profile(gated.core, inputs(), 5).bound)


def test_the_verdict_is_a_sentence() -> None:
    model = stable().eval()
    (found,) = profile_modules(model, record(model, [inputs(4, 60)], 1), None, 60, 1e-3).values()
    options = Options(checkpoint=Path("best.ckpt"), data=(), max_window=60, tolerance=1e-3)
    text = verdict("core", found, options)
    assert text.startswith(
        f"core is certified stable (rate {format_rate(found.report.rate)}, data): after {found.tube} "
    )
    assert f"changes the output by at most 0.001, whatever it was; {found.measured} were enough" in text
    short = replace(found, tube=None, measured=None)
    assert (
        "but no window up to 60 is certified for this data; more than 60 inputs were needed here; "
        f"{found.certified} inputs are certified for all admissible inputs. A larger --max-window"
        in verdict("core", short, options)
    )
    longer = replace(options, max_window=61)
    assert "up to 60 is certified" in verdict("core", short, longer)
    assert "Longer sequences" in verdict("core", short, longer)
    unknown = replace(found, layers=tuple(replace(layer, rate=1.5) for layer in found.layers))
    text = verdict("core", unknown, options)
    assert text.startswith("core is not certified stable (rate 1.5")
    assert text.endswith(why_no_bound(unknown.report))


def test_a_tube_above_the_outputs_is_none() -> None:
    """A number above which it is would promise one below."""
    model = stable().eval()
    (found,) = profile_modules(model, record(model, [inputs(4, 20)], 1), None, 20, 1e-9).values()
    assert _tube(found) == "> 20"
    vacuous = replace(found, profile=replace(found.profile, tube=found.profile.tube + 10))
    assert _tube(vacuous) == "none"


def test_batches_of_different_lengths_are_joined() -> None:
    model = stable().eval()
    given = record(model, [inputs(2, 5), inputs(3, 9, seed=1)], 1)["core"]
    rows = [*inputs(2, 5), *inputs(3, 9, seed=1)]
    joined = pack_sequence(rows, enforce_sorted=False)
    assert torch.equal(given.batch_sizes, joined.batch_sizes)
    expected = truncation_profile(model.core, joined, 6)
    torch.testing.assert_close(truncation_profile(model.core, given, 6).mean_error, expected.mean_error)


def test_the_steps_of_a_cell_are_sequences() -> None:
    model = Cells().eval()
    given = record(model, [inputs(2, 5), inputs(3, 9, seed=1)], 1)["core"]
    assert torch.equal(given, torch.cat((inputs(2, 5), inputs(3, 9, seed=1)[:, :5])).transpose(0, 1))
    assert profile_modules(model, {"core": given}, None, 4, 0.1)["core"].profile.max_error[-1] < 1


def test_packed_sequences() -> None:
    model = slots().eval()
    words = torch.randint(11, (2, 6))
    lengths = torch.tensor([6, 2])
    seen: dict[str, Any] = {}
    forward = model.forward
    model.forward = lambda x: forward(x, lengths)  # type: ignore[method-assign]
    seen = record(model, [words], 1)
    assert seen["core"].batch_sizes.tolist() == [2, 2, 1, 1, 1, 1]
    assert isinstance(model, SlotTagger)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    path = save(stable().to(dtype), tmp_path)
    data = stored(inputs(), tmp_path / "x.pt")
    command = ["profile", str(path), "--class-path", CLASS, "--data", data, "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0


def test_a_data_module_for_a_model_of_double_precision() -> None:
    data = LinearSystemDataModule(input_size=3, length=5, train_size=1, valid_size=4, test_size=1)
    given = record(stable().double().eval(), [data], 1)["core"]
    assert given.data.dtype == torch.float64
    assert given.shape == (4, 5, 3)


@pytest.mark.parametrize("window", [None, 3])
def test_a_table_and_a_plot(window: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LanguageModel(10, hidden_size=6, embedding_size=5, window=window)
    project_(model, 0.9)
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer: {max_epochs: 1}\n"
        "data:\n  class_path: tests.commands.test_profile.Copies\n"
        "  init_args: {delay: 8, batch_size: 5}\n"
    )
    command = ["profile", as_cli(model, tmp_path), "--data", config, "--batches", 2, "--max-window", 7]
    command += ["--tolerance", 0.01, "--out", tmp_path / "out"]
    assert cli.main([str(part) for part in command]) == 0
    data = Copies(delay=8, batch_size=5)
    data.setup()
    tokens = torch.cat([batch[0] for batch in list(data.val_dataloader())[:2]])
    expected = truncation_profile(model.core, model.embedding(tokens), 7)
    with (tmp_path / "out" / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["module"], row["window"]) for row in rows] == [("core", str(k)) for k in range(1, 8)]
    errors = torch.tensor([[float(row[key]) for key in ("max_error", "mean_error")] for row in rows])
    torch.testing.assert_close(errors, torch.stack((expected.max_error, expected.mean_error), 1).float())
    assert all(float(row["max_error"]) <= float(row["tube"]) <= float(row["certified_bound"]) for row in rows)
    assert (tmp_path / "out" / "core.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    certified = certify(model.eval()).required_window(0.01)
    measured = expected.required_window(0.01)
    assert str(certified) in out
    assert ("> 7" if measured is None else f" {measured} ") in out
    assert "10 x" in out


@pytest.mark.parametrize("size", [2.0, 3.0])
def test_the_set_that_the_checkpoint_declares(size: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is taken where it holds for the data."""
    path = save(stable(), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    declare_inputs(checkpoint, {"class_path": f"{stability.__name__}.SupNorm", "init_args": {"bound": 2.0}})
    torch.save(checkpoint, path)
    data = stored(inputs() * size / 2, tmp_path / "inputs.pt")
    command = ["profile", str(path), "--class-path", CLASS, "--data", data, "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert ("guaranteed" in out) == (size == 2.0)
    assert ("These inputs leave the set that the checkpoint declares, |x| <= 2: " in out) == (size == 3.0)


class Slashed(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.cores = nn.ModuleDict({"left/right": nn.GRU(3, 4, batch_first=True)})

    def forward(self, x: Tensor) -> Tensor:
        return self.cores["left/right"](x)[0]


def test_names_with_slashes_make_no_folders(tmp_path: Path) -> None:
    command = ["profile", save(Slashed(), tmp_path), "--class-path", f"{__name__}.Slashed", "--max-window", 3]
    command += ["--data", stored(inputs(), tmp_path / "inputs.pt"), "--out", tmp_path / "out"]
    assert cli.main([str(part) for part in command]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cores.left-right.png", "profile.csv"}


class Copies(CopyMemoryDataModule):
    def __init__(self, delay: int, batch_size: int) -> None:
        super().__init__(delay=delay, train_size=5, valid_size=20, test_size=5, batch_size=batch_size)


def test_errors_take_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[object] = ["profile", save(stable(), tmp_path), "--class-path", CLASS, "--out", tmp_path, "--data"]
    assert "not found" in error_of(capsys, *given, tmp_path / "missing.pt")
    assert "Got list" in error_of(capsys, *given, stored([inputs()], tmp_path / "list.pt"))
    assert "3" in error_of(capsys, *given, stored(torch.zeros(2, 3, 5), tmp_path / "features.pt"))
    good = stored(inputs(), tmp_path / "x.pt")
    assert "must hold for the data" in error_of(capsys, *given, good, "--input-bound", "0.1")
    assert "can be read" in error_of(capsys, *given, tmp_path / "missing.yaml")
    config = tmp_path / "config.yaml"
    for text in ("model: 1", "[1]", "data: {init_args: {}}", "data: 3"):
        config.write_text(text)
        assert "a 'data' section" in error_of(capsys, *given, config)
    config.write_text("data: {class_path: nowhere.Data}")
    assert "nowhere" in error_of(capsys, *given, config)
    config.write_text("a: [")
    assert "can be read" in error_of(capsys, *given, config)
    plain: list[object] = ["profile", save(Plain(), tmp_path), "--class-path", "tests.checkpoint_files.Plain"]
    assert "No recurrence" in error_of(capsys, *plain, "--data", good)


def test_a_recurrence_that_nothing_reaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(Unused(), tmp_path)
    data = stored(inputs(), tmp_path / "x.pt")
    message = error_of(capsys, "profile", path, "--class-path", "tests.commands.test_profile.Unused", "--data", data)
    assert "must make the model call its recurrences" in message


class Unused(Gated):
    def __init__(self) -> None:
        LightningModule.__init__(self)
        self.core = torch.nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_model_of_pytorch_lightning() -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Theirs(other.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.GRU(3, 4, batch_first=True)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.core(batch.inputs if hasattr(batch, "inputs") else batch[0])

    data = LinearSystemDataModule(input_size=3, length=5, train_size=1, valid_size=4, test_size=1)
    (found,) = record(Theirs().eval(), [data], 1).values()
    assert found.shape == (4, 5, 3)


@pytest.mark.slow
def test_nothing_else_reaches_the_screen(tmp_path: Path) -> None:
    path, data = save(stable(), tmp_path), stored(inputs(), tmp_path / "x.pt")
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {class_path: lightning_stable.datamodules.LinearSystemDataModule, "
        "init_args: {input_size: 3, length: 5, train_size: 1, valid_size: 4, test_size: 1}}"
    )
    given = ["profile", path, "--class-path", CLASS, "--data", data, config, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_stable", *map(str, given)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("core is certified stable")
