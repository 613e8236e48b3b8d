"""A logger that keeps its values."""

from typing import Any

from lightning.pytorch.loggers import Logger


class Values(Logger):
    """Keeps the values whose names start with ``prefix``, with their steps."""

    name, version = "values", "0"

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.prefix = prefix
        self.all: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        kept = {name: value for name, value in metrics.items() if name.startswith(self.prefix)}
        if kept:
            self.all.append((step, kept))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def lines(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.all if name in values}

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.all]
