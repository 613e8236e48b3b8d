import struct
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.sparse import csc_matrix
from torch import Tensor, nn

from lightning_stable.datamodules import ChoralesDataModule, DownloadError, PaddedBatch, chorales
from tests.datamodules.server import Server
from tests.helpers import trainer

KEYS = ("traindata", "validdata", "testdata")
LENGTHS = {"train": [5, 3, 9, 2, 7], "valid": [4, 6], "test": [8, 1, 3]}
NAMES = {"jsb": "JSB_Chorales", "nottingham": "Nottingham", "musedata": "MuseData", "piano-midi": "Piano_midi"}


def rolls(lengths: list[int], seed: int, dtype: Any = np.uint8) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return [(random.random((length, 88)) < 0.05).astype(dtype) for length in lengths]


def cells(arrays: list[Any]) -> np.ndarray[Any, Any]:
    result = np.empty((1, len(arrays)), dtype=object)
    result[0, :] = arrays
    return result


def content(**changed: Any) -> dict[str, Any]:
    splits = zip(KEYS, LENGTHS.values(), strict=True)
    return {key: cells(rolls(lengths, seed)) for seed, (key, lengths) in enumerate(splits)} | changed


def write(folder: Path, data: dict[str, Any] | None = None, name: str = "JSB_Chorales") -> Path:
    path = folder / f"{name}.mat"
    savemat(path, content() if data is None else data, do_compression=True)
    return path


