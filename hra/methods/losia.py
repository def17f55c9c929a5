"""LoSiA: Low-Resources Subnet Integration Adaptation.  Wang et al., 2025.
arXiv:2507.04487

    W = W0 + ΔW    ΔW[Y_S, X_S] = W_S    W_S: (⌊p d_out⌋, ⌊p d_in⌋), trained

Only the block of some outputs Y_S (`rows`) and some inputs X_S (`cols`) trains; it
starts at zero, at a random place. Blocks of the model take turns, a slot of T =
`period` steps each. In its slot a layer watches its dense gradient G,

    s = G ⊙ W    I = |s − ½ s²|
    Ī ← β1 Ī + (1 − β1) I    Ū ← β2 Ū + (1 − β2) |I − Ī|

and at the slot's end the subnet moves to where Ī ⊙ Ū is largest (`hra.localise`). What
it has learnt stays: ΔW lies on the union of all subnets so far. Every layer trains in
every step, in its own slot too.

After the authors' code, but for this: moments and step count begin anew (there only the
moments), the re-warmed rate ends where the others are (there it jumps), gradients may
be accumulated and clipped (there neither acts), weight decay is on the change.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hra import linear, localise, masks, sparse
from hra.adapter import Adapter, forget, generator, mean_of_processes
from hra.checks import check_bool, check_choice, check_count, check_number
from hra.law import Law

IMPORTANCE = ("mix", "first", "second", "gradient")
SCHEDULES = ("async", "sync", "fixed")
# places in `counts`: the step of the last move that is re-warmed (−1: none), how many
# moves, gradients of this slot that counted, that were not finite
WARMS, MOVES, SEEN, SKIPPED = range(4)
GROWING = ("index", "past", "mean", "spread")


class LoSiA(Adapter):
    """Trains ⌊p d_out⌋ ⌊p d_in⌋ numbers at a time. `index` and `past`: where earlier
    subnets were and the present one is not, and what they have learnt.

    importance: of an entry, |s − ½ s²| ("mix"), |s| ("first"), ½ s² ("second") or |G|
    ("gradient"). schedule: "async", one block's slot after the other's; "sync", all
    layers in the first of each L slots; "fixed", the first subnet stays. rewarm: after
    a move the layer's rate rises over T steps, but for a move within the first share
    `warmup` of the run, where the rates of all still rise. p_out: of the output layer,
    which is outside the numbered blocks of the model, the block is ⌊p_out d_out⌋ rows
    and every column (None: as of any layer). shared: layers of one module that read one
    input by their names (`hra.linear.siblings`: q, k and v, or gate and up) have one
    X_S: one draw, one slot, and moves to the columns where the scores of all sum to
    most. LoSiAPro then keeps one x[:, X_S] for them.

    Slots open when training begins: with `begin` (`hra.fit` calls it), or with the
    first `after_step`. G is the gradient of a step as the optimizer gets it:
    accumulated, unscaled, clipped, averaged over processes. One that is not finite is
    left out and counted. A slot costs three dense matrices.

    Raises TypeError or ValueError for p outside (0, 1], a layer narrower than 1/p,
    another importance or schedule, a period below 1, betas or a warm-up outside [0, 1),
    `shared` where no two sites are such layers.
    """

    family = "subnet"
    phases = ("", "slot")
    wide = ("past", "mean", "spread", "seen", "held")
    W_S: Float[Tensor, "m n"]
    rows: Int[Tensor, " m"]  # Y_S, sorted
    cols: Int[Tensor, " n"]  # X_S, sorted
    index: Int[Tensor, " K"]  # flat, sorted, none of it in the subnet
    past: Float[Tensor, " K"]
    counts: Tensor
    mean: Tensor  # Ī in a slot, else empty; so is
    spread: Tensor  # Ū
    seen: Tensor  # the gradient of the step so far
    held: Tensor  # W_S as it was when that was seen

    def __init__(
        self,
        base: nn.Module,
        p: float = 0.125,
        period: int = 100,
        beta1: float = 0.85,
        beta2: float = 0.85,
        importance: str = "mix",
        schedule: str = "async",
        rewarm: bool = True,
        warmup: float = 0.1,
        p_out: float | None = None,
        shared: bool = False,
        *,
        slot: int = 0,
        blocks: tuple[str, ...] = (),
        place: tuple[Tensor, Tensor, Tensor] | None = None,
        siblings: Siblings | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.p, self.period = check_share(p), check_count("period", period)
        self.beta1 = check_number("beta1", beta1, 0.0, 1.0, closed_low=True)
        self.beta2 = check_number("beta2", beta2, 0.0, 1.0, closed_low=True)
        self.importance = check_choice("importance", importance, IMPORTANCE)
        self.schedule = check_choice("schedule", schedule, SCHEDULES)
        self.rewarm = check_bool("rewarm", rewarm)
        self.warmup = check_number("warmup", warmup, 0.0, 1.0, closed_low=True)
        check_bool("shared", shared)
        self.slot, self.blocks = slot, blocks or (site or "the layer",)
        self.steps = 0  # of the run, once `begin` has said it
        self.p_out = None if numbered(site) else p_out
        m, n = sides(p, self.d_out, self.d_in, self.p_out)
        if not (m and n):
            where = f" ({site})" if site else ""
            if self.p_out is not None:
                raise ValueError(
                    f"p_out={p_out} leaves no row of the {self.d_out} outputs{where}."
                )
            raise ValueError(
                f"p={p} leaves no row or no column of this {self.d_out} × {self.d_in} "
                f"layer{where}: a layer has at least 1/p = {1 / p:g} of both. Raise p, "
                "or leave the layer out."
            )
        self.note = f"{m} × {n}"
        self.W_S = self.new_parameter(m, n)
        self.siblings, first = siblings, site
        if siblings is not None:
            siblings.members[site] = self
            first = next(iter(siblings.members))
        if place is None:
            rows, cols = (
                torch.randperm(d, generator=generator(self.seed, whose, what))
                for whose, what, d in (
                    (site, "rows", self.d_out),
                    (first, "cols", self.d_in),
                )
            )
            rows, cols = rows[:m].sort().values, cols[:n].sort().values
            index = torch.zeros(0, dtype=torch.int64)
        else:
            index, rows, cols = _checked(*place, (m, n), (self.d_out, self.d_in))
        device, dtype = self.W_S.device, self.W_S.dtype
        for name, value in (("rows", rows), ("cols", cols), ("index", index)):
            self.register_buffer(name, value.to(device))
        self.register_buffer("past", torch.zeros(len(index), dtype=dtype).to(device))
        self.register_buffer("counts", torch.tensor([-1, 0, 0, 0]).to(device))
        for name in ("mean", "spread", "seen", "held"):
            empty = torch.zeros(0, dtype=dtype, device=device)
            self.register_buffer(name, empty, name in ("mean", "spread"))
        self.register_load_state_dict_post_hook(_loaded)

    # ---- the definition
    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        return self.like_base(self.change(self.W_S))

    def change(self, W_S: Float[Tensor, "m n"]) -> Float[Tensor, "d_out d_in"]:
        """What earlier subnets have learnt, and W_S where the present one is."""
        D = sparse.scatter(self.past, self.index, self.d_out, self.d_in)
        return D.index_put((self.rows[:, None], self.cols), W_S)

    # ---- whose turn it is
    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """A slot for each block of the model, the first number of a site's name; a site
        without a number is a block of its own. ValueError for a `p_out` that no site
        takes.
        """
        if hyper.get("p_out") is not None and all(map(numbered, sites)):
            raise ValueError(
                f"p_out={hyper['p_out']!r} is for the output layer, and all of these "
                f"are in numbered blocks: {', '.join(sites)}. Take targets that meet "
                "it, or leave p_out out."
            )
        made = super().plan(sites, **hyper)
        own = {s: block_of(s) for s in sites}
        if check_bool("shared", hyper.get("shared", False)):
            groups = linear.siblings(sites)
            if not groups:
                raise ValueError(
                    "shared=True: no two of these layers read one input by their names "
                    f"(q_proj, k_proj, v_proj; gate_proj, up_proj; …): "
                    f"{', '.join(sites)}. Leave shared out; a layer that makes "
                    "queries, keys and values at once has one X_S anyway."
                )
            for group in groups:
                one = Siblings()
                for s in group:
                    made[s]["siblings"], own[s] = one, own[group[0]]
        blocks = tuple(dict.fromkeys(own.values()))
        for s, block in own.items():
            made[s] |= {"slot": blocks.index(block), "blocks": blocks}
        return made

    def due(self, step: int) -> bool:
        """Whether the layer watches in this step, counted from 0."""
        turn = step // self.period % len(self.blocks)
        return self.schedule != "fixed" and turn == (
            self.slot if self.schedule == "async" else 0
        )

    def begin(self, steps: int) -> None:
        T, L = self.period, len(self.blocks)
        ends = [T * (i + 1 if self.schedule == "async" else 1) for i in range(L)]
        never = [b for b, end in zip(self.blocks, ends, strict=True) if end > steps]
        if never and self.schedule != "fixed":
            raise ValueError(
                f"{', '.join(never)}: {len(never)} of {L} blocks would never be "
                f"localised. A slot has period={T} steps, all have had one after "
                f"{ends[-1]}, and this run has {steps}. Lower period, train longer, or "
                "take schedule='fixed'."
            )
        self.steps = steps
        self.counts[WARMS] = -1
        self.watch(self.due(0))

    def rate(self, step: int) -> float:
        moved, T = int(self.counts[WARMS]), self.period
        warming = moved >= 0 and step - moved < T
        return (step - moved + 1) / (T + 1) if warming else 1.0

    def watch(self, on: bool) -> None:
        """Begin a slot, or end it."""
        dense = self.past.new_zeros((self.d_out, self.d_in) if on else 0)
        self.mean, self.spread = dense, dense.clone()
        self.counts[SEEN:] = 0
        self.settle()

    def settle(self) -> None:
        """What follows from the state: `phase`, and room for a step's gradient."""
        self.phase = "slot" if len(self.mean) else ""
        self.seen = torch.zeros_like(self.mean)
        self.held = self.past.new_zeros(self.W_S.shape if self.phase else 0)

    # ---- watching
    def observing(self) -> bool:
        return self.phase == "slot"

    @torch.no_grad()
    def observe(self, G: Float[Tensor, "{self.d_out} {self.d_in}"]) -> None:
        if self.phase:
            self.seen += G
            self.held.copy_(self.W_S)

    @torch.no_grad()
    def record(self) -> None:
        """Ī and Ū take in the gradient of the step that is over."""
        G, block = mean_of_processes(self.seen), (self.rows[:, None], self.cols)
        own, grad = G[block].norm(), self.W_S.grad
        if grad is not None and own > 0 and grad.any():  # as the optimizer had it
            G = G * (grad.norm() / own)
        finite = bool(torch.isfinite(G).all())
        if finite:
            now = importance(self.importance, G, self.W0 + self.change(self.held))
            self.mean.mul_(self.beta1).add_(now, alpha=1 - self.beta1)
            now = (now - self.mean).abs_()
            self.spread.mul_(self.beta2).add_(now, alpha=1 - self.beta2)
        self.counts[SEEN if finite else SKIPPED] += 1
        self.seen.zero_()

    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        if hasattr(self.W_S, "full_tensor"):
            raise RuntimeError(
                f"{type(self).__name__} moves its subnet over a whole matrix, and "
                "fully_shard has split it between processes: use "
                "DistributedDataParallel."
            )
        event = None
        if self.phase:
            if not (self.siblings and (self.site, step) in self.siblings.places):
                self.record()
            if step % self.period == 0:
                event = self.move(step, optimizer)
        if event or self.observing() != self.due(step):
            self.watch(self.due(step))
        return event

    @torch.no_grad()
    def move(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The end of a slot; `kept`: the share of the subnet that stays in it."""
        kept, seen, skipped = 1.0, *self.counts[SEEN:].tolist()
        m, n = self.W_S.shape
        if self.siblings:
            place = self.siblings.place(self, step)
        else:
            place = localise.best(self.mean * self.spread, m, n) if seen else None
        if place:
            rows, cols = place
            same = [
                int(torch.isin(new, old).sum())
                for new, old in ((rows, self.rows), (cols, self.cols))
            ]
            kept = same[0] * same[1] / (m * n)
            self.place(rows, cols)
            forget(optimizer, self.W_S)
            self.counts[MOVES] += 1
            warms = self.rewarm and step >= self.warmup * self.steps
            self.counts[WARMS] = step if warms else -1
        moves = int(self.counts[MOVES])
        return {"relocate": moves, "kept": kept, "seen": seen, "skipped": skipped}

    @torch.no_grad()
    def place(self, rows: Int[Tensor, " m"], cols: Int[Tensor, " n"]) -> None:
        """Put the subnet there; ΔW stays. W_S takes over what is learnt there, zero
        where no subnet has been.
        """
        D, old = self.change(self.W_S), self.support()
        self.rows.copy_(rows)
        self.cols.copy_(cols)
        self.index = old[~_inside(old, rows, cols, self.d_in)]
        self.past = D.flatten()[self.index]
        self.W_S.copy_(D[rows[:, None], cols])

    def support(self) -> Int[Tensor, " E"]:
        """The entries of all subnets so far, flat and sorted."""
        flat = (self.rows[:, None] * self.d_in + self.cols).flatten()
        return torch.cat([self.index, flat]).sort().values

    # ---- as a sparse change
    @torch.no_grad()
    def learnt(self) -> tuple[Int[Tensor, " E"], Float[Tensor, " E"]]:
        """(`support`, ΔW there)."""
        at = self.support()
        values = self.past.new_empty(len(at))
        inside = _inside(at, self.rows, self.cols, self.d_in)
        values[inside], values[~inside] = self.W_S.detach().flatten(), self.past
        return at, values

    @torch.no_grad()
    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        at, values = self.learnt()
        W, transposed = self.W0, linear.is_conv1d(self.base)
        new = (W[at // self.d_in, at % self.d_in] + values).to(W.dtype)
        position = sparse.storage_index(at, self.d_out, self.d_in, transposed)
        return {"weight": (position, new)}

    def entries(self) -> tuple[Tensor, Tensor]:
        at, values = self.learnt()
        return at, values.double()

    @classmethod
    def law(
        cls, adapter: Any = None, grad: bool = True, phase: str = "", **given: Any
    ) -> Law:
        """Without an adapter: before the first move."""
        m, n = "p*d_out", "p*d_in"
        if given.get("p_out") is not None and not numbered(given.get("site", "")):
            m, n = "p_out*d_out", "d_in"
        K = 0 if adapter is None else len(adapter.index)
        return Law(
            {"W_S": "m*n"},
            {"x": "d_in"},
            once={"W": "d_out*d_in"} if grad else {},
            int64={"rows": "m", "columns": "n", "index": "K", "counts": "4"},
            wide={"past": "K"}
            | ({"Ī, Ū, G": "3*d_out*d_in", "W_S then": "m*n"} if phase else {}),
            sizes={"m": m, "n": n, "K": K},
        )

    # ---- state and files
    def set_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.make_room(tensors)
        super().set_own_tensors(tensors)
        self.settle()

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        self.make_room(own)
        super()._load_from_state_dict(state, prefix, *rest)

    def make_room(self, tensors: dict[str, Tensor]) -> None:
        """For a state whose lengths differ from the present one's. Raises ValueError
        for one that no training leads to.
        """
        if any(k not in tensors for k in (*GROWING, "rows", "cols")):
            return  # torch says what is missing
        whole = self.d_out, self.d_in
        index, rows, cols = (tensors[k].detach() for k in ("index", "rows", "cols"))
        if len(index):
            masks.check(index, *whole)
        flat = (rows[:, None] * self.d_in + cols).flatten()
        union = torch.cat([index, flat]).sort().values
        m, n = self.W_S.shape
        _checked(union, rows, cols, (m, n), whole)
        for name in GROWING:
            shape = tensors[name].shape
            right = (
                (len(index),) if name in ("index", "past") else tensors["mean"].shape
            )
            if shape != right or tensors["mean"].shape not in ((0,), whole):
                raise ValueError(f"{name} has the wrong shape {tuple(shape)}.")
        for name in GROWING:
            old = self.get_buffer(name)
            if old.shape != tensors[name].shape:
                setattr(self, name, old.new_zeros(tensors[name].shape))

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        lines: tuple[int | None, int | None] = None, None
        if hyper["p_out"] is None:  # else the constructor knows
            lines = sides(hyper["p"], *shape)
        rows, cols = ((n,) for n in lines)
        return {"values": (None,), "mask_hash": (8,), "rows": rows, "cols": cols}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """ΔW on the union of the subnets, the gaps between its entries, and where the
        present subnet is.
        """
        at, values = self.learnt()
        return {
            "values": values,
            "rows": self.rows,
            "cols": self.cols,
            **sparse.mask_kept(at),
        }, hyper

    @torch.no_grad()
    def unpack(self, tensors: dict[str, Tensor]) -> None:
        at = self.support()
        sparse.mask_held_to(tensors, at, self.site)
        inside = _inside(at, self.rows, self.cols, self.d_in)
        values = tensors["values"].to(self.past)
        self.past.copy_(values[~inside])
        self.W_S.copy_(values[inside].view(self.W_S.shape))

    @classmethod
    def plan_from_file(
        cls,
        sites: dict[str, nn.Module],
        hyper: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> dict[str, dict[str, Any]]:
        """As `plan`, with the entries and the subnet that the file holds."""
        made = cls.plan(sites, **hyper)
        for s, layer in sites.items():
            rows, cols = (tensors.get(f"{s}.{k}") for k in ("rows", "cols"))
            if rows is None or cols is None:
                raise ValueError(f"the subnet of {s} is missing.")
            union = sparse.mask_from(tensors, s, linear.weight(layer).numel())
            made[s]["place"] = union, rows, cols
        for group in linear.siblings(sites) if hyper["shared"] else ():
            one, *others = (made[s]["place"][2] for s in group)
            if not all(torch.equal(cols, one) for cols in others):
                raise ValueError(f"{', '.join(group)} do not have one X_S.")
        return made

    def extra_repr(self) -> str:
        own = f"p={self.p:g}, slot {self.slot + 1} of {len(self.blocks)}"
        return f"{super().extra_repr()}, {own}"


class Siblings:
    """Layers with one X_S, {site: adapter}, and what one hands on to the next."""

    def __init__(self) -> None:
        self.members: dict[str, LoSiA] = {}
        self.places: dict[tuple[str, int], localise.Subnet | None] = {}
        # a slice: of which x, in which state, at which columns; for how many to come
        self.slice: tuple[Any, Any, Tensor, Tensor, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"slice": None}  # a copy has other inputs

    def place(self, a: LoSiA, step: int) -> localise.Subnet | None:
        """Where `a` moves after this step; None if one has nothing to go by. The first
        to ask takes in the step's gradient for the others too.
        """
        if (a.site, step) not in self.places:
            every = self.members.values()
            for b in every:
                if b is not a and b.phase:
                    b.record()
            places: Any = [None] * len(every)
            if all(int(b.counts[SEEN]) for b in every):
                scores = [b.mean * b.spread for b in every]
                m, n = [len(b.rows) for b in every], len(a.cols)
                rows, cols = localise.together(scores, m, n)
                places = [(r, cols) for r in rows]
            sites = [(s, step) for s in self.members]
            self.places = dict(zip(sites, places, strict=True))
        return self.places.pop((a.site, step))

    def columns(self, x: Tensor, cols: Tensor, dtype: torch.dtype) -> Tensor:
        """`columns`, or the very tensor that the sibling before has made of this x. Of
        another x, or one that has changed, it is made anew: then all is right, and
        nothing saved.
        """
        if x.is_inference() or torch.compiler.is_compiling():
            return columns(x, cols, dtype)
        state, left, last = (x._version, dtype), len(self.members), self.slice
        if last and last[0]() is x and last[1] == state and _same(last[2], cols):
            kept, left = last[3:]
        else:
            kept = columns(x, cols, dtype)
        own = weakref.ref(x, self.drop), state, cols.clone(), kept, left - 1
        self.slice = own if left > 1 else None
        return kept

    def drop(self, x: Any) -> None:
        """It is gone, and not all have asked."""
        if self.slice and self.slice[0] is x:
            self.slice = None


def columns(x: Tensor, cols: Tensor, dtype: torch.dtype) -> Tensor:
    """x[:, X_S], a row per token."""
    return x.reshape(-1, x.shape[-1]).index_select(1, cols).to(dtype)


def importance(
    kind: str, G: Float[Tensor, "d_out d_in"], W: Float[Tensor, "d_out d_in"]
) -> Float[Tensor, "d_out d_in"]:
    """How much the loss changes if an entry were zero, or |G|; see `IMPORTANCE`."""
    if kind == "gradient":
        return G.abs()
    s = G * W
    if kind == "first":
        return s.abs()
    return s.square() / 2 if kind == "second" else (s - s.square() / 2).abs()


def check_share(p: Any) -> float:
    """`p` as a float if it lies in (0, 1]."""
    return check_number("p", p, 0.0, 1.0, closed_high=True)


def sides(p: Any, d_out: int, d_in: int, p_out: Any = None) -> tuple[int, int]:
    """(⌊p d_out⌋, ⌊p d_in⌋); with p_out (⌊p_out d_out⌋, d_in)."""
    p = check_share(p)
    if p_out is not None:
        share = check_number("p_out", p_out, 0.0, 1.0, closed_high=True)
        return int(share * d_out), d_in
    return int(p * d_out), int(p * d_in)


def numbered(site: str) -> bool:
    """Whether the layer is in one of the model's numbered blocks."""
    return any(part.isdigit() for part in site.split("."))


def block_of(site: str) -> str:
    """A site's name up to its first number, or all of it."""
    parts = site.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: at + 1])


def _inside(at: Tensor, rows: Tensor, cols: Tensor, d_in: int) -> Tensor:
    """Which of the flat positions lie in the subnet."""
    return torch.isin(at // d_in, rows) & torch.isin(at % d_in, cols)


def _same(one: Tensor, two: Tensor) -> bool:
    return one.is_meta or torch.equal(one, two)  # where there are no values


def _checked(
    union: Tensor,
    rows: Tensor,
    cols: Tensor,
    sizes: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """(entries outside the subnet, rows, columns); ValueError if they are none."""
    for lines, size, d in zip((rows, cols), sizes, shape, strict=True):
        masks.check(lines, 1, d, size)
    masks.check(union, *shape)
    inside = _inside(union, rows, cols, shape[1])
    if int(inside.sum()) != sizes[0] * sizes[1]:
        raise ValueError("the subnet is not among the entries.")
    return union[~inside], rows, cols


def _loaded(adapter: LoSiA, keys: Any) -> None:
    """`load_state_dict` is through with the adapter and its base."""
    adapter.settle()
