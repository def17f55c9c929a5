"""A few entries of a big matrix: scatter, overwrite in place, sampled products, and
indices packed into few bytes, as files hold them.
"""

from __future__ import annotations

import functools
import hashlib
import warnings

import torch
from torch import Tensor

# Below this density the K wanted entries of gᵀx are computed one by one, above it all
# of them at once: on two cores the two cost the same somewhere between 5 % and 20 %
# (benchmarks/sampled.py).
DENSE_FROM = 0.05


def scatter(values: Tensor, index: Tensor, d_out: int, d_in: int) -> Tensor:
    """The (d_out, d_in) matrix that holds `values` at `index` and zero elsewhere,
    differentiable in `values`.
    """
    return values.new_zeros(d_out * d_in).index_put((index,), values).view(d_out, d_in)


def storage_index(index: Tensor, d_out: int, d_in: int, transposed: bool) -> Tensor:
    """`index` as positions in the layer's own storage, which for a transposed layout is
    (d_in, d_out).
    """
    return index % d_in * d_out + index // d_in if transposed else index


@torch.no_grad()
def overwrite_(weight: Tensor, position: Tensor | None, values: Tensor) -> None:
    """weight.flat[position] = values, in place (all of it for None).

    Through `.data`, so that autograd's version counter does not move: that is safe
    where the written tensor is frozen and its new entries are those that the backward
    pass is to see.
    """
    W = weight.data
    if position is None:
        W.copy_(values.view(W.shape))
    elif W.is_contiguous():
        W.view(-1).index_copy_(0, position, values.to(W.dtype))
    else:
        n = W.shape[-1]
        W[position // n, position % n] = values.to(W.dtype)


def read(weight: Tensor, position: Tensor | None) -> Tensor:
    """A copy of weight.flat[position], or of all of it."""
    if position is None:
        return weight.detach().clone()
    return weight.detach().reshape(-1)[position]


def sampled_product(
    g: Tensor, x: Tensor, rows: Tensor, cols: Tensor, dense_from: float = DENSE_FROM
) -> Tensor:
    """(gᵀ x)[rows, cols], (K,), for g (T, d_out) and x (T, d_in); places in row-major
    order.

    One dot product an entry (torch's sampled_addmm, in fp32 for half precision), or the
    dense product where that is cheaper.
    """
    if len(rows) >= dense_from * g.shape[1] * x.shape[1] or g.device.type not in (
        "cpu",
        "cuda",
    ):
        return (g.T @ x)[rows, cols]
    _hush()
    kind = torch.promote_types(g.dtype, torch.float32)
    gT, xT = g.T.to(kind).contiguous(), x.T.to(kind).contiguous()
    starts = torch.searchsorted(rows, torch.arange(g.shape[1] + 1, device=rows.device))
    wanted = torch.sparse_csr_tensor(
        starts,
        cols,
        gT.new_zeros(len(rows)),
        (g.shape[1], x.shape[1]),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(wanted, gT, xT.T, beta=0.0).values()


@functools.cache
def _hush() -> None:
    """torch warns once a process that its CSR support is in beta; the suite checks the
    one function used here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], torch.empty(0), (1, 1))


def pack(index: Tensor) -> Tensor:
    """A sorted index as uint8 gaps: 255 means "255 more, and go on"."""
    gaps = torch.diff(index, prepend=index.new_tensor([-1])) - 1  # 0 for a neighbour
    full = gaps // 255
    ends = torch.cumsum(full + 1, 0)
    out = torch.full((int(ends[-1]),), 255, dtype=torch.uint8)
    out[ends - 1] = (gaps % 255).to(torch.uint8)
    return out


def unpack(gaps: Tensor, count: int, total: int) -> Tensor:
    """The index of `count` among `total` entries that `pack` packed.

    Raises ValueError if the bytes cannot hold it, before anything is allocated.
    """
    if gaps.ndim != 1 or gaps.dtype != torch.uint8:
        raise ValueError(
            f"packed gaps are a vector of uint8, not {tuple(gaps.shape)} of "
            f"{gaps.dtype}."
        )
    if not count <= len(gaps) <= count + total // 255:
        raise ValueError(
            f"{len(gaps)} packed gaps cannot hold {count} of {total} entries."
        )
    last = gaps != 255
    held = int(last.sum())
    if held != count or not (len(gaps) and bool(last[-1])):
        raise ValueError(f"the packed index holds {held} entries instead of {count}.")
    position = torch.cumsum(gaps.to(torch.int64) + last.to(torch.int64), 0) - 1
    return position[last]


# ---- a mask in a file, of whatever matrix


def mask_kept(index: Tensor, by_rule: bool = False) -> dict[str, Tensor]:
    """What a file holds of it: a hash and, unless a rule gives it back, its gaps."""
    gaps = {} if by_rule else {"gaps": pack(index.cpu())}
    return {"mask_hash": digest(index), **gaps}


def mask_from(tensors: dict[str, Tensor], site: str, total: int) -> Tensor:
    """The mask of a site from a file's gaps, of a matrix of `total` entries."""
    gaps, values = tensors.get(f"{site}.gaps"), tensors.get(f"{site}.values")
    if gaps is None or values is None:
        raise ValueError(f"the mask of {site} is missing.")
    return unpack(gaps, values.numel(), total)


def mask_held_to(tensors: dict[str, Tensor], index: Tensor, site: str) -> None:
    """ValueError if `index` is not the mask that the file was written with."""
    if not torch.equal(tensors["mask_hash"].cpu(), digest(index)):
        raise ValueError(
            f"the mask of {site} is not the one that this model gives: the file is for "
            "another base."
        )


def digest(index: Tensor) -> Tensor:
    """Eight bytes of a mask's SHA-256, as uint8."""
    raw = index.cpu().numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(raw).digest()[:8]), dtype=torch.uint8)
