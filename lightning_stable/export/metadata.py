"""What an exported file says about itself."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lightning_stable import checks
from lightning_stable.files import unpacked
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.inputs.sets import weakest_guarantee
from lightning_stable.version import __version__

PREFIX = "lightning_stable."
_LARGEST = 1 << 24
ARCHIVED = "lightning_stable.json"


@dataclass(frozen=True)
class Metadata:
    """Window and certificate of an exported model, and the tensors its program takes and returns.

    Attributes:
        model: Class of the model.
        form: ``"batch"`` or ``"streaming"``.
        window: Inputs a recurrent layer sees.
        rate: The largest certified rate; None if there is none.
        guarantee: What rate and error bound rest on: ``"guaranteed"``, ``"derived"`` if an input set was read off the
            traced model, ``"data"`` if one was only observed, ``"none"`` without a certificate.
        error_bound: By the name of the recurrent module: at every step its output and that of its window form differ
            by at most this much in the Euclidean norm, given equal admissible inputs, in exact arithmetic, for runs
            from zero or from states up to the certificate's ``state_bound``. None if that is not certified. It does
            not speak of the model's answer, but of what its recurrent modules hand on.
        input_bound: By the name of the layer: its admissible inputs, in words. None where any are, or nothing is known.
        inputs: By name ``{"shape": [...], "dtype": ...}``; a dimension of any size has a name, the others a number.
        outputs: As ``inputs``.
        bound: What the output ``bound`` speaks of: the recurrent ``module``, the ``norm`` of the difference of its
            output, and what it holds for: every run from start states up to ``state_bound`` on any ``inputs_before``
            the window (None for all inputs), with the ``guarantee`` of that. None without such an output.
        version: Version of the package that wrote the file.
    """

    model: str
    form: str
    window: int
    rate: float | None
    guarantee: str
    error_bound: dict[str, float | None]
    input_bound: dict[str, str | None]
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    bound: dict[str, Any] | None = None
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    def to_strings(self) -> dict[str, str]:
        """Return each value as JSON, by names with the prefix ``lightning_stable.``: the properties of an ONNX file."""
        return {PREFIX + name: json.dumps(value) for name, value in self.to_dict().items()}

    @classmethod
    def of(cls, report: StabilityReport, window: int, **others: Any) -> Metadata:
        """Return the certificate in ``report`` as metadata; ``others`` are the other attributes."""
        by_module = {bounds.name: bounds for bounds in report.bounds}
        return cls(
            window=window,
            rate=_finite(report.rate),
            guarantee=weakest_guarantee([report.guarantee, *(bounds.guarantee for bounds in report.bounds)]),
            error_bound={name: _finite(bounds.errors(window)[-1].item()) for name, bounds in by_module.items()},
            input_bound={layer.name: layer.input_bound for layer in report.layers},
            **others,
        )


def read_metadata(path: str | Path) -> Metadata:
    """Return the metadata of an exported file; nothing in it is run.

    Raises:
        ValueError: If the file does not exist, or was not written by :func:`lightning_stable.export.export`.
        ModuleNotFoundError: If it is an ONNX file and onnx is not installed; the extra ``export`` brings it.
    """
    path = checks.path("path", path)
    if not path.is_file():
        raise ValueError(f"`path` must be an exported file. Got {str(path)!r}, not found.")
    entries = _of_archive(path) if zipfile.is_zipfile(path) else _of_onnx(path)
    names = {field.name for field in fields(Metadata)}
    if not {field.name for field in fields(Metadata) if field.default is MISSING} <= entries.keys():
        raise ValueError(f"`path` must be a file that lightning-stable exported. Got {str(path)!r}.")
    return Metadata(**{name: entries[name] for name in names & entries.keys()})


def _of_archive(path: Path) -> Mapping[str, Any]:
    entries: Mapping[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        held = next((name for name in archive.namelist() if name.endswith("/" + ARCHIVED)), None)
        if held is not None:
            entries = json.loads(unpacked(archive, held, _LARGEST))
    return entries


def _of_onnx(path: Path) -> Mapping[str, Any]:
    from lightning_stable.export._onnx import import_onnx

    try:
        properties = import_onnx().load(path, load_external_data=False).metadata_props
    except ModuleNotFoundError:
        raise
    except Exception as error:  # what a file of another kind raises depends on its bytes
        raise ValueError(f"`path` must be an ONNX file or a torch.export archive. Got {str(path)!r}.") from error
    return {p.key.removeprefix(PREFIX): json.loads(p.value) for p in properties if p.key.startswith(PREFIX)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
