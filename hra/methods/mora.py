"""MoRA: a square matrix in place of two thin ones.  Jiang et al., 2024.
arXiv:2405.12130

    h = W0 x + f_decomp(M f_comp(x))    M: (r̂, r̂), r̂ = ⌊√((d_in + d_out) r)⌋ (eq. 2)

The input is cut into n_i = ⌈d_in / r̂⌉ chunks of r̂, the output into n_o of them. An
operator says which chunk of the input reaches which chunk of the output, K: (n_o, n_i),
and then, cut to (d_out, d_in),

    ΔW = K ⊗ M      truncation  K has a single 1, the first with the first   (eq. 4, 5)
                    sharing     K is full of ones                            (eq. 6, 7)
                    decoupling  K is the identity                               (eq. 8)
                    rotation    the identity, and chunk i is rotated first   (eq. 9–11)

in words of our own; the paper prints f_comp and f_decomp. M starts at zero.

Where r̂ does not divide d_in, the last chunk is filled up with the first inputs, as the
authors' code does it (the paper says "padding"): they count twice.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra import linear
from hra.adapter import Adapter
from hra.checks import check_bool, check_choice, check_number, no_second_derivative
from hra.law import Law, dropout_mask, evaluate, kept_input

OPERATORS = ("truncation", "sharing", "decoupling", "rotation")
PATTERNS = ("stride", "block")
# r̂ as a formula of `Law`: below LoRA's count, or rounded half up as the released code
ROUNDINGS = {
    "floor": "isqrt((d_in + d_out)*r)",
    "round": "(isqrt(4*(d_in + d_out)*r) + 1)//2",
}
FEW = 4  # chunks: with fewer, operator="auto" shares


def side(operator: str, rounding: str, **sizes: int) -> int:
    """r̂ for `sizes` r, d_in, d_out; even for rotation, which turns pairs."""
    return evaluate(_side(operator, rounding), sizes)


def _side(operator: str, rounding: str) -> str:
    r_hat = ROUNDINGS[rounding]
    return f"({r_hat})//2*2" if operator == "rotation" else r_hat


class MoRA(Adapter):
    """Trains r̂² numbers; by rounding="floor" no more than LoRA's r (d_in + d_out).

    operator: one of `OPERATORS`, or "auto": rotation where d_in has four chunks or
    more (small r), else sharing. pattern, for sharing: which inputs (outputs) share a
    column (row) of M, every r̂-th ("stride") or adjacent ones ("block"). Decoupling and
    rotation at d_out < d_in drop the chunks of the input beyond the output's, as
    published; fold=True adds them to the others, and where r̂ > d_out the surplus rows
    of M to the first outputs: nothing is lost. Dropout acts on the input of f_comp.

    Raises TypeError or ValueError for r outside 1 … min(d_out, d_in), another operator,
    rounding or pattern, truncation with r̂ > min(d_out, d_in), rotation with r̂ < 2.
    """

    family = "square"
    M: Float[Tensor, "r_hat r_hat"]
    cos: Tensor  # of rotation's angles: (n_in, r̂/2)
    sin: Tensor

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        operator: str = "sharing",
        rounding: str = "floor",
        pattern: str = "stride",
        fold: bool = False,
        dropout: float = 0.0,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.r = self.check_rank(r)
        check_choice("rounding", rounding, tuple(ROUNDINGS))
        check_choice("operator", operator, (*OPERATORS, "auto"))
        self.operator = self.chosen(operator, r, self.d_out, self.d_in)
        self.pattern = check_choice("pattern", pattern, PATTERNS)
        self.fold = check_bool("fold", fold)
        self.dropout = check_number("dropout", dropout, 0.0, 1.0, closed_low=True)
        sizes = {"r": r, "d_in": self.d_in, "d_out": self.d_out}
        self.r_hat = side(self.operator, rounding, **sizes)
        self._check()
        self.note = f"{self.operator}, r̂ = {self.r_hat}"
        self.n_in, self.n_out = (
            -(-self.d_in // self.r_hat),
            -(-self.d_out // self.r_hat),
        )
        self.M = self.new_parameter(self.r_hat, self.r_hat)
        if self.operator == "rotation":
            angle = self.angles()
            for name, value in (("cos", angle.cos()), ("sin", angle.sin())):
                self.register_buffer(name, value.to(self.W0), persistent=False)

    @staticmethod
    def chosen(operator: str, r: int, d_out: int, d_in: int) -> str:
        """The operator that "auto" stands for at a d_out × d_in layer."""
        if operator != "auto":
            return operator
        r_hat = side("rotation", "floor", r=r, d_in=d_in, d_out=d_out)
        return "rotation" if r_hat and -(-d_in // r_hat) >= FEW else "sharing"

    def _check(self) -> None:
        where = f"{self.d_out} × {self.d_in} layer"
        if self.operator == "truncation" and self.r_hat > min(self.d_out, self.d_in):
            raise ValueError(
                f"r={self.r} gives r̂ = {self.r_hat}, and truncation needs r̂ ≤ "
                f"min(d_out, d_in) at this {where}: lower r or take another operator."
            )
        if self.r_hat < 2 and self.operator == "rotation":
            raise ValueError(
                f"r={self.r} gives r̂ = {self.r_hat} at this {where}; rotation turns "
                "pairs of inputs and needs r̂ ≥ 2."
            )
        if self.pattern != "stride" and self.operator != "sharing":
            raise ValueError(
                f"pattern={self.pattern!r} is sharing's; {self.operator} cuts the "
                "input into adjacent chunks."
            )

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """Says once where inputs are lost."""
        lost = {}
        for name, layer in sites.items():
            d_out, d_in = linear.weight(layer).shape
            share = cls.live(d_out, d_in, hyper)
            if share < 1:
                lost[name] = share
        if lost:
            name = next(iter(lost))
            warnings.warn(
                f"MoRA: at {name} and {len(lost) - 1} more of {len(sites)} sites d_out "
                f"< d_in, and only {lost[name]:.0%} of the inputs reach the output, as "
                "published. fold=True loses none.",
                stacklevel=7,
            )
        return super().plan(sites, **hyper)

    @classmethod
    def live(cls, d_out: int, d_in: int, hyper: dict[str, Any]) -> float:
        """The share of a layer's inputs that reach its output; 1 for what is refused
        later.
        """
        r, operator, rounding = (hyper[k] for k in ("r", "operator", "rounding"))
        if hyper["fold"] or rounding not in ROUNDINGS or not isinstance(r, int):
            return 1.0
        operator = cls.chosen(operator, r, d_out, d_in)
        if operator not in ("decoupling", "rotation") or not 1 <= r <= d_out:
            return 1.0
        r_hat = side(operator, rounding, r=r, d_in=d_in, d_out=d_out)
        return min(1.0, -(-d_out // r_hat) * r_hat / d_in) if r_hat else 1.0

    # ---- the definition
    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        """K ⊗ M (with M R_i for chunk i of a rotation), its rows and columns put where
        their outputs and inputs are.
        """
        D = torch.einsum("oi,iab->oaib", self.K(), self.like_base(self.M) @ self.R())
        D = D.reshape(self.n_out * self.r_hat, self.n_in * self.r_hat)
        outputs, inputs = self.places()
        return _placed(_placed(D, outputs, self.d_out).T, inputs, self.d_in).T

    def K(self) -> Float[Tensor, "n_out n_in"]:
        """Which chunk of the input reaches which chunk of the output."""
        o, i = torch.arange(self.n_out)[:, None], torch.arange(self.n_in)
        if self.operator == "truncation":
            reaches = (o == 0) & (i == 0)
        elif self.operator == "sharing":
            reaches = torch.ones(self.n_out, self.n_in)
        else:  # outputs beyond the input's chunks repeat them
            n = min(self.n_out, self.n_in) if self.fold else self.n_in
            reaches = o % n == i % n
        return reaches.to(self.W0)

    def R(self) -> Float[Tensor, "n_in r_hat r_hat"]:
        """R_i of each chunk: pair j, the chunk's inputs j and j + r̂/2, turned by i θ_j
        (the paper pairs neighbours: the same up to an order of the inputs). Without a
        rotation the identity.
        """
        e = torch.eye(self.r_hat).to(self.W0).repeat(1, self.n_in)
        return self.turned(e).unflatten(1, (self.n_in, -1)).permute(1, 2, 0)

    def angles(self) -> Tensor:
        """(n_in, r̂/2): i θ_j, θ_j = 10000^(−2j/r̂), for chunk i and pair j from 0."""
        j = torch.arange(self.r_hat // 2, dtype=torch.float64)
        theta = 10000.0 ** (-2 * j / self.r_hat)
        return torch.arange(self.n_in, dtype=torch.float64)[:, None] * theta

    def groups(self) -> tuple[str, str]:
        """The pattern in which outputs, and inputs, share."""
        return self.pattern, self.pattern

    def orders(self) -> tuple[Tensor | None, Tensor | None]:
        """The order in which outputs, and inputs, are cut into chunks: as they are."""
        return None, None

    def places(self) -> tuple[Tensor, Tensor]:
        """The output at every row of K ⊗ M, the input at every column; −1: none."""
        found = []
        shape = ((self.n_out, self.d_out), (self.n_in, self.d_in))
        for (n, d), pattern, order, wrap in zip(
            shape, self.groups(), self.orders(), self.wraps(), strict=True
        ):
            p = torch.arange(n * self.r_hat)
            if pattern == "block" and n > 1:  # the first d mod r̂ groups have one more
                chunk, group = p // self.r_hat, p % self.r_hat
                size = d // self.r_hat + (group < d % self.r_hat).long()
                first = group * (d // self.r_hat) + group.clamp(max=d % self.r_hat)
                p = torch.where(chunk < size, first + chunk, -1)
            else:
                p = p % d if wrap else torch.where(p < d, p, -1)
            p = p.to(self.W0.device)
            found.append(p if order is None else torch.where(p < 0, p, order[p]))
        return found[0], found[1]

    def wraps(self) -> tuple[bool, bool]:
        """Whether positions past the last output, the last input begin again."""
        return self.fold and self.r_hat > self.d_out, self.operator != "truncation"

    # ---- the same map without ΔW
    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        """f_decomp(M f_comp(x)) is added to x W0ᵀ in place. Keeps f_comp(x), r̂ numbers
        a token, for truncation and sharing; else x.
        """
        y = F.linear(x, self.frozen, self.bias)
        return _Square.apply(y, F.dropout(x, self.dropout, self.training), self.M, self)

    @property
    def width(self) -> int:
        """How many numbers f_comp(x) has: those of the chunks that M is applied to."""
        one = self.operator in ("truncation", "sharing")
        return self.r_hat * (1 if one else min(self.n_in, self.n_out))

    def compress(self, x: Tensor) -> Tensor:
        """f_comp: (tokens, d_in) → (tokens, width), for `_Square`: no autograd."""
        order = self.orders()[1]
        x = x if order is None else x[:, order]
        w, r_hat, all_chunks = self.width, self.r_hat, self.n_in * self.r_hat
        if self.operator == "truncation":
            return x[:, :r_hat].contiguous()
        if self.operator == "sharing":
            return _gather(x, r_hat, self.groups()[1], all_chunks - self.d_in)
        if w < all_chunks and not self.fold:
            return self.turned(x[:, :w])
        x = self.turned(_gather(x, all_chunks, pad=all_chunks - self.d_in))
        return _gather(x, w) if w < all_chunks else x

    def compress_back(self, g: Tensor) -> Tensor:
        """The transpose of `compress`: (tokens, width) → (tokens, d_in)."""
        w, all_chunks = self.width, self.n_in * self.r_hat
        if self.operator == "sharing":
            g = _spread(g, self.d_in, self.groups()[1], all_chunks - self.d_in)
        elif self.operator == "truncation" or (w < all_chunks and not self.fold):
            g = F.pad(self.turned(g, -1.0), (0, self.d_in - w))
        else:
            g = _spread(g, all_chunks) if w < all_chunks else g
            g = _spread(self.turned(g, -1.0), self.d_in, pad=all_chunks - self.d_in)
        order = self.orders()[1]
        return g if order is None else torch.empty_like(g).index_copy_(1, order, g)

    def add(self, y: Tensor, z: Tensor) -> None:
        """y += f_decomp(z), in place: (tokens, d_out), (tokens, width)."""
        pattern, order = self.groups()[0], self.orders()[0]
        if self.operator == "truncation":
            z = F.pad(z, (0, self.d_out - self.r_hat)) if order is not None else z
        elif self.wraps()[0]:
            z = _gather(z, self.d_out)
        elif order is not None or pattern == "block":
            z = _spread(z, self.d_out, pattern)
        if order is not None:
            y.index_add_(1, order, z)
            return
        w = z.shape[1]
        full, rest = (1, 0) if self.operator == "truncation" else divmod(self.d_out, w)
        if full:
            y[:, : full * w].unflatten(1, (full, w)).add_(z[:, None])
        if rest:
            y[:, full * w :].add_(z[:, :rest])

    def add_back(self, g: Tensor) -> Tensor:
        """The transpose of `add`: (tokens, d_out) → (tokens, width)."""
        pattern, order = self.groups()[0], self.orders()[0]
        g = g if order is None else g[:, order]
        if self.operator == "truncation":
            return g[:, : self.r_hat]
        if self.wraps()[0]:
            return _spread(g, self.r_hat)
        return _gather(g, self.width, pattern)

    def turned(self, x: Tensor, sign: float = 1.0) -> Tensor:
        """Chunk i of each row turned by sign · i θ; as it is without a rotation."""
        if self.operator != "rotation":
            return x
        u, v = x.unflatten(-1, (-1, 2, self.r_hat // 2)).unbind(-2)
        n = u.shape[-2]
        cos, sin = self.cos[:n].to(x.dtype), self.sin[:n].to(x.dtype)
        out = torch.empty(
            (*u.shape[:-1], 2, u.shape[-1]), dtype=x.dtype, device=x.device
        )
        torch.mul(u, cos, out=out[..., 0, :]).addcmul_(v, sin, value=-sign)
        torch.mul(v, cos, out=out[..., 1, :]).addcmul_(u, sin, value=sign)
        return out.view(x.shape)

    # ---- the bill, the file, the summary
    @classmethod
    def law(
        cls, dropout: float, grad: bool, operator: str, rounding: str, **hyper: Any
    ) -> Law:
        if "d_in" in hyper:
            operator = cls.chosen(operator, hyper["r"], hyper["d_out"], hyper["d_in"])
        short = operator in ("truncation", "sharing")
        half = {"angles": "(d_in + r_hat - 1)//r_hat*r_hat"}
        return Law(
            {"M": "r_hat*r_hat"},
            {"f_comp(x)": "r_hat"} | dropout_mask(dropout, grad)
            if short
            else kept_input(dropout, grad),
            frozen=half if operator == "rotation" else {},
            sizes={"r_hat": _side(operator, rounding)},
        )

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        (d_out, d_in), r = shape, hyper["r"]
        check_choice("rounding", hyper["rounding"], tuple(ROUNDINGS))
        operator = cls.chosen(hyper["operator"], r, d_out, d_in)
        r_hat = side(operator, hyper["rounding"], r=r, d_in=d_in, d_out=d_out)
        return {**super().schema(shape, hyper), "M": (r_hat, r_hat)}

    def extra_repr(self) -> str:
        own = f"{self.operator}, r={self.r}, r_hat={self.r_hat}"
        return f"{super().extra_repr()}, {own}"


class _Square(torch.autograd.Function):
    """y + f_decomp(M f_comp(x)), into y. Keeps M, and f_comp(x) or x; see `law`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, M: Tensor, a: MoRA) -> Tensor:
        ctx.mark_dirty(y)
        ctx.a, ctx.short = a, a.operator in ("truncation", "sharing")
        h = a.compress(x.reshape(-1, a.d_in))
        z = h.reshape(-1, a.r_hat) @ M.to(h.dtype).T
        a.add(y.view(-1, a.d_out), z.view(h.shape))
        ctx.save_for_backward(h if ctx.short else x, M)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return y

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        a, (h, M) = ctx.a, ctx.saved_tensors
        h = h if ctx.short else a.compress(h.reshape(-1, a.d_in))
        h = h.to(g.dtype).reshape(-1, a.r_hat)
        gz = a.add_back(g.reshape(-1, a.d_out)).reshape(-1, a.r_hat)
        gx = None
        if ctx.needs_input_grad[1]:
            gh = (gz @ M.to(g.dtype)).view(-1, a.width)
            gx = a.compress_back(gh).view(ctx.shape).to(ctx.dtype)
        return g, gx, (gz.T @ h).to(M.dtype), None


