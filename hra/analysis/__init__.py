"""Matrices in, numbers out, never a model."""

from hra.analysis import bounds, orthogonality, rank, subspace

__all__ = ["bounds", "orthogonality", "rank", "subspace"]
