"""Matrices in, numbers out, never a model."""
from hra.analysis import rank, subspace

__all__ = ["rank", "subspace"]
