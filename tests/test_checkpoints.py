"""Models come back from checkpoints exactly, and nothing in a checkpoint is run."""

from __future__ import annotations

import os
import random
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_stable import callbacks
from lightning_stable.callbacks import StabilityProjectionCallback, StateGradientCallback
from lightning_stable.checkpoints import (
    bounds_in_training,
    declare_inputs,
    declared_inputs,
    import_class,
    load_model,
    read_checkpoint,
    read_tensor,
    recorded_inputs,
    recorded_reports,
)
from lightning_stable.inert import unread_in
from lightning_stable.models import CoreModel, LanguageModel, MusicModel, SequenceRegressor, SlotTagger
from tests.checkpoint_files import CLASS, Configured, Gated, as_cli, save
from tests.helpers import equal, sequences, trainer, weights


class Attack:
    """Its pickle makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_models_of_the_package_need_no_class_path(window: int | None, tie_weights: bool, tmp_path: Path) -> None:
    model = LanguageModel(7, hidden_size=5, embedding_size=5, window=window, tie_weights=tie_weights)
    loaded = load_model(read_checkpoint(as_cli(model, tmp_path)))
    assert type(loaded) is LanguageModel
    assert not loaded.training
    assert equal(loaded.state_dict(), model.state_dict())
    tokens = torch.randint(7, (2, 9))
    assert torch.equal(loaded(tokens)[0], model.eval()(tokens)[0])


def test_a_checkpoint_of_lightning_cli(tmp_path: Path) -> None:
    cli = LightningCLI(
        args=[
            "--model=lightning_stable.models.MusicModel",
            "--model.keys=4",
            "--model.hidden_size=5",
            "--model.cell=gru",
        ],
        run=False,
        save_config_callback=None,
        trainer_defaults={"logger": False, "accelerator": "cpu", "default_root_dir": tmp_path},
    )
    cli.trainer.strategy.connect(cli.model)
    cli.trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_model(read_checkpoint(tmp_path / "model.ckpt"))
    assert isinstance(loaded, MusicModel)
    assert equal(weights(loaded), weights(cli.model))


def test_a_class_of_the_user(tmp_path: Path) -> None:
    model = Gated(4, num_layers=2)
    loaded = load_model(read_checkpoint(save(model, tmp_path)), CLASS)
    assert isinstance(loaded, Gated)
    assert equal(weights(loaded), weights(model))


def test_arguments_in_one(tmp_path: Path) -> None:
    model = Configured({"hidden_size": 6})
    loaded = load_model(read_checkpoint(save(model, tmp_path)), "tests.checkpoint_files.Configured")
    assert equal(weights(loaded), weights(model))


def test_arguments_the_checkpoint_lacks(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(Gated(4, num_layers=2), tmp_path, hyper_parameters={"num_layers": 1, "x": 1}))
    with pytest.raises(ValueError, match=r"`--set NAME=VALUE` must complete .* Gated.*hidden_size"):
        load_model(checkpoint, CLASS)
    assert load_model(checkpoint, CLASS, {"hidden_size": 4, "num_layers": 2}).core.num_layers == 2


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    model = Gated(4).double()
    with torch.no_grad():
        model.core.weight_hh_l0.fill_(1 / 3)
    loaded = load_model(read_checkpoint(save(model, tmp_path)), CLASS)
    assert equal(weights(loaded), weights(model))


def test_a_class_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from lightning.pytorch import LightningModule\nclass Mine(LightningModule): ..."
    (tmp_path / "only_here.py").write_text(source)
    assert import_class("only_here.Mine").__name__ == "Mine"


@pytest.mark.parametrize("path", ["no_such_package.Model", "Model", "", "tests.checkpoint_files.Nothing"])
def test_a_class_that_cannot_be_imported(path: str) -> None:
    with pytest.raises(ValueError, match="`--class-path` must be a class that can be imported"):
        import_class(path)


def test_a_class_of_another_kind() -> None:
    with pytest.raises(ValueError, match="must be a subclass of LightningModule, of lightning"):
        import_class("torch.nn.GRU")


@pytest.mark.parametrize("name", [CLASS, "lightning_stable.models.build_core", "lightning_stable.models.os.Model", 3])
def test_a_checkpoint_chooses_no_other_class(name: Any, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(Gated(4), tmp_path, hyper_parameters={"_class_path": name}))
    with pytest.raises(
        ValueError, match=r"`--class-path PACKAGE.MODULE.CLASS` must name .* Got a checkpoint that names"
    ):
        load_model(checkpoint)


def test_its_instantiator_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(7, hidden_size=5, embedding_size=5)
    path = as_cli(model, tmp_path)
    checkpoint = read_checkpoint(path)
    checkpoint["hyper_parameters"]["_instantiator"] = "tests.test_checkpoints.forbidden"
    assert isinstance(load_model(checkpoint), LanguageModel)


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize("where", ["state_dict", "hyper_parameters", "callbacks", "extra"])
def test_a_pickle_is_not_executed(where: str, tmp_path: Path) -> None:
    held = {"x": Attack(tmp_path / "attacked"), "hidden_size": 4}
    path = save(Gated(4), tmp_path, **{where: held})
    if where == "state_dict":
        with pytest.raises(ValueError, match=r"The weights must be tensors.* Got .*mkdir.*--trust"):
            read_checkpoint(path)
    else:
        checkpoint = read_checkpoint(path)
        assert unread_in(checkpoint) == [f"{os.mkdir.__module__}.mkdir"]
        assert equal(load_model(checkpoint, CLASS).state_dict(), Gated(4).state_dict())
    assert not (tmp_path / "attacked").exists()


def test_the_old_format_with_code_has_one_way_out(tmp_path: Path) -> None:
    content = {"state_dict": {}, "x": Attack(tmp_path / "attacked")}
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"tensors and plain values only.* Got .*mkdir.*--trust"):
        read_checkpoint(tmp_path / "old.ckpt")
    assert not (tmp_path / "attacked").exists()


class Settings:
    """A user's configuration object."""

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size


