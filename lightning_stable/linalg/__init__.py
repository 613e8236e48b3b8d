"""Norms of recurrent matrices, and sequences of affine maps.

Norms are numbers (:mod:`norms`), and quadratic forms with multipliers (:mod:`quadratic`); sequences are evaluated in
pieces side by side (:mod:`scan`).
"""

from lightning_stable.linalg.norms import (
    PERRON_FLOOR,
    all_finite,
    column_norm,
    diagonal_norm,
    diagonal_weights,
    inflation,
    perron_weights,
    row_norm,
    spectral_norm,
    weighted_row_norm,
)
from lightning_stable.linalg.quadratic import (
    Factors,
    QuadraticForm,
    dual_norm,
    dual_row_norms,
    form_bounds,
    input_norm,
    leaky_norm,
    quadratic_factors,
    quadratic_form,
    quadratic_norm,
)
from lightning_stable.linalg.scan import composed, linear_scan

__all__ = [
    "PERRON_FLOOR",
    "Factors",
    "QuadraticForm",
    "all_finite",
    "column_norm",
    "composed",
    "diagonal_norm",
    "diagonal_weights",
    "dual_norm",
    "dual_row_norms",
    "form_bounds",
    "inflation",
    "input_norm",
    "leaky_norm",
    "linear_scan",
    "perron_weights",
    "quadratic_factors",
    "quadratic_form",
    "quadratic_norm",
    "row_norm",
    "spectral_norm",
    "weighted_row_norm",
]
