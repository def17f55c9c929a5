"""Diff pruning.  Guo, Rush & Kim, 2021.  arXiv:2012.07463

    ΔW = z_g z ⊙ w    w, z: (d_out, d_in)   z_g: one number a layer

z are relaxed gates, hard-concrete (Louizos et al., 2018) with α of z's shape,

    z = min(1, max(0, (ζ − γ) s + γ)),   s = σ(α + log u − log(1 − u)),   u ~ U(0, 1)

in training; in eval mode log u − log(1 − u) gives way to its median, 0. z_g is a gate
of the same kind for the whole layer. w starts at zero, α at 5. To the loss comes

    λ E‖ΔW‖₀ = λ σ(α_g − c) Σ σ(α − c),   c = log(−γ / ζ)

Then the K entries of the largest |ΔW|, of all layers ranked together, train on as
numbers of their own, without gates.

The released code departs from this: it seeds torch anew in each step, so that every
step draws the same u, and its penalty adds σ(α_g − c) to the sum, where the expectation
multiplies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra import masks
from hra.adapter import Adapter, Method, forget
from hra.checks import check_bool, check_number
from hra.entries import K_OF_DENSITY, Entries
from hra.law import Law

GATES = ("log_alpha", "log_alpha_g")


class DiffPruning(Entries):
    """Trains 2 d_out d_in + 1 numbers (`w`, `log_alpha`, `log_alpha_g`), and from
    `fix` on K, `values`, as `Entries` does.

    density, count: the budget, of which every layer gets one entry at least. fixed: the
    last share of the run that `begin` announces (`hra.fit` calls it), in which the
    gates are gone; None: they stay until `DiffPruning.harden`. start: of α. lam: λ.
    structured: whether there is a z_g. gate_lr: the rate of α and α_g. Raises TypeError
    or ValueError for a number out of its range.

    Each step of the optimizer draws u once, from (seed, site, `steps`): the same in
    every process and in a resumed run. With several processes `begin` takes fixed=0.0
    or None alone: after `fix` a DistributedDataParallel has to be made anew.
    """

    phases = ("", "fixed")
    w: Float[Tensor, "d_out d_in"]
    log_alpha: Float[Tensor, "d_out d_in"]
    log_alpha_g: Float[Tensor, " 1"]
    steps: Tensor  # how many the optimizer has taken

    def __init__(
        self,
        base: nn.Module,
        density: float = 0.005,
        count: int | None = None,
        fixed: float | None = 0.5,
        start: float = 5.0,
        lam: float = 1.25e-7,
        structured: bool = True,
        gate_lr: float = 0.1,
        gamma: float = -1.5,
        zeta: float = 1.5,
        *,
        shared: Tensor | None = None,
        together: list[DiffPruning] | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        Adapter.__init__(self, base, seed=seed, site=site)
        inf = float("inf")
        masks.budget(self.d_out, self.d_in, density, count)
        self.density, self.count = density, count
        if fixed is not None:
            check_number("fixed", fixed, 0.0, 1.0, closed_low=True, closed_high=True)
        if fixed == 1 and shared is None:
            raise ValueError(
                "fixed=1.0 leaves no step to choose entries in; a file may have it."
            )
        self.fixed, self.when = fixed, 0  # after which step the gates go; 0: never
        self.lam = check_number("lam", lam, 0.0, inf, closed_low=True)
        self.structured = check_bool("structured", structured)
        self.gate_lr = check_number("gate_lr", gate_lr, 0.0, inf)
        self.gamma = check_number("gamma", gamma, -inf, 0.0)
        self.zeta = check_number("zeta", zeta, 1.0, inf)
        start = check_number("start", start, -inf, inf)
        self.together = [] if together is None else together
        self.together.append(self)
        self.w = self.new_parameter(self.d_out, self.d_in)
        for name in GATES[: 1 + structured]:
            shape = self.w.shape if name == "log_alpha" else (1,)
            setattr(self, name, self.new_parameter(*shape))
            self.get_parameter(name).data.fill_(start)
        steps = torch.tensor(0, device=self.w.device)
        self.register_buffer("steps", steps)
        if shared is not None:
            self.fix(shared)

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """All sites know each other: they are ranked together."""
        made, together = super().plan(sites, **hyper), list[DiffPruning]()
        return {site: given | {"together": together} for site, given in made.items()}

    # ---- the gates
    @property
    def hard(self) -> bool:
        """Whether the gates are gone."""
        return "index" in self._buffers

    @property
    def phase(self) -> str:  # type: ignore[override]
        return "fixed" if self.hard else ""

    def gate(self, name: str, noisy: bool) -> Tensor:
        """z or z_g."""
        logit: Tensor = getattr(self, name)  # a tensor in a transform
        if noisy:
            draw = self.generator(f"{name} {int(self.steps)}")
            u = torch.rand(logit.shape, generator=draw, dtype=torch.float32)
            logit = logit + u.logit(1e-6).to(logit)
        s = logit.sigmoid()
        return ((self.zeta - self.gamma) * s + self.gamma).clamp(0, 1)

    def gated(self, noisy: bool = False) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        """z_g z ⊙ w, as wide as it trains."""
        z = self.gate("log_alpha", noisy)
        if self.structured:
            z = z * self.gate("log_alpha_g", noisy)
        return z * self.w

    def expected(self) -> Tensor:
        """E‖ΔW‖₀, over u: by how many entries of w are expected to pass."""
        self.refuse_sharded()
        c = math.log(-self.gamma / self.zeta)
        n = (self.log_alpha - c).sigmoid().sum()
        if self.structured:
            n = n * (self.log_alpha_g - c).sigmoid().sum()
        return n

    def penalty(self) -> Tensor | float:
        return 0.0 if self.hard or not self.lam else self.lam * self.expected()

    # ---- the map
    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        if self.hard:
            return super().delta_weight()
        return self.like_base(self.gated(self.training))

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        return super().forward(x) if self.hard else Adapter.forward(self, x)

    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        return super().changes() if self.hard else Adapter.changes(self)

    def entries(self) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        return super().entries() if self.hard else Adapter.entries(self)

    # ---- training
    def begin(self, steps: int) -> None:
        if self.fixed is None or self.hard:
            return
        self.when = max(1, steps - round(self.fixed * steps))
        dist = torch.distributed
        many = dist.is_available() and dist.is_initialized()
        if many and dist.get_world_size() > 1 and self.when < steps:
            raise ValueError(
                "DistributedDataParallel does not see that the parameters change when "
                "the gates go: with several processes pass fixed=0.0, and make it anew "
                "to train the entries that are left."
            )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        if self.hard:
            return super().param_groups(lr)
        gates = [self.get_parameter(n) for n in GATES[: 1 + self.structured]]
        own = {"params": gates, "lr": self.gate_lr, "weight_decay": 0.0}
        return [{"params": [self.w], "lr": lr}, own]

    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """`kept`: how many entries of this layer are left, when the gates go."""
        self.refuse_sharded()
        self.steps += 1
        if step != self.when:
            return None
        if not self.hard:
            self.harden(self.together, optimizer)
        return {"kept": len(self.index)}

    def refuse_sharded(self) -> None:
        if any(hasattr(p, "full_tensor") for p in self.parameters()):
            raise RuntimeError(
                "DiffPruning ranks the entries of whole matrices, and fully_shard has "
                "split them between processes: use DistributedDataParallel."
            )

    @staticmethod
    @torch.no_grad()
    def harden(
        adapters: list[DiffPruning], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Fix the entries of all these, ranked together; exactly as many are left as
        their budgets allow in all.
        """
        size = {a.site: a.gated().abs().float() for a in adapters}
        most = max(float(s.max()) for s in size.values())
        for s in size.values():  # no layer without an entry
            s.view(-1)[s.argmax()] += 2 * most + 1
        first = adapters[0]
        chosen = masks.top_of_all(size, first.density, first.count)
        for a in adapters:
            a.fix(chosen[a.site], optimizer)

    @torch.no_grad()
    def fix(
        self, index: Tensor, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Gates off: ΔW at `index` trains on, under the moments that w has there."""
        w, kept = self.w, self.gated().flatten()[index.to(self.w.device)]
        state = {} if optimizer is None else optimizer.state.get(w, {})
        for name, s in list(state.items()):
            if isinstance(s, Tensor) and s.shape == w.shape:
                state[name] = s.flatten()[index.to(s.device)]
            elif (
                isinstance(s, Tensor) and s.numel() > 1
            ):  # Adafactor's rows: begin anew
                state.clear()
                break
        gone = [self.get_parameter(n) for n in GATES[: 1 + self.structured]]
        for name in ("w", *GATES[: 1 + self.structured]):
            delattr(self, name)
        self.hold(index.to(w.device))
        # the optimizer keeps the parameters that it was given: w gets another shape
        for p, data in ((w, kept), *((p, kept[:0]) for p in gone)):
            p.grad, p.data = None, data.half()  # another dtype: autograd forgets p
            p.data = data
        self.values = w
        if optimizer is not None:
            forget(optimizer, *gone)

    # ---- the bill
    @classmethod
    def law(
        cls,
        grad: bool = True,
        phase: str = "",
        structured: bool = True,
        lam: float = 1.0,
        adapter: Any = None,
        count: int | None = None,
        **given: Any,
    ) -> Law:
        """With gates every step of the formulas is kept, a matrix each, the penalty's
        too.
        """
        if phase == "fixed":
            K = K_OF_DENSITY if count is None else count
            law = super().law(adapter, {"K": K, "columns": "min(K, d_in)"})
            law.int64["steps"] = "1"
            return law
        each = ["s", "s stretched", "z"] + ["z_g z"] * structured
        each += ["σ(α − c)"] * (lam > 0)
        masters = dict.fromkeys(each, "d_out*d_in")
        trained = dict.fromkeys(["w", "log_alpha"], "d_out*d_in")
        if structured:
            trained["log_alpha_g"] = "1"
            masters["of z_g"] = "6" if lam else "3"
        return Law(
            trained,
            {"x": "d_in"},
            once={"W": "d_out*d_in"} if grad else {},
            masters=masters,
            int64={"steps": "1"},
        )

    # ---- files and states: with gates, or the entries alone
    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        if hyper["fixed"] == 1:
            return super().schema(shape, hyper)
        gates = {"log_alpha": shape, "log_alpha_g": (1,)}
        own = {n: gates[n] for n in GATES[: 1 + bool(hyper["structured"])]}
        return {"w": shape, "steps": (), **own}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.hard:
            return super().packed(hyper | {"fixed": 1.0})
        return Method.packed(self, hyper)

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        super().unpack(tensors) if self.hard else Method.unpack(self, tensors)

    def set_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        if "index" in tensors and not self.hard:
            self.fix(tensors["index"])
        if self.hard:
            super().set_own_tensors(tensors)
        else:
            Method.set_own_tensors(self, tensors)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}index" in state and not self.hard:
            self.fix(state[f"{prefix}index"])
        if self.hard:
            super()._load_from_state_dict(state, prefix, *rest)
        else:
            nn.Module._load_from_state_dict(self, state, prefix, *rest)

    def extra_repr(self) -> str:
        left = f"K={len(self.index):,}" if self.hard else f"lam={self.lam:g}"
        return f"{super().extra_repr()}, {left}"