def ready(folder: Path, **options: Any) -> ChoralesDataModule:
    data = ChoralesDataModule(folder, **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("name", list(NAMES))
def test_inputs_and_targets_are_the_frames_one_apart(tmp_path: Path, name: Any) -> None:
    write(tmp_path, name=NAMES[name])
    data = ready(tmp_path, name=name)
    for seed, split in enumerate(LENGTHS):
        expected = [torch.from_numpy(roll).float() for roll in rolls(LENGTHS[split], seed) if len(roll) > 1]
        for (inputs, targets), roll in zip(data.sequences(split), expected, strict=True):  # type: ignore[arg-type]
            assert torch.equal(inputs, roll[:-1])
            assert torch.equal(targets, roll[1:])
            assert inputs.dtype == targets.dtype == torch.float32


def test_counts(tmp_path: Path) -> None:
    splits = content()
    splits["testdata"][0, 1][0] = np.arange(88) < 30  # the one frame of a sequence that predicts nothing
    write(tmp_path, splits)
    data = ready(tmp_path)
    assert data.frames == {split: sum(lengths) for split, lengths in LENGTHS.items()}
    assert data.sizes == {"train": 5, "valid": 2, "test": 2}
    assert data.max_active == 30
    train = torch.cat([torch.cat((inputs, targets[-1:])) for inputs, targets in data.sequences("train")])
    assert data.key_frequencies == pytest.approx(((train.sum(0) + 1) / (len(train) + 2)).tolist())
    assert 0 < min(data.key_frequencies) < max(data.key_frequencies) < 1


@pytest.mark.parametrize("bucket", [False, True])
def test_batches_hold_every_frame_once(tmp_path: Path, bucket: bool) -> None:
    write(tmp_path)
    data = ready(tmp_path, batch_size=2, bucket=bucket)
    for split, loader in (
        ("train", data.train_dataloader()),
        ("valid", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(isinstance(batch, PaddedBatch) for batch in batches)
        lengths = [length for batch in batches for length in batch.lengths.tolist()]
        assert sorted(lengths) == sorted(n - 1 for n in LENGTHS[split] if n > 1)
        frames = torch.cat([batch.targets[batch.mask] for batch in batches])
        expected = torch.cat([targets for _, targets in data.sequences(split)])  # type: ignore[arg-type]
        assert sorted(frames.tolist()) == sorted(expected.tolist())
        assert not any(batch.targets[~batch.mask].any() for batch in batches)
    assert [batch.lengths.tolist() for batch in data.test_dataloader()] == [[2, 7] if bucket else [7, 2]]


def test_evaluation_has_its_own_batch_size(tmp_path: Path) -> None:
    write(tmp_path)
    data = ready(tmp_path, batch_size=3, eval_batch_size=1)
    assert [len(data.train_dataloader()), len(data.val_dataloader()), len(data.test_dataloader())] == [2, 2, 2]


def test_devices_share_the_sequences(tmp_path: Path) -> None:
    write(tmp_path)
    data = ready(tmp_path, batch_size=1)
    read = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        read.append([batch.lengths.item() for batch in data.val_dataloader()])
    assert read == [[3], [5]]


def test_setup_reads_once_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = ready(tmp_path)
    path.unlink()
    data.setup("test")
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_doubles_and_columns_of_cells_are_read_too(tmp_path: Path) -> None:
    write(tmp_path, content(traindata=cells(rolls([5, 3], 0, np.float64)).T))
    assert ready(tmp_path).sizes["train"] == 2


class Music(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.decoder = nn.RNN(88, 8, batch_first=True), nn.Linear(8, 88)
        self.seen: list[list[int]] = []

    def training_step(self, batch: PaddedBatch, batch_idx: int) -> Tensor:
        assert isinstance(batch, PaddedBatch)
        self.seen.append(batch.lengths.tolist())
        logits = self.decoder(self.core(batch.inputs)[0])
        return nn.functional.binary_cross_entropy_with_logits(logits[batch.mask], batch.targets[batch.mask])

    def validation_step(self, batch: PaddedBatch, batch_idx: int) -> None:
        self.log("frames", float(batch.lengths.sum()), reduce_fx="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("bucket", [False, True])
def test_a_trainer_shuffles_anew_and_goes_on_where_it_was_stopped(tmp_path: Path, bucket: bool) -> None:
    write(tmp_path, content(traindata=cells(rolls(list(range(2, 14)), 0))))
    options: dict[str, Any] = {"batch_size": 2, "bucket": bucket}

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    whole = Music()
    run = trainer(tmp_path, Save(), max_epochs=3)
    run.fit(whole, datamodule=ChoralesDataModule(tmp_path, **options))
    epochs = [whole.seen[start : start + 6] for start in (0, 6, 12)]
    for epoch in epochs:
        assert sorted(length for batch in epoch for length in batch) == list(range(1, 13))
    assert epochs[0] != epochs[1] != epochs[2]
    assert run.callback_metrics["frames"] == sum(LENGTHS["valid"]) - 2
    for step in (2, 8, 12, 17):  # inside an epoch and between two
        resumed, data = Music(), ChoralesDataModule(tmp_path, **options)
        trainer(tmp_path, max_epochs=3).fit(resumed, datamodule=data, ckpt_path=tmp_path / f"{step}.ckpt")
        assert resumed.seen == whole.seen[step:]


def test_a_finished_epoch_leaves_nothing_to_skip(tmp_path: Path) -> None:
    write(tmp_path)
    loader = ready(tmp_path, batch_size=2).train_dataloader()
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"given": 1}
    list(batches)
    assert loader.state_dict() == {"given": 0}


def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    write(tmp_path)
    model = Music()
    trainer(tmp_path, max_epochs=3, overfit_batches=1).fit(model, datamodule=ChoralesDataModule(tmp_path, batch_size=2))
    assert model.seen == [[4, 2]] * 3


@pytest.fixture
def source(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """Serves small files under the names of the real ones."""
    (tmp_path / "server").mkdir()
    for name in NAMES.values():
        server.content[f"{name}.mat"] = write(tmp_path / "server", name=name).read_bytes()
    monkeypatch.setattr(chorales, "URL", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, real in list(chorales.SOURCES.items()):
        if real.sha256 is not None:
            digest = sha256(server.content[real.file]).hexdigest()
            monkeypatch.setitem(chorales.SOURCES, name, chorales.Source(real.file, digest))
    return server


@pytest.mark.parametrize("name", list(NAMES))
def test_download_once_then_offline(source: Server, tmp_path: Path, name: Any) -> None:
    data = ready(None, name=name)  # type: ignore[arg-type]
    assert data.frames["train"] == sum(LENGTHS["train"])
    assert data.path == tmp_path / "cache" / "lightning_stable" / f"{NAMES[name]}.mat"
    source.content.clear()
    assert ready(None, name=name).sizes == data.sizes  # type: ignore[arg-type]
    assert len(source.requests) == 1


def test_a_folder_without_the_file_gets_it(source: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    ready(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["JSB_Chorales.mat"]


def test_a_folder_that_is_not_there_is_not_made(source: Server, tmp_path: Path) -> None:
    """Its name may be mistyped."""
    with pytest.raises(ValueError, match=r"`data_dir` must be a folder that exists; check the path\. Got '.*/mien'"):
        ready(tmp_path / "mien")
    assert not (tmp_path / "mien").exists()
    assert source.requests == []


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("jsb", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
        ("piano-midi", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"),
    ],
)
def test_the_checksums_are_those_of_the_published_files(name: Any, digest: str) -> None:
    assert ChoralesDataModule(name=name).source.sha256 == digest


@pytest.mark.parametrize("name", list(NAMES))
def test_cut_or_wrong_downloads_leave_nothing(source: Server, tmp_path: Path, name: Any) -> None:
    """By their checksums, or by what they hold."""
    file = f"{NAMES[name]}.mat"
    folder = tmp_path / "mine"
    folder.mkdir()
    good = source.content[file]
    for bad in (b"<html>not here</html>", b"", good[: len(good) // 2], None):
        source.cut = 300 if bad is None else None
        source.content[file] = good if bad is None else bad
        with pytest.raises(DownloadError, match=rf"put it at {folder / file}"):
            ready(folder, name=name)
        assert list(folder.iterdir()) == []
    source.cut = None
    source.content[file] = good
    ready(folder, name=name)


def test_other_piano_rolls_under_the_name_of_the_chorales_are_refused(source: Server, tmp_path: Path) -> None:
    source.content["JSB_Chorales.mat"] = write(tmp_path / "server", content(testdata=cells(rolls([4], 9)))).read_bytes()
    (tmp_path / "mine").mkdir()
    with pytest.raises(DownloadError, match="its sha256 should be"):
        ready(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_no_network_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chorales, "URL", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError, match=rf"put it at {tmp_path}/JSB_Chorales\.mat"):
        ready(tmp_path)
    with pytest.raises(ValueError, match=r"`data_dir` must hold JSB_Chorales\.mat.*`prepare_data\(\)`.*Got"):
        ChoralesDataModule(tmp_path).setup()


def test_without_scipy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-stable\[music\]'"):
        ready(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_file(tmp_path: Path, keep: float, compressed: bool) -> None:
    path = tmp_path / "JSB_Chorales.mat"
    savemat(path, content(), do_compression=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=r"JSB_Chorales\.mat"):
        ready(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"traindata": cells(rolls([3], 0)), "validdata": cells(rolls([3], 0))}, "with no testdata"),
        (content(validdata=np.zeros((1, 0), dtype=object)), "empty or wrong validdata"),
        (content(testdata=np.zeros((3, 88))), "empty or wrong testdata"),
        (content(traindata=cells([np.zeros((4, 87))])), r"Got \(4, 87\) in traindata, number 1"),
        (content(traindata=cells([*rolls([5], 0), np.zeros((88, 4))])), r"Got \(88, 4\) in traindata, number 2"),
        (content(testdata=cells([np.zeros((0, 88))])), r"Got \(0, [08]+\) in testdata, number 1"),
        (content(testdata=cells([*rolls([5], 0), "text"])), "in testdata, number 2"),
        (content(testdata=cells([{"a": 1.0}])), "in testdata, number 1"),
        (content(testdata=cells([np.full((3, 88), 2)])), "must be 0 or 1.*testdata, number 1"),
        (content(testdata=cells([np.full((3, 88), np.nan)])), "must be 0 or 1.*testdata, number 1"),
        (content(validdata=cells(rolls([1, 1], 0))), "at least two frames.*Got none in the valid split"),
    ],
)
def test_wrong_contents(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    write(tmp_path, data)
    with pytest.raises(ValueError, match=message) as caught:
        ready(tmp_path)
    assert str(tmp_path / "JSB_Chorales.mat") in str(caught.value)


def test_newer_matlab_file(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    (tmp_path / "JSB_Chorales.mat").write_bytes(header + bytes(400))
    with pytest.raises(ValueError, match="must be a whole MATLAB 5 file"):
        ready(tmp_path)


def test_wrong_split_and_missing_setup(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"`split` must be one of .* Got 'dev'"):
        ready(tmp_path).sequences("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"read by `setup\(\)`"):
        ChoralesDataModule(tmp_path).train_dataloader()


def test_sparse_matrices_are_read_as_the_others(tmp_path: Path) -> None:
    dense = content()
    sparse = {key: cells([csc_matrix(roll.astype("float64")) for roll in value.flat]) for key, value in dense.items()}
    expected = chorales.read_rolls(write(tmp_path, dense))
    found = chorales.read_rolls(write(tmp_path, sparse))
    for split, split_rolls in expected.items():
        assert all(map(torch.equal, split_rolls, found[split]))
    with pytest.raises(ValueError, match=r"must be an array of shape \(frames, 88\)"):
        chorales.read_rolls(write(tmp_path, content(testdata=cells([csc_matrix(np.ones((2, 5)))]))))
    with pytest.raises(ValueError, match=r"must be 0 or 1"):
        chorales.read_rolls(write(tmp_path, content(testdata=cells([csc_matrix(2 * np.ones((2, 88)))]))))
