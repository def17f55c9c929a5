"""Two adapters at once: do they write the same outputs, and does their sum do what they
do alone?

AWOM and AWOR are those of Bhardwaj et al., 2024, arXiv:2406.13175, §4; A1, A2: (d_out,
d_in), the product (d_in, d_in).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

NORMS = ("fro", "spectral", "normalised")


def awom(
    A1: Float[Tensor, "m n"], A2: Float[Tensor, "m n"], norm: str = "fro"
) -> float:
    """‖A1ᵀ A2‖: Frobenius (the default; the paper's text does not say which, its
    figures fit it), spectral, or "normalised", Frobenius divided by ‖A1‖_F ‖A2‖_F.

    Zero if and only if the outputs of the two are orthogonal whatever their inputs.
    Raises ValueError for another norm, or for "normalised" when an adapter is zero.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} does not exist; there are {', '.join(NORMS)}.")
    A1, A2 = A1.detach().double(), A2.detach().double()
    product = A1.T @ A2
    if norm == "spectral":
        return float(torch.linalg.matrix_norm(product, 2))
    size = float(product.norm())
    if norm == "fro":
        return size
    both = float(A1.norm() * A2.norm())
    if both == 0.0:
        raise ValueError(
            "norm='normalised' divides by ‖A1‖ ‖A2‖, and one of the adapters is zero."
        )
    return size / both


def awor(A1: Float[Tensor, "m n"], A2: Float[Tensor, "m n"]) -> float:
    """1 − ‖A1ᵀ A2‖₀ / n², the share of zeros of the product. A count, no angle: of I
    with itself it is 1 − 1/n.
    """
    product = A1.detach().double().T @ A2.detach().double()
    return 1.0 - float((product != 0).double().mean())


def expected_awor(d_out: int, density1: float, density2: float | None = None) -> float:
    """(1 − p1 p2)^d_out, the mean AWOR of two masks whose entries are drawn
    independently with probabilities p1 and p2.
    """
    p = density1 * (density1 if density2 is None else density2)
    if not 0 <= p <= 1:
        raise ValueError(
            f"densities {density1} and {density2} are out of range: each must lie in "
            "[0, 1]."
        )
    return float((1.0 - p) ** d_out)


def expected_awom(d_out: int, d_in: int, density: float, sigma: float = 1.0) -> float:
    """(d_out)^½ d_in p σ², the root of E‖A1ᵀ A2‖_F² for independent Bernoulli(p) masks
    with values of mean 0, deviation σ.
    """
    return float(d_out**0.5 * d_in * density * sigma**2)


def cross_terms(
    W: Float[Tensor, "m n"],
    A1: Float[Tensor, "m n"],
    A2: Float[Tensor, "m n"],
    x: Float[Tensor, "*tokens n"],
    activation: Callable[[Tensor], Tensor],
    *,
    leading: bool = False,
) -> Float[Tensor, "*tokens m"]:
    """What the two adapters do together beyond what each does alone, output by output.

    With z = x Wᵀ, a = x A1ᵀ, b = x A2ᵀ and an elementwise activation σ:

        σ(z + a + b) − σ(z + a) − σ(z + b) + σ(z)

    Where σ has two derivatives this is a ⊙ b ⊙ ∫∫ σ″(z + s a + t b) ds dt over the unit
    square; `leading` gives the first term of its series, σ″(z) ⊙ a ⊙ b, instead (zero
    for a piecewise linear σ, whose cross terms come from its kinks). Both are products
    of *outputs*; no matrix product of A1 and A2 occurs. Computed in float64.
    """
    W, A1, A2, x = (t.detach().double() for t in (W, A1, A2, x))
    z, a, b = (x @ M.T for M in (W, A1, A2))
    if leading:
        return _curvature(activation, z) * a * b
    # in this order it is 0, not a rounding, where a or b is
    with_b, without = activation(z + a + b) - activation(z + b), activation(z + a)
    return with_b - (without - activation(z))


def _curvature(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """σ″(z) of an elementwise activation, by differentiating twice."""
    with torch.enable_grad():
        z = z.requires_grad_()
        d = activation(z)
        for _ in range(2):
            if not d.requires_grad:  # what is constant has slope 0
                return torch.zeros_like(d)
            (d,) = torch.autograd.grad(
                d.sum(), z, create_graph=True, materialize_grads=True
            )
    return d.detach()


def interference(
    W: Float[Tensor, "m n"],
    A1: Float[Tensor, "m n"],
    A2: Float[Tensor, "m n"],
    x: Float[Tensor, "*tokens n"],
    activation: Callable[[Tensor], Tensor],
) -> float:
    """How far the effect of both is from the sum of the two effects, relative to that
    sum, on the inputs `x`.

    With f(V) = activation(x Vᵀ) and e(A) = f(W + A) − f(W):

        ‖e(A1 + A2) − e(A1) − e(A2)‖ / ‖e(A1) + e(A2)‖

    the norm of the `cross_terms` above. Zero for an affine activation, and for every
    elementwise one when no output row of A1 is one of A2. Computed in float64.
    """
    gap = float(cross_terms(W, A1, A2, x, activation).norm())
    W, A1, A2, x = (t.detach().double() for t in (W, A1, A2, x))
    start = activation(x @ W.T)
    one, two = (activation(x @ (W + A).T) - start for A in (A1, A2))
    alone = float((one + two).norm())
    return 0.0 if gap == 0.0 else gap / alone if alone else float("inf")
