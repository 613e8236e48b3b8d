r"""Quadratic forms in which ``h -> phi(W h + u)`` contracts, with entrywise ``phi`` of slopes between 0 and 1.

For a positive diagonal ``T`` and a positive definite ``P`` with ``2 T > P`` the map contracts in the norm
``sqrt(e^T P e)`` at::

    rate^2 = lambda_max( P^(-1/2) W^T T (2 T - P)^(-1) T W P^(-1/2) )

Two runs that differ by ``e`` differ by ``y = D W e`` one step later, with slopes ``D`` between 0 and 1, so every entry
has ``y_j ((W e)_j - y_j) >= 0``. Add twice the sum of these, weighted by ``T``, to ``y^T P y``::

    y^T P y <= 2 y^T T W e - y^T (2 T - P) y <= (W e)^T T (2 T - P)^(-1) T (W e) <= rate^2 e^T P e

where the second step maximises over ``y`` (the sector condition of robust control, as in Revay & Manchester,
Contracting Implicit Recurrent Neural Networks). ``P = T = I`` gives ``||W||_2``.

How small the rate can be is known. In the units of ``S = T^(1/2)`` let ``M = S W S^-1`` and ``P = S X S``. The
condition says that ``[[rate X, M^T], [M, rate (2 - X)]]`` is positive semidefinite. By Ando's theorem (Structure of
operators with numerical radius one) there is such an ``X`` if and only if the numerical radius of ``M`` is at most
``rate``::

    smallest rate for S = max over unit vectors v of |v^* S W S^-1 v|
                        = max over theta of lambda_max( (exp(i theta) M + exp(-i theta) M^T) / 2 )

So the search is one over the ``d`` entries of ``S``, and ``X`` follows from the matrix equation
``Y + A^T Y^-1 A = 2 I`` with ``A = M / rate``, by cyclic reduction (Meini, Efficient computation of the extreme
solutions of X + A^* X^-1 A = Q). The search may end anywhere: :func:`quadratic_norm` proves what it found.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable.linalg.norms import spectral_norm

# How far above the numerical radius the matrix equation is solved: nearer the form becomes singular.
_SLACK = 1e-3
_REDUCTIONS, _CONVERGED = 20, 1e-12
# Of the search for S: descent steps, angles in [0, pi], and vectors kept for each.
_WARM_UP, _STEPS, _ANGLES, _VECTORS = 8, 30, 16, 4
_LEARNING_RATE = 0.06
_VANISHED = 1e-20
# Scales further apart than exp(2 * 7) would be lost in the rounding of the form.
_LARGEST_LOG_SCALE = 7.0


class QuadraticForm(NamedTuple):
    """``P = diag(scale) form diag(scale)`` and ``T = diag(scale)^2``: the witness of a rate.

    Attributes:
        scale: ``S``, positive, shape ``(units,)``.
        form: ``X``, symmetric and strictly between 0 and 2, shape ``(units, units)``.
    """

    scale: Tensor
    form: Tensor

    @classmethod
    def euclidean(cls, weight: Tensor) -> QuadraticForm:
        """Return ``P = T = I`` for a matrix of this size."""
        return cls(torch.ones_like(weight[0]), _eye(weight))

    def to(self, like: Tensor) -> QuadraticForm:
        """Return the form in the dtype and on the device of a tensor."""
        return QuadraticForm(self.scale.to(like), self.form.to(like))


class Factors(NamedTuple):
    """``A`` and ``B`` with ``||A W B||_2`` the rate of ``W`` in a form, and their inverses, each ``(units, units)``.

    ``A^T A = T (2 T - P)^-1 T`` and ``B B^T = P^-1``.
    """

    left: Tensor
    right: Tensor
    left_inverse: Tensor
    right_inverse: Tensor


def quadratic_factors(witness: QuadraticForm) -> Factors:
    """Return the factors of a valid form, by which matrices are clipped in it, in its dtype."""
    scale, form = witness
    below, above = torch.linalg.cholesky(form), torch.linalg.cholesky(2 * _eye(form) - form)
    left = torch.linalg.solve_triangular(above, scale.diag(), upper=False)
    right = torch.linalg.solve_triangular(below, scale.reciprocal().diag(), upper=False).mT
    return Factors(left, right, above / scale[:, None], below.mT * scale)


def leaky_norm(leak: Tensor, weight: Tensor, multipliers: Tensor, form: Tensor) -> Tensor:
    """Return a bound on the rate of ``e -> A e + y`` with ``y = D V e``, slopes ``D`` between 0 and 1, in a form.

    ``y_j ((V e)_j - y_j) >= 0`` for every entry. Twice the sum of these, weighted by ``T``, is added to
    ``(A e + y)^T X (A e + y)``, and the maximum over ``y`` taken; with ``G = A X + V^T T``::

        rate^2 = lambda_max( X^(-1/2) (A X A + G (2 T - X)^(-1) G^T) X^(-1/2) )

    Args:
        leak: ``A``, shape ``(units,)``.
        weight: ``V``, shape ``(units, units)``, float64.
        multipliers: ``T``, positive, shape ``(units,)``.
        form: ``X``.

    Returns:
        An upper bound; infinite where ``0 < X < 2 T`` cannot be shown.
    """
    below, margin = _checked_cholesky(form)
    above, other = _checked_cholesky(2 * multipliers.diag() - form)
    crossed = leak[:, None] * form + weight.mT * multipliers
    kept = torch.cat((below.mT * leak, torch.linalg.solve_triangular(above, crossed.mT, upper=False)))
    norm = spectral_norm(torch.linalg.solve_triangular(below, kept.mT, upper=False))
    return norm * margin * other * (1 + len(weight) * 2.0**-48)


def form_bounds(form: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest entries of vectors with ``z^T X z <= 1``, and the largest ``sqrt(z^T X z)`` of unit vectors.

    Args:
        form: ``X``, positive definite, shape ``(units, units)``, float64.

    Returns:
        ``sqrt((X^-1)_jj)``, shape ``(units,)``, and ``sqrt(lambda_max(X))``, both rounded up.
    """
    factor, margin = _checked_cholesky(form)
    inverse = torch.linalg.solve_triangular(factor, _eye(form), upper=False)
    return torch.linalg.vector_norm(inverse, dim=0) * margin, torch.linalg.eigvalsh(form)[-1].sqrt() * margin


