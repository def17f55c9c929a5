"""Restart: fold ΔW into the weight under it, begin the adapter afresh, forget its
moments.

    W_n = W_{n−1} + ΔW_n    ΔW_n: what the adapter learnt in round n, of rank ≤ r

so that after N rounds rank(W_N − W0) ≤ N r (Lialin et al., 2023, arXiv:2307.05695).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear
from hra.adapter import Adapter, forget
from hra.checks import check_bool, check_choice, check_count, check_number
from hra.law import Law


class Restart(Adapter):
    """Mixin for an adapter that has `start()`: class ReLoRA(Restart, LoRA).

    Every `every` steps ΔW is folded in, the adapter draws a new start (another one in
    each round) and its moments are forgotten:
    reset="zero": all of them, the step count too; "random" and "magnitude": a share
    `prune` of the entries, the same ones of both moments. Pruned by masks of their own,
    as released code does it, a first moment that stays over a second that is gone gives
    steps of 10⁴ learning rates. rewarm: the learning rate rises from near zero over so
    many steps after each restart (default: a twentieth of `every`).

    The pretrained weight stays as it is and `past` holds the one under the present
    round: detach is exact. keep_base=False folds into the layer itself, which saves one
    weight a layer; what was pretrained is then gone, and the adapter cannot be saved.
    """

    past: Tensor  # (d_out, d_in): W0 and the rounds that are over
    rounds: Tensor  # how many are
    start: Any  # the method's own: draws what a round begins with

    def __init__(
        self,
        *args: Any,
        every: int = 1000,
        reset: str = "zero",
        prune: float = 0.99,
        rewarm: int | None = None,
        keep_base: bool = True,
        **hyper: Any,
    ) -> None:
        super().__init__(*args, **hyper)
        self.every = check_count("every", every)
        self.reset = check_choice("reset", reset, ("zero", "random", "magnitude"))
        self.prune = check_number("prune", prune, 0.0, 1.0, closed_low=True)
        self.rewarm = (
            every // 20 if rewarm is None else check_count("rewarm", rewarm, low=0)
        )
        self.keep_base = check_bool("keep_base", keep_base)
        self.register_buffer(
            "rounds", torch.zeros((), dtype=torch.int64, device=self.W0.device)
        )
        if keep_base:
            W = linear.weight(self.base).detach()
            past = W.clone(memory_format=torch.contiguous_format)
            self.register_buffer("past", past)
        else:
            warnings.warn(
                "keep_base=False: restarts change the pretrained weights; detach() "
                "will not give them back.",
                stacklevel=2,
            )

    @property
    def frozen(self) -> Tensor:
        return self.past if "past" in self._buffers else linear.weight(self.base)

    def delta_weight(self) -> Tensor:
        """ΔW of all rounds, the present one included."""
        return self.frozen - self.W0 + super().delta_weight()

    def begin(self, steps: int) -> None:
        if steps < self.every:
            raise ValueError(
                f"a restart every {self.every} steps never comes in {steps} steps: "
                "lower `every`, or use the method without restarts."
            )
        super().begin(steps)

    @torch.no_grad()
    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        if any(hasattr(p, "full_tensor") for p in self.parameters()):
            raise RuntimeError(
                f"{type(self).__name__} restarts on whole tensors, and fully_shard has "
                "split them between processes: use DistributedDataParallel."
            )
        if step % self.every:
            return super().after_step(step, optimizer)
        self.frozen.add_(super().delta_weight())
        self.rounds += 1
        self.start()
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.reset == "zero":
            forget(optimizer, *trained)
        else:
            for p in trained:
                self.prune_moments(optimizer.state.get(p, {}), p)
        return {"restart": int(self.rounds), "rank": self.rank()}

    def rank(self) -> int:
        """The rank of what the rounds have folded in. A sum W + ΔW is rounded: singular
        values below rounds · ε ‖W‖_F are none.
        """
        if not self.keep_base:
            return 0  # the pretrained weight is gone
        wide = torch.promote_types(self.W0.dtype, torch.float32)
        sigma = torch.linalg.svdvals(self.frozen.to(wide) - self.W0.to(wide))
        eps = torch.finfo(self.W0.dtype).eps
        least = int(self.rounds) * eps * float(self.frozen.to(wide).norm())
        return int((sigma > least).sum())

    def prune_moments(self, state: dict[str, Any], p: Tensor) -> None:
        """Zero a share `prune` of p's moments, at the same places in all of them."""
        moments = [
            m for m in state.values() if isinstance(m, Tensor) and m.shape == p.shape
        ]
        if not moments:
            return
        if self.reset == "random":
            score = torch.rand(p.numel(), generator=self.generator("moments"))
        else:
            score = moments[0].abs().flatten().cpu()
        gone = score.sort(stable=True).indices[: round(self.prune * p.numel())]
        for m in moments:
            m.view(-1)[gone.to(m.device)] = 0

    def rate(self, step: int) -> float:
        since = step % self.every
        warming = step >= self.every and since < self.rewarm
        own = (since + 1) / (self.rewarm + 1) if warming else 1.0
        return own * super().rate(step)

    def generator(self, what: str = "") -> torch.Generator:
        """Another draw in each round."""
        n = int(self.rounds) if "rounds" in self._buffers else 0
        return super().generator(f"{what}, round {n}" if n else what)

    def own_tensors(self) -> dict[str, Tensor]:
        own = super().own_tensors()
        return own if self.keep_base else own | {"past": self.frozen}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.keep_base:
            raise ValueError(
                "keep_base=False: the pretrained weights, to which a file belongs, are "
                "gone. Merge the model and save it whole."
            )
        return super().packed(hyper)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A plain layer: the weight under this round and what it has learnt."""
        return linear.with_weight(self.base, self.frozen + super().delta_weight())

    @classmethod
    def law(cls, keep_base: bool = True, **hyper: Any) -> Law:
        """The method's own, and the weight under the present round."""
        own = super().law(**hyper)
        past = {"past": "d_out*d_in"} if keep_base else {}
        return replace(own, frozen=own.frozen | past, int64=own.int64 | {"rounds": "1"})
