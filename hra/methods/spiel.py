"""SpIEL: Sparse Iterative Efficient Learning.  Ansell et al., 2024.  arXiv:2401.16405

    W = W0 + S    S: (d_out, d_in), zero outside K entries, which move

Every T = `every` steps the k entries of the smallest |δ| are dropped, back to W0 to the
bit, and as many are grown, from zero, where the loss is steepest:

    AG    |Σ G| over `gamma` steps, among the K entries of the first step's largest |G|
    MA    r_i c_j, SM3's covers of the squared gradients of the entries that train:
          ν_ij = min(r_i, c_j) + g_ij²,  r_i ← max over j of ν_ij,  c_j ← max over i

k = `share` · K (1 − t / steps), and K the first time, for the entries begin by lot. AG
watches the first `gamma` steps of every T, then moves; MA moves then too, and never
forms a dense gradient. What survives keeps its value, its moments, its age.

After the authors' code, but for the moments of what is grown. Zeros under an old step
count would give steps of up to 6.6 learning rates; here they are what as many steps as
the optimizer has taken would have left, had each seen the mean gradient and the mean
square of the watch (for MA: zero, and min(r_i, c_j) over the steps so far). The authors
store the means, which the correction for the entry's age then inflates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hra import masks
from hra.adapter import Adapter, mean_of_processes
from hra.checks import check_choice, check_count, check_number
from hra.entries import K_OF_DENSITY, Entries
from hra.law import Law

# places in `counts`: how many moves, gradients that counted (since the watch began; for
# MA in all), gradients that were not finite
MOVES, SEEN, SKIPPED = range(3)
# rows of `sums`, of the candidates: Σ G and Σ G² of the watch, G of the step so far; of
# the entries that train: G of the step so far
TOTAL, SQUARES, NOW, OWN = range(4)


class SpIEL(Entries):
    """Trains K numbers at a time. `age`: for how many steps each has.

    grow: "AG" or "MA". Moves begin with the first `after_step`; `begin` (`hra.fit`
    calls it) says how many steps there are. G is the gradient of a step as the
    optimizer gets it: accumulated, unscaled, clipped, averaged over processes; the
    candidates are those of the first batch of its first step. One that is not finite is
    left out and counted.

    Raises TypeError or ValueError for another `grow`, `gamma` above `every`, shares
    outside (0, 1], and from `begin` for a run too short for a move.
    """

    wide = ("sums", "rows", "cols")
    phases = ("", "watch")
    age: Int[Tensor, " K"]
    counts: Tensor
    candidates: Tensor  # flat, -1 before they are chosen; empty outside a watch, as is
    sums: Tensor  # (4, K)
    rows: Tensor  # r, (d_out,); empty for AG, as is
    cols: Tensor  # c, (d_in,)

    def __init__(
        self,
        base: nn.Module,
        density: float = 0.01,
        count: int | None = None,
        grow: str = "AG",
        every: int = 20,
        gamma: int = 5,
        share: float = 0.2,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        Adapter.__init__(self, base, seed=seed, site=site)
        self.grow = check_choice("grow", grow, ("AG", "MA"))
        self.every, self.gamma = (
            check_count("every", every),
            check_count("gamma", gamma),
        )
        if gamma > every:
            raise ValueError(
                f"gamma={gamma} steps of watching do not fit into every={every}."
            )
        self.share = check_number("share", share, 0.0, 1.0, closed_high=True)
        self.steps = 0  # of the run, once `begin` has said it
        if shared is None:
            K = masks.budget(self.d_out, self.d_in, density, count)
            shared = masks.rand(self.d_out, self.d_in, K, self.generator("mask"))
        self.hold(shared)
        self.register_buffer("age", torch.zeros_like(self.index))
        self.register_buffer("counts", self.index.new_zeros(3))
        self.register_buffer("candidates", self.index.new_zeros(0))
        ma = grow == "MA"
        for name, n in (("rows", self.d_out * ma), ("cols", self.d_in * ma)):
            self.register_buffer(name, self.values.detach().new_zeros(n))
        self.register_buffer("sums", self.values.detach().new_zeros(4, 0))

    # ---- when
    @property
    def phase(self) -> str:  # type: ignore[override]
        return "watch" if len(self.candidates) else ""

    def due(self, step: int) -> bool:
        """Whether the dense gradient is watched in this step, counted from 0."""
        return self.grow == "AG" and step % self.every < self.gamma

    def begin(self, steps: int) -> None:
        if steps < self.gamma:
            raise ValueError(
                f"the first move comes after gamma={self.gamma} steps, and there are "
                f"{steps}: lower gamma, train longer, or take SHiRA, whose mask stays."
            )
        self.steps = steps
        self.watch(self.due(0))

    def watch(self, on: bool) -> None:
        """Begin to watch, or end it."""
        K = len(self.index) if on else 0
        self.candidates = torch.full_like(self.index[:K], -1)
        self.sums = self.sums.new_zeros(4, K)
        if self.grow == "AG":
            self.counts[SEEN:] = 0

    def observing(self) -> bool:
        return self.phase == "watch"

    # ---- what is seen
    @torch.no_grad()
    def observe(self, G: Float[Tensor, "{self.d_out} {self.d_in}"]) -> None:
        if not self.phase:
            return
        flat = G.reshape(-1)
        if self.candidates[0] < 0:
            size = mean_of_processes(flat).abs().nan_to_num()
            self.candidates.copy_(masks.top(size, len(self.index)))
        self.sums[NOW] += flat[self.candidates]
        self.sums[OWN] += flat[self.index]

    def record(self) -> None:
        """Σ G and Σ G² take in the step that is over, as the optimizer had it."""
        now, own = mean_of_processes(self.sums[NOW:])
        grad, size = self.values.grad, own.norm()
        if grad is not None and size > 0 and grad.any():
            now = now * (grad.norm() / size)
        finite = bool(torch.isfinite(now).all())
        if finite:
            self.sums[TOTAL] += now
            self.sums[SQUARES] += now.square()
        elif not self.counts[SEEN]:
            self.candidates.fill_(-1)  # chosen by a gradient that was none
        self.counts[SEEN if finite else SKIPPED] += 1
        self.sums[NOW:] = 0

    def cover(self) -> None:
        """SM3's covers take in the gradient of the step that is over."""
        g = self.values.grad
        if g is None or not torch.isfinite(g).all():
            self.counts[SKIPPED] += 1
            return
        i, j = self.index // self.d_in, self.index % self.d_in
        seen = torch.minimum(self.rows[i], self.cols[j]) + g.to(self.rows) ** 2
        self.rows.scatter_reduce_(0, i, seen, "amax")
        self.cols.scatter_reduce_(0, j, seen, "amax")
        self.counts[SEEN] += 1

    # ---- dropping and growing
    @torch.no_grad()
    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        if hasattr(self.values, "full_tensor"):
            raise RuntimeError(
                "SpIEL moves its entries over a matrix, and fully_shard has split it "
                "between processes: use DistributedDataParallel."
            )
        self.age += 1
        if self.grow == "MA":
            self.cover()
        elif self.phase:
            self.record()
        event = None
        if step >= self.gamma and (step - self.gamma) % self.every == 0:
            event = self.move(step, optimizer)
        if event or self.observing() != self.due(step):
            self.watch(self.due(step))
        return event

    def quota(self, step: int) -> int:
        """k: how many entries may move after this step."""
        K = len(self.index)
        if not self.counts[MOVES]:
            return K
        left = max(0.0, 1 - step / self.steps) if self.steps else 1.0
        return int(K * self.share * left)

    def move(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """`changed`: how many entries are other ones now; `age`: for how many steps
        those that went had trained, on average.
        """
        seen, skipped = self.counts[SEEN:].tolist()
        n, age = 0, 0.0
        if seen:
            gone, grown, moments = self.exchange(self.quota(step))
            n = len(grown)
            age = float(self.age[gone].double().mean()) if n else 0.0
            self.replace(gone, grown, moments, optimizer)
            self.counts[MOVES] += 1
        moves = int(self.counts[MOVES])
        return {
            "move": moves,
            "changed": n,
            "age": age,
            "seen": seen,
            "skipped": skipped,
        }

    def exchange(self, k: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """(which entries go, which come, mean and mean square of their gradients).

        An entry that would be dropped and grown at once stays as it is.
        """
        weak = self.values.detach().abs().argsort(stable=True)  # the weakest first
        steps = self.counts[SEEN]
        if self.grow == "AG":
            pool = self.candidates
            total, squares = self.sums[TOTAL], self.sums[SQUARES]
            score = total.abs()
            free = ~torch.isin(pool, self.index[weak[k:]])  # all but the survivors
        else:
            pool = torch.arange(self.d_out * self.d_in, device=self.index.device)
            score = torch.outer(self.rows, self.cols).flatten()
            squares = torch.minimum(self.rows[:, None], self.cols).flatten()
            total = torch.zeros_like(squares)
            free = ~torch.isin(pool, self.index)  # as the authors' code has it
        free = free.nonzero()[:, 0]
        best = free[masks.top(score[free], min(k, len(free)))] if k else free[:0]
        stays = torch.isin(self.index[weak[:k]], pool[best])
        come = best[~torch.isin(pool[best], self.index)]
        gone = weak[:k][~stays][: len(come)]
        return gone, pool[come], (total[come] / steps, squares[come] / steps)

    def replace(
        self,
        gone: Tensor,
        grown: Tensor,
        moments: tuple[Tensor, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """`grown` in the place of the entries at `gone`, all in order again."""
        self.put_back()
        kept = torch.ones_like(self.index, dtype=torch.bool)
        kept[gone] = False
        order = torch.cat([self.index[kept], grown]).argsort()

        def remap(t: Tensor, new: Tensor | float) -> None:
            fresh = t.new_zeros(len(grown)) + new
            t.copy_(torch.cat([t[kept], fresh.to(t.dtype)])[order])

        state = optimizer.state.get(self.values, {})
        groups = [g for g in optimizer.param_groups if _holds(g, self.values)]
        t = float(state.get("step", 0))
        betas = groups[0].get("betas", (0.0, 0.0)) if groups else (0.0, 0.0)
        begins = {
            name: m * (1 - float(beta) ** t)
            for name, m, beta in zip(
                ("exp_avg", "exp_avg_sq"), moments, betas, strict=True
            )
        }
        for name, s in state.items():
            if isinstance(s, Tensor) and s.shape == self.values.shape:
                remap(s, begins.get(name, 0.0))
        remap(self.values.data, 0.0)
        remap(self.age, 0.0)
        self.index.copy_(torch.cat([self.index[kept], grown])[order])
        self.set_aside()

    # ---- the bill, the state, the file
    @classmethod
    def law(
        cls,
        adapter: Any = None,
        grow: str = "AG",
        phase: str = "",
        count: int | None = None,
        **given: Any,
    ) -> Law:
        K = K_OF_DENSITY if count is None else count
        law = super().law(adapter, {"K": K, "columns": "min(K, d_in)"})
        int64 = law.int64 | {"age": "K", "counts": "3"}
        wide = {"r": "d_out", "c": "d_in"} if grow == "MA" else {}
        if not phase:
            return replace(law, int64=int64, wide=wide)
        return replace(
            law,
            token=law.token | {"x": "d_in"},
            int64=int64 | {"candidates": "K"},
            wide={"Σ G, Σ G², G": "4*K"},
        )

    def set_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.make_room(tensors)
        super().set_own_tensors(tensors)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        self.make_room(own)
        super()._load_from_state_dict(state, prefix, *rest)

    def make_room(self, tensors: dict[str, Tensor]) -> None:
        """For a state within a watch or without. ValueError: it is neither."""
        if "candidates" not in tensors or "sums" not in tensors:
            return  # torch says what is missing
        K = len(tensors["candidates"])
        if K not in (0, len(self.index)) or tensors["sums"].shape != (4, K):
            raise ValueError(
                f"candidates has the wrong shape ({K},), or sums "
                f"{tuple(tensors['sums'].shape)}."
            )
        if K != len(self.candidates):
            self.candidates = self.index.new_zeros(K)
            self.sums = self.sums.new_zeros(4, K)

    def extra_repr(self) -> str:
        own = f"grow={self.grow}, K={len(self.index):,}, every={self.every}"
        return f"{super().extra_repr()}, {own}"


def _holds(group: dict[str, Any], parameter: Tensor) -> bool:
    return any(p is parameter for p in group["params"])