class OfSettings(Gated):
    def __init__(self, settings: Any, num_layers: int = 1) -> None:
        super().__init__(settings if isinstance(settings, int) else settings.hidden_size, num_layers)
        self.save_hyperparameters()


class Reads(Gated):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["extra"].hidden_size == 3


def test_hyperparameters_of_any_class(tmp_path: Path) -> None:
    path, given = save(OfSettings(Settings(4)), tmp_path), f"{__name__}.OfSettings"
    with pytest.raises(
        ValueError, match=rf"must be plain values.* Got {__name__}.Settings in `settings`; .*`--set settings=.*--trust"
    ):
        load_model(read_checkpoint(path), given)
    for model in (
        load_model(read_checkpoint(path), given, {"settings": 4}),
        load_model(read_checkpoint(path, trust=True), given),
    ):
        assert equal(model.state_dict(), OfSettings(Settings(4)).state_dict())


def test_what_is_not_read_is_named_where_it_is_missed(tmp_path: Path) -> None:
    path = save(Gated(4), tmp_path, hyper_parameters=Settings(4))
    with pytest.raises(ValueError, match=r"`--set NAME=VALUE` must complete .*--trust"):
        load_model(read_checkpoint(path), CLASS)
    path = save(Reads(4), tmp_path, extra=Settings(3))
    with pytest.raises(ValueError, match=r"`on_load_checkpoint` of Reads must do without .*Settings.*--trust"):
        load_model(read_checkpoint(path), f"{__name__}.Reads")
    load_model(read_checkpoint(path, trust=True), f"{__name__}.Reads")


