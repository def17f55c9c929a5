"""rsLoRA: the rank-stabilised scale.  Kalajdzievski, 2023.  arXiv:2312.03732

    ΔW = (α / √r) B A        A: (r, d_in)   B: (d_out, r)

With α/r the first step of training shrinks as 1/r; with α/√r its size does not depend
on r.
"""

import math

from hra.methods.lora import LoRA


class RsLoRA(LoRA):
    """LoRA with the scale α/√r."""

    @staticmethod
    def scaling(alpha: float, r: int) -> float:
        return alpha / math.sqrt(r)
