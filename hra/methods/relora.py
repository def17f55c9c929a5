"""ReLoRA: LoRA, restarted.  Lialin et al., 2023.  arXiv:2307.05695

    W ← W + (α / r) B A  every `every` steps                                    (eq. 1)

A and B then begin again, with fresh moments.
"""

from hra.methods.lora import LoRA
from hra.restart import Restart


class ReLoRA(Restart, LoRA):
    """Trains r (d_in + d_out) numbers at a time."""
