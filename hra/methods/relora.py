"""ReLoRA: LoRA, restarted.  Lialin et al., 2023.  arXiv:2307.05695

    W ← W + (α / r) B A  every `every` steps                                    (eq. 1)

A and B then begin again, from another draw and with fresh moments.
"""

from hra.methods.lora import LoRA
from hra.restart import Restart


class ReLoRA(Restart, LoRA):  # type: ignore[misc]
    """Trains r (d_in + d_out) numbers at a time; after N restarts rank ΔW ≤ (N + 1) r.

    Raises what LoRA raises, ValueError for a bad `every`, `reset`, `prune`, `rewarm`.
    """
