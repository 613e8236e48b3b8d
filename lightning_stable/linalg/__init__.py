"""Norms of recurrent matrices: numbers (:mod:`norms`), and quadratic forms with multipliers (:mod:`quadratic`)."""

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
    quadratic_factors,
    quadratic_form,
    quadratic_norm,
)

__all__ = [
    "PERRON_FLOOR",
    "Factors",
    "QuadraticForm",
    "all_finite",
    "column_norm",
    "diagonal_norm",
    "diagonal_weights",
    "dual_norm",
    "dual_row_norms",
    "form_bounds",
    "inflation",
    "input_norm",
    "perron_weights",
    "quadratic_factors",
    "quadratic_form",
    "quadratic_norm",
    "row_norm",
    "spectral_norm",
    "weighted_row_norm",
]
