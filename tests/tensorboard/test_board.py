from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_stable.tensorboard import Board, boards_of, writes_to_tensorboard
from tests.helpers import trainer


class Writer:
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args))


def test_only_finite_values_are_written_with_the_prefix(tmp_path: Path) -> None:
    writer = Writer()
    board = Board(writer, str(tmp_path), "mine-")  # type: ignore[arg-type]
    board.scalars({"a": 1.0, "b": float("inf"), "c": float("nan")}, 3)
    board.histograms({"d": torch.ones(2), "e": torch.tensor([1.0, torch.inf])}, 4)
    assert [call[:2] for call in writer.calls] == [("add_scalar", "mine-a"), ("add_histogram", "mine-d")]
    assert not list(tmp_path.iterdir())  # no run is made that nothing is written to


def layouts(folder: Path) -> list[Layout]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    if "custom_scalars__config__" not in events.Tags()["tensors"]:
        return []
    found = events.Tensors("custom_scalars__config__")
    return [Layout.FromString(event.tensor_proto.string_val[0]) for event in found]


def test_the_page_is_written_when_something_is_new_and_the_users_layout_stays(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    logger.experiment.add_custom_scalars({"Mine": {"chart": ["Multiline", ["loss"]]}})
    (board,) = boards_of(trainer(tmp_path, logger=[logger, CSVLogger(tmp_path)]))
    board.show({"one": ["a"]})
    board.show({"one": ["a"]})
    board.show({"two": ["b"], "one": ["a", "c"]})
    board.flush()
    logger.experiment.flush()
    first, last = layouts(tmp_path / "run" / "theory")
    assert [chart.title for chart in first.category[0].chart] == ["one"]
    assert [(c.title, list(c.multiline.tag)) for c in last.category[0].chart] == [
        ("one", ["^a$", "^c$"]),
        ("two", ["^b$"]),
    ]
    (mine,) = layouts(tmp_path / "run")
    assert mine.category[0].title == "Mine"


def test_a_board_belongs_to_its_logger_and_none_to_others(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, version=version) for version in (0, 1)]
    run = trainer(tmp_path, logger=loggers)
    first, second = boards_of(run)
    assert first is not second
    assert boards_of(trainer(tmp_path, logger=loggers[0])) == [first]
    assert writes_to_tensorboard(run)
    for logger in (False, CSVLogger(tmp_path)):
        run = trainer(tmp_path, logger=logger)
        assert boards_of(run) == []
        assert not writes_to_tensorboard(run)