def quadratic_norm(weight: Tensor, witness: QuadraticForm) -> Tensor:
    """Return an upper bound on the rate of the module docstring; infinite where ``0 < P < 2 T`` cannot be shown.

    Args:
        weight: ``W``, shape ``(units, units)``, float64.
        witness: Any; it is checked here.
    """
    scale, form = witness
    factor, margin = _checked_cholesky(form)
    size = weight.abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
    inner = torch.linalg.solve_triangular(factor, _scaled(weight / size, scale).mT, upper=False).mT
    norm = input_norm(inner, form) * margin * size
    return norm.where((scale > 0).all() & torch.isfinite(scale).all(), torch.inf)


def input_norm(matrix: Tensor, form: Tensor) -> Tensor:
    """``||(2 - X)^(-1/2) V||_2``: the largest ``sqrt(z^T X z)`` for ``z = D V x``, slopes ``D`` and unit vectors ``x``.

    Args:
        matrix: ``V = S U``, shape ``(units, inputs)``, float64.
        form: ``X``.

    Returns:
        An upper bound; infinite where ``X < 2`` cannot be shown.
    """
    factor, margin = _checked_cholesky(2 * _eye(form) - form)
    return spectral_norm(torch.linalg.solve_triangular(factor, matrix, upper=False)) * margin


def dual_norm(matrix: Tensor, form: Tensor) -> Tensor:
    """``||V X^(-1/2)||_2``: the largest ``||V z||_2`` for ``z^T X z = 1``, an upper bound.

    Args:
        matrix: ``V``, shape ``(rows, units)``, float64.
        form: ``X``.
    """
    factor, margin = _checked_cholesky(form)
    return spectral_norm(torch.linalg.solve_triangular(factor, matrix.mT, upper=False)) * margin


def dual_row_norms(matrix: Tensor, form: Tensor) -> Tensor:
    """``max |v_j z|`` over ``z^T X z <= 1`` for every row of ``V``, upper bounds of shape ``(rows,)``.

    Args:
        matrix: ``V``, shape ``(rows, units)``, float64.
        form: ``X``.
    """
    factor, margin = _checked_cholesky(form)
    solved = torch.linalg.solve_triangular(factor, matrix.mT, upper=False)
    norms: Tensor = torch.linalg.vector_norm(solved, dim=0) * margin
    return norms


def quadratic_form(weight: Tensor, rate: float = 0.0) -> QuadraticForm:
    """Return a witness that nearly minimises :func:`quadratic_norm`, or one well inside for ``rate`` if that is larger.

    Args:
        weight: ``W``, shape ``(units, units)``.
        rate: A rate that is good enough. The room between it and the smallest one goes into a form nearer to the
            Euclidean norm.

    Returns:
        The witness in the dtype of ``weight``. Its norm is at most the Euclidean one, up to rounding, if that is
        above ``rate``.
    """
    matrix = weight.detach().to("cpu", torch.float64)
    size = float(matrix.abs().amax())
    if not 0 < size < math.inf:
        return QuadraticForm.euclidean(weight)
    return _found((matrix / size).numpy().tobytes(), len(matrix), rate / size).to(weight)


