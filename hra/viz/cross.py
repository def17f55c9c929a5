"""Two small adapters by hand: A1ᵀA2, AWOR, AWOM, and the cross terms that an activation
makes of their outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra.analysis import orthogonality
from hra.viz.static import StaticWidget

SIGNS = "-0+"  # of an entry: −1, 0, 1
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
}
LOW, HIGH = -3.0, 3.0  # of z

# A1, A2 and z; the first is what is painted at the start
PAIRS = {
    "orthogonal outputs": ("+000 +000 0000 0000", "0+00 0-00 0000 0000", 0.0),
    "disjoint rows": ("++00 ++00 0000 0000", "0000 0000 0++0 0+++", -1.5),
    "disjoint columns": ("++00 ++00 ++00 ++00", "00++ 00++ 00++ 00++", -3.0),
    "A₁ = A₂ = I": ("+000 0+00 00+0 000+", "+000 0+00 00+0 000+", -1.5),
}


class CrossTerms(StaticWidget):
    """The reader paints A1 and A2, 4 × 4 with entries −1, 0 and 1; the input is all
    ones, and W gives every output the value z before the adapters.

    a, b: rows of A1 and A2 of `-`, `0`, `+`, parted by blanks; z: -3 to 3;
    activation: "identity", "ReLU" or "GELU". Raises ValueError for another.
    """

    _js_path = Path(__file__).with_name("cross.js")
    a = traitlets.Unicode().tag(sync=True)
    b = traitlets.Unicode().tag(sync=True)
    z = traitlets.Float(0.0).tag(sync=True)
    activation = traitlets.Unicode("ReLU").tag(sync=True)

    def __init__(
        self, a: str = "", b: str = "", activation: str = "ReLU", **kwargs: Any
    ) -> None:
        first = next(iter(PAIRS.values()))
        kwargs.setdefault("title", "Two adapters, painted")
        kwargs.setdefault(
            "presets",
            {name: {"a": p, "b": q, "z": z} for name, (p, q, z) in PAIRS.items()},
        )
        kwargs.setdefault(
            "caption",
            "Click an entry, or use arrows and the space bar: 0, then 1, then −1. All "
            "inputs are 1. Watch the last column, what the two do together beyond what "
            "each does alone.",
        )
        kwargs.setdefault(
            "alt",
            "Two painted 4 × 4 matrices, their product A₁ᵀA₂, and a table of outputs "
            "with the cross term of each",
        )
        super().__init__(
            a=a or first[0], b=b or first[1], activation=activation, **kwargs
        )

    @traitlets.validate("a", "b")
    def _check_rows(self, proposal: Any) -> str:
        rows = proposal["value"]
        if [len(r) for r in rows.split(" ")] != [4] * 4 or set(rows) - {" ", *SIGNS}:
            raise ValueError(
                f"{rows!r}: four rows of four entries {' '.join(SIGNS)} are needed."
            )
        return rows

    @traitlets.validate("activation")
    def _check_activation(self, proposal: Any) -> str:
        if (name := proposal["value"]) not in ACTIVATIONS:
            raise ValueError(
                f"activation={name!r} does not exist; there are "
                f"{', '.join(ACTIVATIONS)}."
            )
        return name

    @traitlets.validate("z")
    def _check_z(self, proposal: Any) -> float:
        z = float(proposal["value"])
        if not LOW <= z <= HIGH:
            raise ValueError(f"z={z} is out of range: {LOW:g} to {HIGH:g}.")
        return z

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A1 and A2, (4, 4) float64."""
        one, two = (
            torch.tensor([[SIGNS.index(c) - 1.0 for c in row] for row in m.split(" ")])
            for m in (self.a, self.b)
        )
        return one.double(), two.double()

    def facts(self) -> dict[str, Any]:
        """The product A1ᵀA2 by rows, AWOR, AWOM (Frobenius), the outputs a and b, the
        effect of `both`, the sum of the two effects `alone`, and the `cross` terms.
        """
        A1, A2 = self.matrices()
        sigma = ACTIVATIONS[self.activation]
        x, W = torch.ones(4).double(), torch.full((4, 4), self.z / 4).double()
        cross = orthogonality.cross_terms(W, A1, A2, x, sigma)
        z = W @ x
        both = sigma(z + A1 @ x + A2 @ x) - sigma(z)
        return {
            "product": (A1.T @ A2).flatten().tolist(),
            "awor": orthogonality.awor(A1, A2),
            "awom": orthogonality.awom(A1, A2),
            "a": (A1 @ x).tolist(),
            "b": (A2 @ x).tolist(),
            "both": both.tolist(),
            "alone": (both - cross).tolist(),
            "cross": cross.tolist(),
        }

    def summary(self) -> str:
        f = self.facts()
        crossed = sum(abs(c) > 1e-9 for c in f["cross"])
        return (
            f"AWOR {f['awor']:.2f}, AWOM {f['awom']:.2f}; through {self.activation} at "
            f"z = {self.z:g}, {crossed} of 4 outputs with a cross term"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, axes = figure(
            9.0, 2.8, 4, caption=self.caption or self.alt, alt=self.summary()
        )
        f, (A1, A2) = self.facts(), self.matrices()
        product = torch.tensor(f["product"]).view(4, 4)
        for ax, M, name in zip(
            axes, (A1, A2, product), ("A₁", "A₂", "A₁ᵀA₂"), strict=False
        ):
            ax.imshow(M, cmap="PuOr_r", vmin=-2, vmax=2, alpha=0.6)
            for i in range(4):
                for j in range(4):
                    ax.text(j, i, f"{float(M[i, j]):g}", ha="center", va="center")
            ax.grid(False)
            ax.set(xticks=[], yticks=[], title=name)
        at = torch.arange(4.0)
        axes[3].barh(at - 0.2, f["both"], 0.4, color=FAMILIES["sparse"], label="both")
        axes[3].barh(at + 0.2, f["alone"], 0.4, color=INK, label="sum of each")
        axes[3].invert_yaxis()
        axes[3].set(yticks=range(4), yticklabels=range(1, 5), title=self.activation)
        axes[3].legend(frameon=False, fontsize=7)
        return fig
