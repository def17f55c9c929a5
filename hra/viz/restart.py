"""The spectrum of what restarts have added up, restart by restart: one choice of groups
beside the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets

from hra.viz.static import StaticWidget, check

ROUNDING = 1e-5  # of the largest: what float32 leaves of a singular value that is 0


class RestartExplorer(StaticWidget):
    """Spectra of the accumulated ΔW after 1, 2, … rounds, for each way of restarting.

    spectra: {"LoRA, restarted": [[σ₁, σ₂, …] after one round, … after two, …], …}, all
    of the same length. name: the way that is shown; restarts: how many rounds; least: a
    line, above which singular values are counted. Raises ValueError for spectra of
    unlike lengths, an unknown name, more rounds than there are.
    """

    _js_path = Path(__file__).with_name("restart.js")
    spectra: Any = traitlets.Dict().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    restarts = traitlets.Int(1).tag(sync=True)
    least = traitlets.Float(0.1).tag(sync=True)

    def __init__(
        self,
        spectra: Mapping[str, Sequence[Sequence[float]]],
        name: str = "",
        restarts: int = 1,
        **kwargs: Any,
    ) -> None:
        sizes = {tuple(map(len, rounds)) for rounds in spectra.values()}
        if len(sizes) != 1 or len({*min(sizes)}) != 1 or 0 in min(sizes):
            raise ValueError(
                f"spectra: values in each round, {sorted(sizes)}; all need "
                "as many rounds and values."
            )
        kwargs.setdefault("title", "What restarts add up to")
        kwargs.setdefault(
            "alt",
            "Singular values of the accumulated change, largest first, after each "
            f"round, for {', '.join(spectra)}",
        )
        super().__init__(
            spectra={
                k: [[float(f"{v:.4g}") for v in s] for s in rounds]
                for k, rounds in spectra.items()
            },
            name=name or next(iter(spectra)),
            restarts=restarts,
            **kwargs,
        )

    @traitlets.validate("name")
    def _check_name(self, proposal: Any) -> str:
        if self.spectra and proposal["value"] not in self.spectra:
            raise ValueError(
                f"name={proposal['value']!r}: there are {', '.join(self.spectra)}."
            )
        return proposal["value"]

    @traitlets.validate("restarts")
    def _check_restarts(self, proposal: Any) -> int:
        rounds = [len(s) for s in self.spectra.values()]
        return check(proposal, 1, rounds[0]) if rounds else proposal["value"]

    def facts(self) -> dict[str, Any]:
        """Of the way that is shown: `rank` now and after the first round, and how many
        singular values are `above` the line; of all ways `ranks`.
        """

        def rank(sigma: list[float]) -> int:
            return sum(v > ROUNDING * max(sigma) for v in sigma)

        rounds, at = self.spectra[self.name], self.restarts - 1
        return {
            "rank": rank(rounds[at]),
            "first": rank(rounds[0]),
            "above": sum(v > self.least for v in rounds[at]),
            "ranks": {k: rank(s[at]) for k, s in self.spectra.items()},
        }

    def summary(self) -> str:
        f, n = self.facts(), len(self.spectra[self.name][0])
        return (
            f"{self.name}, round {self.restarts}: rank {f['rank']} of {n}, "
            f"{f['above']} singular values above {self.least:g}"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, ax = figure(caption=self.caption or self.alt, alt=self.summary())
        for k, rounds in self.spectra.items():
            sigma = rounds[self.restarts - 1]
            shown = [v if v > ROUNDING * max(sigma) else float("nan") for v in sigma]
            own = k == self.name
            ax.semilogy(
                range(1, len(sigma) + 1),
                shown,
                color=FAMILIES["square"] if own else INK,
                alpha=1 if own else 0.3,
            )
        ax.axhline(self.least, color=INK, linestyle=":", linewidth=1)
        ax.set(xlabel="index i", ylabel="singular value σᵢ", title=self.summary())
        return fig
