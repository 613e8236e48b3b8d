"""Export: the ``window`` twin of a model as a file that runs without this package."""

from lightning_stable.export._export import Exported, export
from lightning_stable.export.forms import BatchForm, StreamingForm
from lightning_stable.export.metadata import Metadata, read_metadata

__all__ = [
    "BatchForm",
    "Exported",
    "Metadata",
    "StreamingForm",
    "export",
    "read_metadata",
]
