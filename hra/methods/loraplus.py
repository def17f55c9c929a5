"""LoRA+: a larger learning rate for B.  Hayou et al., 2024.  arXiv:2402.12354

    η_B = λ η_A        λ = `ratio` ≥ 1; ΔW = (α / r) B A as in LoRA

In a wide layer one step of B and one of A at the same rate do not change ΔW by the same
amount; λ evens them out.
"""

from typing import Any

from torch import nn

from hra.checks import check_number
from hra.methods.lora import LoRA


class LoRAPlus(LoRA):
    """LoRA whose B learns `ratio` times as fast as A; ratio = 1 is LoRA. Raises
    ValueError for a ratio ≤ 0.
    """

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        ratio: float = 16.0,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        self.ratio = check_number("ratio", ratio, 0.0, float("inf"))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """A at `lr`, B at ratio · lr."""
        return [
            {"params": [self.A], "lr": lr},
            {"params": [self.B], "lr": self.ratio * lr},
        ]