def _placed(D: Tensor, at: Tensor, n: int) -> Tensor:
    """(n, columns of D): the rows of D added up at `at`, those at −1 dropped."""
    there = at >= 0
    return D.new_zeros(n, D.shape[1]).index_add(0, at[there], D[there])


def _gather(t: Tensor, w: int, pattern: str = "stride", pad: int = 0) -> Tensor:
    """(tokens, d) → (tokens, w): sums of each group. "stride": number p to slot p mod
    w, the first `pad` numbers once more after the last; "block": adjacent numbers, the
    first d mod w groups one more than the others.
    """
    T, d = t.shape
    if pattern == "block" and w < d:
        n, many = d // w, d % w
        first = t[:, : many * (n + 1)].unflatten(1, (many, n + 1)).sum(2)
        return torch.cat(
            [first, t[:, many * (n + 1) :].unflatten(1, (-1, n)).sum(2)], 1
        )
    full, rest = divmod(d, w)
    if full == 1 and not rest:
        return t
    h = t[:, : full * w].unflatten(1, (full, w)).sum(1) if full else t.new_zeros(T, w)
    h[:, :rest] += t[:, full * w :]
    for begin in range(0, pad, d):
        n = min(d, pad - begin)
        h[:, rest + begin : rest + begin + n] += t[:, :n]
    return h


def _spread(h: Tensor, d: int, pattern: str = "stride", pad: int = 0) -> Tensor:
    """The transpose of `_gather`: (tokens, w) → (tokens, d), each number of a group
    gets its slot's.
    """
    w = h.shape[1]
    if pattern == "block" and w < d:
        n, many = d // w, d % w
        parts = h[:, :many].repeat_interleave(n + 1, 1), h[:, many:]
        return torch.cat([parts[0], parts[1].repeat_interleave(n, 1)], 1)
    full, rest = divmod(d, w)
    if full == 1 and not rest:
        return h
    t = h.new_empty(h.shape[0], d)
    t[:, : full * w].unflatten(1, (full, w)).copy_(h[:, None]) if full else None
    t[:, full * w :] = h[:, :rest]
    for begin in range(0, pad, d):
        n = min(d, pad - begin)
        t[:, :n] += h[:, rest + begin : rest + begin + n]
    return t
