"""One paper, one file, read top to bottom beside its equation. A new method is one line
here.
"""

from hra.adapter import Method
from hra.methods.asylora import AsyLoRA
from hra.methods.bitfit import BitFit
from hra.methods.diffpruning import DiffPruning
from hra.methods.dora import DoRA
from hra.methods.fish import FISH
from hra.methods.fullft import FullFT
from hra.methods.houlsby import Houlsby
from hra.methods.linadapter import LinAdapter
from hra.methods.lora import LoRA
from hra.methods.lorafa import LoRAFA
from hra.methods.loraplus import LoRAPlus
from hra.methods.losia import LoSiA
from hra.methods.losiapro import LoSiAPro
from hra.methods.ltsft import LTSFT
from hra.methods.mora import MoRA
from hra.methods.nola import NOLA
from hra.methods.partialft import PartialFT
from hra.methods.pranc import PRANC
from hra.methods.prefixtuning import PrefixTuning
from hra.methods.prompttuning import PromptTuning
from hra.methods.relora import ReLoRA
from hra.methods.remora import ReMoRA
from hra.methods.rosa import RoSA
from hra.methods.rslora import RsLoRA
from hra.methods.shira import SHiRA
from hra.methods.sora import SoRA
from hra.methods.sparseadapter import SparseAdapter, SparseAdapterLoRA
from hra.methods.spiel import SpIEL
from hra.methods.vera import VeRA

_ALL: tuple[type[Method], ...] = (
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
    BitFit,
    Houlsby,
    LinAdapter,
    PrefixTuning,
    PromptTuning,
    SHiRA,
    MoRA,
    ReLoRA,
    ReMoRA,
    LoSiA,
    LoSiAPro,
    PartialFT,
    FISH,
    LTSFT,
    RoSA,
    SpIEL,
    SoRA,
    SparseAdapter,
    DiffPruning,
    SparseAdapterLoRA,
)
METHODS: dict[str, type[Method]] = {m.__name__: m for m in _ALL}