def test_trust_needs_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Gated(4), tmp_path, extra=Settings(3))
    monkeypatch.delattr(sys.modules[__name__], "Settings")
    with pytest.raises(ValueError, match=r"must be importable under the names .*without `--trust`.* Got .*Settings"):
        read_checkpoint(path, trust=True)
    assert unread_in(read_checkpoint(path)) == [f"{__name__}.Settings"]
    with pytest.raises(TypeError, match="`trust` must be True or False"):
        read_checkpoint(path, trust=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        LanguageModel(7, hidden_size=5, embedding_size=5),
        MusicModel(4, hidden_size=5),
        SequenceRegressor(2, 1, hidden_size=5),
        SlotTagger(7, ["O", "B-x", "I-x"], hidden_size=5, embedding_size=5),
    ],
)
def test_our_own_models_say_what_they_are(model: CoreModel, tmp_path: Path) -> None:
    loaded = load_model(read_checkpoint(save(model, tmp_path)))
    assert type(loaded) is type(model)
    assert equal(loaded.state_dict(), model.state_dict())


class Ours(LanguageModel):
    """A subclass is another class."""


@pytest.mark.parametrize("model", [Ours(7, hidden_size=5, embedding_size=5), Gated(4)])
def test_the_class_path_to_add(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{type(model).__module__}.{type(model).__name__}"
    run = trainer(tmp_path, *([StateGradientCallback()] if isinstance(model, Gated) else []))
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = read_checkpoint(tmp_path / "model.ckpt")
    monkeypatch.setattr("lightning_stable.checkpoints.import_module", forbidden)
    with pytest.raises(ValueError, match=rf"If that is its class, add: --class-path {re.escape(path)}$"):
        load_model(checkpoint)


@pytest.mark.parametrize("callback", [c for c in callbacks.__all__ if c.endswith(("Callback", "Checkpoint"))])
def test_every_callback_records_the_class(callback: str, tmp_path: Path) -> None:
    kind = getattr(callbacks, callback)
    run = trainer(tmp_path, kind(window=2) if callback.startswith(("Feed", "TruncationPen")) else kind())
    run.strategy.connect(Gated(4))
    checkpoint: dict[str, Any] = {}
    kind.on_save_checkpoint(run.callbacks[0], run, Gated(4), checkpoint)
    with pytest.raises(ValueError, match=f"--class-path {CLASS}"):
        load_model(checkpoint)


@pytest.mark.parametrize("path", ["__main__.Model", "module.function.<locals>.Model"])
def test_a_class_that_no_path_leads_to(path: str) -> None:
    with pytest.raises(ValueError, match="put the class at the top level of a module of its own"):
        load_model({"lightning_stable_class_path": path})


@pytest.mark.parametrize("path", ["; rm -rf", "Model", "", ["a"], "\x1b[2J.x"])
def test_no_advice_of_a_file_is_repeated_that_is_no_path(path: Any) -> None:
    with pytest.raises(ValueError, match="must name the class") as error:
        load_model({"lightning_stable_class_path": path})
    assert "add: --class-path" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_class_of_pytorch_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning")
    monkeypatch.chdir(tmp_path)
    source = "from pytorch_lightning import LightningModule\nclass Theirs(LightningModule): ..."
    (tmp_path / "of_the_other_package.py").write_text(source)
    assert import_class("of_the_other_package.Theirs").__name__ == "Theirs"


def test_a_plain_module_is_in_no_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"a plain nn.Module. Name the LightningModule that holds it.*certify on it"):
        import_class("torch.nn.GRU")


