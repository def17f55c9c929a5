"""Analysis: the identities it rests on."""

import pytest
import torch

from hra.analysis import rank, subspace


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eckart_young(seed):
    g = torch.Generator().manual_seed(seed)
    S = torch.randn(9, 14, generator=g, dtype=torch.float64)
    s = rank.spectrum(S)
    for r in (0, 1, 5, 9):
        rest = S - rank.truncate(S, r)
        torch.testing.assert_close(
            rest.square().sum(), s[r:].square().sum(), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(
            torch.linalg.matrix_norm(rest, 2), s[r] if r < 9 else s.new_zeros(())
        )
    other = (
        torch.randn(9, 2, generator=g).double()
        @ torch.randn(2, 14, generator=g).double()
    )
    assert (S - other).norm() >= (S - rank.truncate(S, 2)).norm()
    assert rank.count_above(S, float(s[3])) == 3
    with pytest.raises(ValueError, match="0 to min"):
        rank.truncate(S, 10)


def test_similarity_bounds_and_baseline():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(8, 64, generator=g)
    assert subspace.similarity(A, A, 5, 8) == pytest.approx(1.0)
    assert subspace.similarity(
        torch.eye(4, 8), torch.eye(8)[4:], 4, 4
    ) == pytest.approx(0.0)
    values = [
        subspace.similarity(
            torch.randn(4, 64, generator=g), torch.randn(16, 64, generator=g), 4, 16
        )
        for _ in range(60)
    ]
    assert sum(values) / 60 == pytest.approx(16 / 64, rel=0.1)
    with pytest.raises(ValueError, match="i=9"):
        subspace.similarity(A, A, 9, 1)


def test_amplification_of_a_scaled_copy():
    W = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    delta = torch.diag(torch.tensor([0.0, 0.0, 0.0, 5.0]))
    assert subspace.amplification(delta, W, 1) == pytest.approx(5.0)


@pytest.mark.parametrize("seed", range(3))
def test_an_intruder_resembles_nothing_that_was_there(seed):
    g = torch.Generator().manual_seed(seed)
    W0 = torch.randn(60, 20, generator=g, dtype=torch.float64)
    assert torch.allclose(subspace.resemblance(W0, 3 * W0, 20), torch.ones(20).double())
    # a direction that W0 does not write, made the strongest: one intruder, the first
    U0, s0, V0 = torch.linalg.svd(W0)
    strong = W0 + 2 * s0[0] * torch.outer(U0[:, 25], V0[3])
    first, *rest = subspace.resemblance(W0, strong, 5).tolist()
    assert first < 0.5 and min(rest) > 0.9
    # the same strength in a direction that was there moves none
    kept = W0 + 2 * s0[0] * torch.outer(U0[:, 3], V0[3])
    assert subspace.resemblance(W0, kept, 5).min() > 1 - 1e-9
    noise = torch.randn(60, 20, generator=g, dtype=torch.float64)
    assert subspace.resemblance(W0, 1e3 * noise, 5).max() < 0.8
    for top in (0, 21):
        with pytest.raises(ValueError, match=f"top={top} is out of range: 1 to 20"):
            subspace.resemblance(W0, W0, top)
