"""One paper, one file, read top to bottom beside its equation. A new method is one line here."""
from hra.adapter import Adapter
from hra.methods.fullft import FullFT
from hra.methods.lora import LoRA
from hra.methods.rslora import RsLoRA

METHODS: dict[str, type[Adapter]] = {m.__name__: m for m in (FullFT, LoRA, RsLoRA)}
