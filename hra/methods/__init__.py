"""One paper, one file, read top to bottom beside its equation. A new method is one line here."""
from hra.adapter import Adapter
from hra.methods.asylora import AsyLoRA
from hra.methods.dora import DoRA
from hra.methods.fullft import FullFT
from hra.methods.lora import LoRA
from hra.methods.lorafa import LoRAFA
from hra.methods.loraplus import LoRAPlus
from hra.methods.nola import NOLA
from hra.methods.pranc import PRANC
from hra.methods.rslora import RsLoRA
from hra.methods.vera import VeRA

_ALL: tuple[type[Adapter], ...] = (
    FullFT,
    LoRA,
    RsLoRA,
    LoRAPlus,
    LoRAFA,
    AsyLoRA,
    DoRA,
    VeRA,
    NOLA,
    PRANC,
)
METHODS: dict[str, type[Adapter]] = {m.__name__: m for m in _ALL}
