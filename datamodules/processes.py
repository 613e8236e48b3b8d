"""The processes of a run, among which a data module deals out its data."""

from lightning_stable.bases import LightningDataModule


def processes(data: LightningDataModule) -> tuple[int, int]:
    """Return the index of this process and how many there are: 0 of 1 outside a trainer."""
    return (data.trainer.global_rank, data.trainer.world_size) if data.trainer else (0, 1)