@lru_cache(maxsize=8)
def _found(weight: bytes, units: int, rate: float) -> QuadraticForm:
    """Remember the last witnesses: the same weights certify one batch of windows after the other."""
    matrix = _matrix(weight, units)
    found, euclidean = _solve(matrix, *_balanced(weight, units), rate), QuadraticForm.euclidean(matrix)
    is_better = quadratic_norm(matrix, found) <= max(rate, float(quadratic_norm(matrix, euclidean)))
    return found if is_better else euclidean


def _solve(weight: Tensor, scale: Tensor, radius: float, rate: float) -> QuadraticForm:
    """Return the middle of all forms for one ``S`` and the larger of ``rate`` and the numerical radius.

    Those forms are convex; the largest solves the equation of the transposed matrix.
    """
    matrix, slack = _scaled(weight, scale), _SLACK
    while slack < 1:
        ends = _extreme_forms(matrix / max(rate, radius * (1 + slack)))
        if ends is not None:
            middle = (ends[0] + ends[1]) / 2
            return QuadraticForm(scale, (middle + middle.mT) / 2)
        slack *= 4  # the radius was a bound from below
    return QuadraticForm.euclidean(weight)


def _extreme_forms(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return ``2 - Y`` and ``Z``, the largest solutions of ``Y + A^T Y^-1 A = 2 I`` and ``Z + A Z^-1 A^T = 2 I``.

    Cyclic reduction squares the distance to both in every round; a factorization fails where the numerical radius of
    ``A`` is above 1, and None is returned.
    """
    smallest, largest, middle = torch.zeros_like(matrix), 2 * _eye(matrix), 2 * _eye(matrix)
    for _ in range(_REDUCTIONS):
        factor, info = torch.linalg.cholesky_ex(middle)
        if info:
            return None
        ahead = torch.linalg.solve_triangular(factor, matrix, upper=False)
        back = torch.linalg.solve_triangular(factor, matrix.mT, upper=False)
        forward, backward = ahead.mT @ ahead, back.mT @ back
        smallest, largest, middle = smallest + forward, largest - backward, middle - forward - backward
        matrix = back.mT @ ahead
        if matrix.abs().amax() < _CONVERGED:
            break
    return smallest, largest


@lru_cache(maxsize=8)
def _balanced(weight: bytes, units: int) -> tuple[Tensor, float]:
    """Remember what was found for the last matrices: the same weights are projected, certified and saved."""
    return _balance(_matrix(weight, units))


def _matrix(weight: bytes, units: int) -> Tensor:
    return torch.frombuffer(bytearray(weight), dtype=torch.float64).view(units, units)


def _balance(weight: Tensor) -> tuple[Tensor, float]:
    """Return ``S`` with a small numerical radius of ``S W S^-1``, and that radius from below.

    Descent on a smooth maximum over angles and eigenvectors, in float32. Blocks of leading eigenvectors are carried
    along, as the scale moves by little at every step.
    """
    matrix = weight.float()
    log_scale = _osborne(matrix)
    vectors = _Vectors(_ANGLES, len(matrix))
    for _ in range(_WARM_UP):
        vectors.refine(_scaled(matrix, log_scale.exp()))
    best, best_log_scale = math.inf, log_scale
    first, second = torch.zeros_like(log_scale), torch.zeros_like(log_scale)
    for step in range(_STEPS):
        values, slopes = vectors.refine(_scaled(matrix, log_scale.exp()))
        radius = float(values.amax())
        if radius < best:
            best, best_log_scale = radius, log_scale
        if not radius > 0:
            break
        weights = torch.softmax((20 + 4 * step) / radius * values.flatten(), 0).view_as(values)
        gradient = (slopes * weights[:, None]).sum((0, 2))
        # Adam, without a state that would outlive the search.
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient.square()
        length = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12 * radius
        move = _LEARNING_RATE * (1 - step / _STEPS) * first / (1 - 0.8 ** (step + 1)) / length
        log_scale = (log_scale - move).clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)
    vectors.interpolate()
    scaled = _scaled(matrix, best_log_scale.exp())
    values = torch.stack([vectors.refine(scaled)[0] for _ in range(_WARM_UP)])
    return best_log_scale.double().exp(), float(values.amax())


class _Vectors:
    """Leading eigenvectors of ``(e M + conj(e) M^T) / 2`` for numbers ``e = exp(i theta)`` in the upper half plane.

    A real matrix has the same eigenvalues in the lower one. The basis is the block, its image and the block before
    (as in Knyazev, Toward the optimal preconditioned eigensolver), and its images serve the next step as well.
    """

    def __init__(self, angles: int, units: int) -> None:
        # Not the generator of the run: a certificate must not change what is trained.
        generator = torch.Generator("cpu").manual_seed(0)
        self.kept = min(_VECTORS, units)
        shape = angles, units, min(3 * _VECTORS, units)
        self.basis = torch.randn(shape, generator=generator, dtype=torch.complex64, device="cpu")
        self.noise = 1e-5 * self.basis
        self._spread(torch.linspace(0, math.pi, angles, dtype=torch.float32, device="cpu"))

    def _spread(self, theta: Tensor) -> None:
        self.theta, self.phases = theta, torch.exp(1j * theta)[:, None, None]

    def refine(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate to the best vectors of the basis (Rayleigh-Ritz), and make the next basis of them.

        Returns:
            Their values, from below, shape ``(angles, vectors)``; and the derivatives of the values by the logarithms
            of the scales of the units, shape ``(angles, units, vectors)``.
        """
        lengths = torch.linalg.vector_norm(self.basis, dim=1, keepdim=True)
        # An image may vanish or repeat the block: what reflections find left of it must not underflow.
        basis = self.basis / lengths.clamp(min=_VANISHED) + self.noise
        basis, kept = torch.linalg.qr(basis).Q, self.kept
        ahead, back = (part * phase for part, phase in zip(_products(matrix, basis), self._pair, strict=True))
        values, rotation = torch.linalg.eigh(basis.mH @ (ahead + back) / 2)
        rotation = rotation[:, :, -kept:]
        block, ahead, back = basis @ rotation, ahead @ rotation, back @ rotation
        self.basis = torch.cat((block, ahead + back, self.basis[:, :, :kept]), 2)[:, :, : basis.shape[2]]
        return values[:, -kept:], (block.conj() * (ahead - back)).real

    @property
    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.phases, self.phases.conj()

    def interpolate(self) -> None:
        """Double the number of angles; those in between begin with the vectors of a neighbour."""
        between = (self.theta[1:] + self.theta[:-1]) / 2
        self.basis, self.noise = (torch.cat((part, part[1:])) for part in (self.basis, self.noise))
        self._spread(torch.cat((self.theta, between)))


def _products(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """``M v`` and ``M^T v`` of complex vectors, shape ``(angles, units, vectors)``, with one real product each."""
    angles, units, kept = vectors.shape
    flat = torch.view_as_real(vectors).permute(1, 0, 2, 3).reshape(units, -1)

    def unflat(image: Tensor) -> Tensor:
        return torch.view_as_complex(image.view(units, angles, kept, 2).permute(1, 0, 2, 3).contiguous())

    return unflat(matrix @ flat), unflat(matrix.mT @ flat)


def _osborne(matrix: Tensor) -> Tensor:
    """Return ``log s`` for which rows and columns of ``S W S^-1`` are about equally long (Osborne's balancing)."""
    squares = matrix.square()
    squares = squares - squares.diag().diag()
    log_scale, tiny = torch.zeros_like(matrix[0]), 1e-12 * squares.sum() + torch.finfo(matrix.dtype).tiny
    for _ in range(10):
        factor = 0.125 * ((squares.sum(0) + tiny).log() - (squares.sum(1) + tiny).log())
        log_scale = (log_scale + factor).clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)
        squares = squares * (2 * factor)[:, None].exp() / (2 * factor).exp()
    return log_scale


def _checked_cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor, and by what a norm of a solution with it can be off; that is infinite without one.

    The factor is that of a matrix within ``size^2 2^-51`` of the given one, and so is what a solution with it solves
    (Higham, Accuracy and Stability of Numerical Algorithms, chapters 8 and 10); relative to the smallest eigenvalue.
    """
    symmetric = (matrix == matrix.mT).all() & torch.isfinite(matrix).all()
    matrix = matrix.where(symmetric, 0)
    least, (factor, info) = torch.linalg.eigvalsh(matrix)[0], torch.linalg.cholesky_ex(matrix)
    relative = len(matrix) ** 2 * 2.0**-50 / least
    holds = symmetric & (info == 0) & (least > 0) & (relative < 0.01)
    return factor.where(holds, _eye(matrix)), (1 + relative).where(holds, torch.inf)


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return scale[:, None] * weight / scale


def _eye(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
