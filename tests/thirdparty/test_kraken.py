"""A text recognizer: packed lines, two recurrent layers in wrappers, and a network that checkpoints make anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_stable import certify
from lightning_stable.truncation import Windowed
from tests.thirdparty.runs import RATE, TRAINER, callbacks, check, check_reloaded, needs, without_torchvision

pytestmark = needs("kraken")
LETTERS, HEIGHT = "abcde", 16


class Lines(Dataset[dict[str, Any]]):
    """Images of lines in which every letter has a brightness of its own, as kraken's data sets give them."""

    alphabet = dict.fromkeys(LETTERS, 1)
    seg_type, im_mode, codec = "bbox", "L", None

    def encode(self, codec: Any) -> None:
        self.codec = codec

    def no_encode(self) -> None:
        self.codec = None

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        letters = torch.randint(len(LETTERS), (3 + index % 3,), generator=generator)
        line = (letters / len(LETTERS)).repeat_interleave(8).expand(1, HEIGHT, -1)
        text = "".join(LETTERS[letter] for letter in letters)
        image = line + 0.05 * torch.randn(line.shape, generator=generator)
        return {"image": image, "target": text if self.codec is None else self.codec.encode(text)}


def collate(lines: list[dict[str, Any]]) -> dict[str, Any]:
    images, targets = [line["image"] for line in lines], [line["target"] for line in lines]
    widths = torch.tensor([image.shape[-1] for image in images])
    padded = [torch.nn.functional.pad(image, (0, int(widths.max()) - image.shape[-1])) for image in images]
    return {
        "image": torch.stack(padded),
        "seq_lens": widths,
        "target": torch.cat(targets),
        "target_lens": torch.tensor([len(target) for target in targets]),
    }


class Data(L.LightningDataModule):
    use_legacy_polygons = False

    def __init__(self, data_config: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.train_set, self.val_set = Subset(Lines(), range(12)), Subset(Lines(), range(12, 16))

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_set, batch_size=3, collate_fn=collate)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val_set, batch_size=2, collate_fn=collate)


@pytest.fixture(scope="module")
def make() -> Any:
    """A function that makes a recognizer and its data, as kraken does to go on from a trained network."""
    with without_torchvision():
        from kraken.configs import VGSLRecognitionTrainingConfig, VGSLRecognitionTrainingDataConfig
        from kraken.lib.codec import PytorchCodec
        from kraken.lib.vgsl.model import TorchVGSLModel
        from kraken.train.vgsl import VGSLRecognitionModel

    def made() -> tuple[Any, Data]:
        L.seed_everything(0)
        codec = PytorchCodec(LETTERS).c2l
        spec = f"[1,{HEIGHT},0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx12 Lfx10 O1c6]"
        net = TorchVGSLModel(vgsl=spec, codec=codec, model_type=["recognition"])
        net.init_weights()
        config = VGSLRecognitionTrainingConfig(spec=spec, lrate=0.01, quit="fixed", epochs=2, resize="union")
        return VGSLRecognitionModel(config, model=net), Data(VGSLRecognitionTrainingDataConfig())

    return made


def test_recognition(make: Any, tmp_path: Path) -> None:
    model, data = make()
    assert certify(model, input_bound=1.0).rate > RATE
    used = callbacks(tmp_path, "val_metric", "max")
    trainer = L.Trainer(max_epochs=2, callbacks=used, logger=TensorBoardLogger(tmp_path), **TRAINER)
    trainer.fit(model, data)
    check(tmp_path, used, trainer.callback_metrics, val_loss=False)
    best = used[-1].best_model_path
    check_reloaded(best, type(model).load_from_checkpoint(best, weights_only=False))

    model, data = make()
    again = callbacks(tmp_path / "again", "val_metric", "max")
    logger = TensorBoardLogger(tmp_path / "again")
    trainer = L.Trainer(max_epochs=3, callbacks=again, logger=logger, **TRAINER)
    trainer.fit(model, data, ckpt_path=best, weights_only=False)
    check(tmp_path / "again", again, trainer.callback_metrics, val_loss=False)
    assert isinstance(again[1].twin.net.nn.L_4.layer, Windowed)  # kraken's hook has made the network anew
    assert not isinstance(model.net.nn.L_4.layer, Windowed)
