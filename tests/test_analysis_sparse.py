"""Analysis of sparse adapters: the identities, the closed forms, and the
counter-examples to the printed claims.
"""

import pytest
import torch

from hra.analysis import bounds, orthogonality, rank

ACTIVATIONS = [
    torch.relu,
    torch.nn.functional.gelu,
    torch.nn.functional.silu,
    torch.tanh,
]


def draw(seed, *shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def bernoulli(seed, m, n, p):
    return torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < p


@pytest.mark.parametrize("seed", range(12))
def test_random_values_attain_the_structural_rank(seed):
    mask = bernoulli(seed, 24, 31, 0.02 + 0.01 * seed)
    top = rank.structural_rank(mask)
    assert torch.linalg.matrix_rank(draw(seed, 24, 31) * mask) == top
    assert (
        torch.linalg.matrix_rank(mask.double()) <= top
    )  # the mask's own rank may be smaller
    assert top <= min(int(mask.any(1).sum()), int(mask.any(0).sum()))


def test_structural_rank_of_known_masks():
    rows = torch.zeros(16, 20, dtype=torch.bool)
    rows[::4] = True
    assert (
        rank.structural_rank(rows) == 4 and torch.linalg.matrix_rank(rows.double()) == 1
    )
    assert (
        rank.structural_rank(torch.eye(7)) == 7
        and rank.structural_rank(torch.zeros(3, 4)) == 0
    )
    with pytest.raises(ValueError, match="matrix"):
        rank.structural_rank(torch.ones(4))


@pytest.mark.parametrize("seed", range(4))
def test_eckart_young_in_both_norms_and_no_factors_beat_it(seed):
    S = draw(seed, 12, 9) * bernoulli(seed, 12, 9, 0.4)
    for r in (0, 1, 4, 9):
        rest = S - rank.truncate(S, r)
        spectral, frobenius = bounds.eckart_young(S, r)
        assert spectral == pytest.approx(
            float(torch.linalg.matrix_norm(rest, 2)), abs=1e-9
        )
        assert frobenius == pytest.approx(float(rest.norm()), abs=1e-9)
    spectral, frobenius = bounds.eckart_young(S, 3)
    B = draw(seed + 10, 12, 3)
    for _ in range(20):  # alternating least squares: the best factors there are
        A = torch.linalg.lstsq(B, S).solution
        B = torch.linalg.lstsq(A.T, S.T).solution.T
    assert (S - B @ A).norm() >= frobenius - 1e-9 and torch.linalg.matrix_norm(
        S - B @ A, 2
    ) >= spectral - 1e-9
    with pytest.raises(ValueError, match="0 to min"):
        bounds.eckart_young(S, 10)


def test_the_printed_bound_is_no_frobenius_bound():
    S = torch.eye(6, dtype=torch.float64)
    spectral, frobenius = bounds.eckart_young(S, 2)
    assert spectral == 1.0 and frobenius**2 == pytest.approx(
        4.0
    )  # σ²_{r+1} = 1 is far below


def test_awom_norms():
    A, B = draw(0, 8, 5), draw(1, 8, 5)
    product = A.T @ B
    assert orthogonality.awom(A, B) == pytest.approx(float(product.norm()))
    assert orthogonality.awom(A, B, "spectral") == pytest.approx(
        float(torch.linalg.svdvals(product)[0])
    )
    assert orthogonality.awom(3 * A, B, "normalised") == pytest.approx(
        orthogonality.awom(A, B, "normalised")
    )
    for norm in orthogonality.NORMS:  # the two orders give transposed products
        assert orthogonality.awom(A, B, norm) == pytest.approx(
            orthogonality.awom(B, A, norm)
        )
    assert 0 <= orthogonality.awom(A, B, "normalised") <= 1
    with pytest.raises(ValueError, match="spectral"):
        orthogonality.awom(A, B, "nuclear")
    with pytest.raises(ValueError, match="zero"):
        orthogonality.awom(A, 0 * B, "normalised")


def test_expected_awor_and_awom_of_bernoulli_masks():
    m, n, p = 128, 64, 0.05
    pairs = [
        (
            draw(s, m, n) * bernoulli(s, m, n, p),
            draw(99 + s, m, n) * bernoulli(99 + s, m, n, p),
        )
        for s in range(30)
    ]
    mean = sum(orthogonality.awor(a, b) for a, b in pairs) / 30
    assert mean == pytest.approx(orthogonality.expected_awor(m, p), rel=0.01)
    square = sum(orthogonality.awom(a, b) ** 2 for a, b in pairs) / 30
    assert square**0.5 == pytest.approx(orthogonality.expected_awom(m, n, p), rel=0.05)
    assert orthogonality.expected_awor(10, 0.5, 0.0) == 1.0
    with pytest.raises(ValueError, match="out of range"):
        orthogonality.expected_awor(10, 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_product_has_at_most_the_sum_over_rows_of_non_zeros(seed):
    a, b = bernoulli(seed, 20, 16, 0.1), bernoulli(seed + 50, 20, 16, 0.1)
    A, B = draw(seed, 20, 16) * a, draw(seed + 7, 20, 16) * b
    assert (1 - orthogonality.awor(A, B)) * 16**2 <= float(
        (a.sum(1) * b.sum(1)).sum()
    ) + 1e-9


def test_non_overlapping_struct_masks_obey_the_corrected_lemma():
    masks = []
    for offset in (0, 1):
        M = torch.zeros(16, 16, dtype=torch.bool)
        M[offset::8] = True
        masks.append(M.fill_diagonal_(True))
    A, B = draw(0, 16, 16) * masks[0], draw(1, 16, 16) * masks[1]
    dense = float(masks[0].double().mean() + masks[1].double().mean())
    assert (
        1 - orthogonality.awor(A, B) <= dense < orthogonality.awor(A, B)
    )  # printed without the "1 −", it is false


def test_awor_is_no_angle():
    eye = torch.eye(50)
    assert orthogonality.awor(eye, eye) == pytest.approx(1 - 1 / 50)
    assert orthogonality.awom(eye, eye, "normalised") > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_disjoint_output_rows_add_exactly(activation):
    W, A, B, x = draw(0, 10, 8), draw(1, 10, 8), draw(2, 10, 8), draw(3, 40, 8)
    A[::2], B[1::2] = 0, 0
    assert orthogonality.interference(W, A, B, x, activation) == 0.0
    C, D = draw(1, 10, 8), draw(2, 10, 8)
    C[:, ::2], D[:, 1::2] = 0, 0  # disjoint columns are not enough
    assert orthogonality.interference(W, C, D, x, activation) > 1e-3


def test_orthogonal_outputs_are_not_enough():
    A = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) / 2**0.5
    B = torch.tensor([[0.0, 1.0], [0.0, -1.0]]) / 2**0.5
    assert orthogonality.awom(A, B) == 0.0
    assert (
        orthogonality.interference(
            torch.zeros(2, 2), A, B, torch.ones(1, 2), torch.relu
        )
        > 0.3
    )
    assert (
        orthogonality.interference(
            torch.zeros(2, 2), A, B, torch.ones(1, 2), lambda z: z
        )
        < 1e-12
    )
    assert (
        orthogonality.interference(
            torch.ones(2, 2), 0 * A, 0 * B, torch.ones(1, 2), torch.relu
        )
        == 0.0
    )


SMOOTH = {
    torch.nn.functional.gelu: 0.8,
    torch.nn.functional.silu: 0.5,
    torch.tanh: 0.77,
}


@pytest.mark.parametrize("activation", SMOOTH)
def test_cross_terms_are_products_of_outputs(activation):
    """Entry by entry at most max|σ″| |a| |b|; for small adapters σ″(z) a b, up to third
    order; zero where one of the outputs is.
    """
    W, A, B, x = draw(0, 10, 8), draw(1, 10, 8), draw(2, 10, 8), draw(3, 40, 8)
    a, b = x @ A.T, x @ B.T
    cross = orthogonality.cross_terms(W, A, B, x, activation)
    assert cross.shape == (40, 10)
    assert (cross.abs() <= SMOOTH[activation] * (a * b).abs()).all()
    B[3], t = 0, 1e-3
    cross = orthogonality.cross_terms(W, A, B, x, activation)
    assert (cross[:, 3] == 0).all() and (cross[:, :3] != 0).any(0).all()
    small = orthogonality.cross_terms(W, t * A, t * B, x, activation)
    first = orthogonality.cross_terms(W, t * A, t * B, x, activation, leading=True)
    assert first.norm() > 0.01 * t**2 * (a * b).norm()
    assert (small - first).norm() < 0.05 * first.norm()


def test_the_second_derivative_is_the_activations_own():
    z, one = draw(0, 50, 1), torch.ones(1, 1).double()
    lead = orthogonality.cross_terms
    tanh = lead(one, one, one, z, torch.tanh, leading=True)
    u = z.tanh()
    assert torch.allclose(tanh, -2 * u * (1 - u**2) * z * z)
    for flat in (torch.relu, lambda v: v, lambda v: 3 * v + 1, torch.ones_like):
        assert not lead(one, one, one, z, flat, leading=True).any()
    # the cross terms of a piecewise linear σ come from its kink: at z = 1, a = −1/2 and
    # b = −3/4 it is crossed by both together alone, by a quarter
    crossed = lead(one, -one / 2, -3 * one / 4, one, torch.relu)
    assert crossed.item() == 0.25
    assert lead(2 * one, -one / 2, -3 * one / 4, one, torch.relu).item() == 0.0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_interference_is_the_relative_size_of_the_cross_terms(activation):
    W, A, B, x = draw(0, 10, 8), draw(1, 10, 8), draw(2, 10, 8), draw(3, 40, 8)
    start = activation(x @ W.T)
    one, two, both = (activation(x @ (W + M).T) - start for M in (A, B, A + B))
    cross = orthogonality.cross_terms(W, A, B, x, activation)
    torch.testing.assert_close(cross, both - one - two)
    assert orthogonality.interference(W, A, B, x, activation) == pytest.approx(
        float(cross.norm() / (one + two).norm())
    )


def test_the_corrected_lemma_for_struct_masks_with_the_diagonal():
    """1 − AWOR ≤ density + density − 1/n; the count is n + |S1| + |S2| less what S2 and
    S1ᵀ share.
    """
    n, rows = 24, ((0, 8, 16), (1, 9, 17))
    A, B = (draw(k, n, n) * 0 for k in range(2))
    for k, (M, at) in enumerate(zip((A, B), rows, strict=True)):
        M[list(at)] = draw(k, len(at), n)
        M.diagonal().copy_(draw(9 + k, n))
    dense = float((A != 0).double().mean() + (B != 0).double().mean())
    found = 1 - orthogonality.awor(A, B)
    assert found <= dense - 1 / n + 1e-12
    off = 3 * (n - 1)
    assert found * n * n == pytest.approx(n + 2 * off - 9)
    assert orthogonality.awor(A, A) == 0.0  # the same rows twice: no zero is left