def test_damaged_files(tmp_path: Path) -> None:
    whole = save(Gated(4), tmp_path).read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[100:], b"\x80\x02garbage"):
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"must be one that torch.save wrote, and whole. Got .*damaged.ckpt"):
            read_checkpoint(path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not found"):
        read_checkpoint(tmp_path / "missing.ckpt")
    with pytest.raises(ValueError, match="a folder"):
        read_checkpoint(tmp_path)
    for content in (torch.zeros(3), {"weights": torch.zeros(3)}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="Got no 'state_dict'"):
            read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit(change: str, tmp_path: Path) -> None:
    state = Gated(4).state_dict()
    if change == "missing":
        del state["core.bias_hh_l0"]
    else:
        state["core.other" if change == "unexpected" else "core.bias_hh_l0"] = torch.zeros(2)
    checkpoint = read_checkpoint(save(Gated(4), tmp_path, state_dict=state))
    with pytest.raises(ValueError, match="The weights must fit Gated") as error:
        load_model(checkpoint, CLASS)
    assert "\n" not in str(error.value)


def test_what_a_projection_callback_knows(tmp_path: Path) -> None:
    run, model = trainer(tmp_path, StabilityProjectionCallback(0.9)), Gated(4)
    run.fit(model, sequences())
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = read_checkpoint(tmp_path / "model.ckpt")
    seen = sequences().dataset.data.flatten(0, 1)
    (name, found), *others = recorded_inputs(checkpoint).items()
    assert (name, others, found.guarantee) == ("core", [], "data")
    box = found.box(3, seen)
    torch.testing.assert_close(box.low, seen.amin(0))
    torch.testing.assert_close(box.high, seen.amax(0))
    assert list(bounds_in_training(checkpoint)) == ["core.l0"]
    assert recorded_inputs({}) == bounds_in_training({}) == {}
    (report,) = recorded_reports(checkpoint)
    assert report["rate"] <= 0.9
    # Neither needs what is not read.
    torch.save(checkpoint | {"hyper_parameters": Settings(4)}, tmp_path / "model.ckpt")
    again = read_checkpoint(str(tmp_path / "model.ckpt"))
    assert recorded_reports(again) == [report]
    assert torch.equal(recorded_inputs(again)["core"].box(3, seen).high, box.high)


def test_declared_inputs() -> None:
    checkpoint: dict[str, Any] = {}
    assert declared_inputs(checkpoint) is None
    declare_inputs(checkpoint, {"class_path": "lightning_stable.stability.ActiveEntries", "init_args": {"count": 4}})
    found = declared_inputs(checkpoint)
    assert found is not None
    assert (found.describe(), found.guarantee) == ("at most 4 entries active in [0, 1]", "guaranteed")


@pytest.mark.parametrize(
    "declared",
    [
        {"class_path": "os.mkdir", "init_args": {"path": "there"}},
        {"class_path": "lightning_stable.stability.ActiveEntries", "init_args": {"count": -1}},
        {"class_path": "lightning_stable.stability.Box"},
        {"init_args": {}},
        {"class_path": "lightning_stable.stability.Box", "init_args": 3},
        "ActiveEntries",
        3,
    ],
)
def test_declared_inputs_that_are_none(declared: Any) -> None:
    with pytest.raises(ValueError, match=r"The input set in a checkpoint must be one of .*ActiveEntries.* Got "):
        declared_inputs({"lightning_stable_inputs": declared})


def test_a_flipped_bit_never_loads_other_weights(tmp_path: Path) -> None:
    path = save(Gated(4), tmp_path)
    whole, weights_then = path.read_bytes(), read_checkpoint(path)["state_dict"]
    generator = random.Random(0)
    messages = []
    # Half of the flips hit the stored weights themselves, which are found by their bytes.
    start = whole.index(weights_then["core.weight_hh_l0"].numpy().tobytes())
    ranges = [(0, len(whole)), (start, start + weights_then["core.weight_hh_l0"].nbytes)]
    for flip in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(*ranges[flip % 2])] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)["state_dict"]
        except ValueError as error:
            messages.append(str(error))
        else:
            assert equal(found, weights_then)
    assert len(messages) >= 30
    assert all(re.fullmatch(r"The checkpoint must be .*model\.ckpt.*", message) for message in messages)


@pytest.mark.parametrize("where", ["data.pkl", "data/0", "version"])
def test_every_member_of_an_archive_is_checked(where: str, tmp_path: Path) -> None:
    torch.save(torch.arange(50.0), tmp_path / "x.pt")
    damaged = bytearray((tmp_path / "x.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/{where}"))
        damaged[damaged.index(archive.read(name))] ^= 1
    (tmp_path / "x.pt").write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"The file of `--data` must be one that torch.save wrote, and whole. Got .*x.pt"
    ):
        read_tensor(tmp_path / "x.pt", "--data")


def test_files_from_before_archives_have_no_checksums(tmp_path: Path) -> None:
    torch.save(torch.arange(5.0), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensor(tmp_path / "old.pt", "--data"), torch.arange(5.0))
