"""Stability: :func:`certify` reports a model's rates, :func:`project_` lowers them, input sets bound its inputs."""

from lightning_stable.stability.certify import certify
from lightning_stable.stability.inputs.sets import (
    ActiveEntries,
    Box,
    FiniteSet,
    InputBound,
    InputSet,
    L2Ball,
    LayerNormOutput,
    Recorded,
    SupNorm,
)
from lightning_stable.stability.inputs.watch import record_inputs
from lightning_stable.stability.projection.project import Constraint, project_
from lightning_stable.stability.report import LayerCertificate, StabilityReport
from lightning_stable.stability.time_scales import spread_time_scales_
from lightning_stable.stability.tube import certify_windows

__all__ = [
    "ActiveEntries",
    "Box",
    "Constraint",
    "FiniteSet",
    "InputBound",
    "InputSet",
    "L2Ball",
    "LayerCertificate",
    "LayerNormOutput",
    "Recorded",
    "StabilityReport",
    "SupNorm",
    "certify",
    "certify_windows",
    "project_",
    "record_inputs",
    "spread_time_scales_",
]
