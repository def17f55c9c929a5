"""LoSiA-Pro: LoSiA's map, computed on the subnet.  Wang et al., 2025.
arXiv:2507.04487

    ∂L/∂W_S = (∂L/∂y)[:, Y_S]ᵀ x[:, X_S]

Only x[:, X_S] is kept for the backward pass, ⌊p d_in⌋ numbers a token, and of the
dense gradient only the block is computed: of the three products of a step two stay
dense, the third costs p² of one. A layer in its slot keeps x as well, and makes the
dense gradient.

The entries that ΔW has are written into the layer itself, and those that they displace
are put aside: no dense copy of the weight is made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hra import linear
from hra.checks import no_second_derivative
from hra.law import SLICE, Law
from hra.methods.losia import LoSiA, columns


class LoSiAPro(LoSiA):
    """LoSiA that never keeps x outside its slot. `state_dict` shows the pretrained
    weight, `detach` gives it back bit for bit.
    """

    under: Float[Tensor, "m n"]  # what the weight has under W_S
    stash: Float[Tensor, " K"]  # and under `past`
    overwritten = False  # whether the layer holds the entries

    def __init__(self, *args: Any, **hyper: Any) -> None:
        super().__init__(*args, **hyper)
        self.set_aside()

    def set_aside(self) -> None:
        """Not persistent: the weight and the places give both back."""
        W = linear.weight(self.base).detach()
        self.register_buffer("under", W[self.rows[:, None], self.cols], False)
        self.register_buffer("stash", W[self.others()], False)

    def others(self) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
        """(rows, columns) of `index`."""
        return self.index // self.d_in, self.index % self.d_in

    # ---- the pretrained weight and the overwritten one
    @property
    def W0(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        W = linear.weight(self.base)
        return self.restored(W.detach().clone()) if self.overwritten else W

    def restored(self, W: Tensor) -> Tensor:
        """W with what the entries have displaced, in place."""
        W[self.rows[:, None], self.cols] = self.under
        W[self.others()] = self.stash
        return W

    def write(self) -> None:
        """The present entries into the layer; those of `past` only if it was plain.

        Through `.data`, as `sparse.overwrite_` does it and for its reason.
        """
        W, plain = linear.weight(self.base).data, not self.overwritten
        self.overwritten = True  # before the first entry is written
        if plain:
            W[self.others()] = (self.stash + self.past).to(W.dtype)
        now = (self.under + self.W_S.detach()).to(W.dtype)
        W[self.rows[:, None], self.cols] = now

    def put_back(self) -> None:
        if self.overwritten:
            self.restored(linear.weight(self.base).data)
            self.overwritten = False

    def release(self, model: nn.Module) -> None:
        self.put_back()
        super().release(model)

    def place(self, rows: Int[Tensor, " m"], cols: Int[Tensor, " n"]) -> None:
        self.put_back()
        super().place(rows, cols)
        self.set_aside()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        out = super().state_dict(*args, **kwargs)
        if self.overwritten:
            name = f"{kwargs.get('prefix', '')}base.weight"
            out[name] = self.W0.T if linear.is_conv1d(self.base) else self.W0
        return out

    def make_room(self, tensors: dict[str, Tensor]) -> None:
        self.put_back()
        super().make_room(tensors)

    def settle(self) -> None:
        super().settle()
        if not self.overwritten:
            self.set_aside()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.put_back()
        return super()._apply(fn, recurse)

    # ---- the same map, and less of it kept
    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        linear.own(self.base, "use LoSiA")
        self.write()
        if not torch.is_grad_enabled():
            return F.linear(x, linear.weight(self.base), self.bias)
        return _Subnet.apply(x, self.W_S, self.rows, self.cols, self)

    @classmethod
    def law(cls, phase: str = "", **given: Any) -> Law:
        own = super().law(phase=phase, **given)
        seen = {"x": "d_in"} if phase else {}
        return replace(
            own,
            token={SLICE if given.get("shared") else "columns of x": "n"} | seen,
            once={},
            frozen={"displaced": "m*n + K"},
        )


class _Subnet(torch.autograd.Function):
    """x Wᵀ + b with a W that holds its subnet itself. Keeps the subnet's columns of x.

    W_S and its place are kept by reference: if they change before the backward pass
    torch refuses it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_S: Tensor, rows: Tensor, cols: Tensor, a: LoSiAPro
    ) -> Tensor:
        y = F.linear(x, linear.weight(a.base), a.bias)
        gather = a.siblings.columns if a.siblings else columns
        kept = gather(x, cols, y.dtype)
        ctx.save_for_backward(kept, W_S, rows, cols)
        ctx.setting = a, x.shape, x.dtype
        return y

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W_S, rows = ctx.saved_tensors[:3]
        a, shape, kind = ctx.setting
        dx = None
        if ctx.needs_input_grad[0]:
            if not a.overwritten:
                raise RuntimeError(
                    "the pretrained weight was put back between the forward and the "
                    "backward pass."
                )
            W = linear.weight(a.base)
            dx = (g @ W.to(g.dtype)).view(shape).to(kind)
        g = g.reshape(-1, g.shape[-1]).index_select(1, rows)
        return dx, (g.T @ x.to(g.dtype)).to(W_S.dtype), None, None, None
