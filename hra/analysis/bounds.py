"""What the best approximation of low rank must leave out.  Eckart & Young, 1936;
Mirsky, 1960.
"""

from jaxtyping import Float
from torch import Tensor

from hra.analysis.rank import spectrum


def eckart_young(S: Float[Tensor, "m n"], r: int) -> tuple[float, float]:
    """(spectral, Frobenius) norm of S − X for the best X of rank at most r: σ_{r+1} and
    (Σ_{i>r} σ_i²)^½.

    Both are attained by `rank.truncate(S, r)`. Raises ValueError when r is not in 0 …
    min(m, n).
    """
    sigma = spectrum(S)
    if not 0 <= r <= len(sigma):
        raise ValueError(f"r={r} is out of range: 0 to min(m, n) = {len(sigma)}.")
    rest = sigma[r:]
    return (float(rest[0]), float(rest.norm())) if len(rest) else (0.0, 0.0)
