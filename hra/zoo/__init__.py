"""Small models, really pretrained, in the repository; and any other GPT-2 by the same
call.

`gpt2("tiny")`: 3 M parameters, pretrained by `python -m hra.zoo.pretrain gpt2-tiny` on
the addresses in `hra.data` (see the card in `hra/zoo/gpt2-tiny/README.md`).
`vit("tiny")`: 0.8 M parameters, pretrained on the digits in `hra.data.digits`;
`vit("tiny-0-5")` has seen the digits 0 to 5 only.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from hra.data import digits

_HERE = Path(__file__).parent
_OURS = {"tiny": "gpt2-tiny"}
_VITS = {"tiny": "vit-tiny", "tiny-0-5": "vit-tiny-0-5"}


@cache
def _checked(folder: Path) -> Path:
    """`folder`, once every file's SHA-256 agrees with SHA256SUMS."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(
                f"{name} of hra's {folder.name} is damaged (its SHA-256 differs). "
                "Install hra again."
            )
    return folder


def gpt2(name: str = "tiny", **config: Any) -> Any:
    """A transformers GPT2LMHeadModel in eval mode, float32.

    name: "tiny" (ours, offline), "random" (fresh weights, `config` as for GPT2Config,
    plus `seed`), or a hub id or a folder that transformers can load. Raises OSError,
    saying what to do, when that is absent and there is no network.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if name == "random":
        seed = config.pop("seed", 0)
        base = {
            "vocab_size": 256,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _ready(GPT2LMHeadModel(GPT2Config(**{**base, **config})))
    if config:
        raise TypeError(
            f"gpt2({name!r}) takes no further arguments; {sorted(config)} belong to "
            "gpt2('random', ...)."
        )
    if name in _OURS:
        folder = _checked(_HERE / _OURS[name])
        return _ready(_own(GPT2LMHeadModel, GPT2Config, folder))
    try:
        return _ready(GPT2LMHeadModel.from_pretrained(name))
    except Exception as e:
        raise OSError(_absent(name, e, "gpt2", _OURS)) from e


def vit(name: str = "tiny", **config: Any) -> Any:
    """A transformers ViTForImageClassification in eval mode, float32. Its images come
    from `processor(name)` or from `hra.data.digits.image_batches`, not as they are.

    name: "tiny" (ours, offline: the ten digits), "tiny-0-5" (ours: trained on 0 to 5,
    with a head for all ten), "random" (fresh weights, `config` as for ViTConfig, plus
    `seed`), or a hub id or a folder. Raises OSError, saying what to do, when that is
    absent and there is no network.
    """
    from transformers import ViTConfig, ViTForImageClassification

    if name == "random":
        seed = config.pop("seed", 0)
        base = {
            "image_size": 28,
            "patch_size": 7,
            "num_channels": 1,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_labels": 10,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _ready(
                ViTForImageClassification(ViTConfig(**{**base, **config})),
                "ForSequenceClassification",
            )
    if config:
        raise TypeError(
            f"vit({name!r}) takes no further arguments; {sorted(config)} belong to "
            "vit('random', ...)."
        )
    if name in _VITS:
        folder = _checked(_HERE / _VITS[name])
        return _ready(
            _own(ViTForImageClassification, ViTConfig, folder),
            "ForSequenceClassification",
        )
    try:
        return _ready(
            ViTForImageClassification.from_pretrained(name), "ForSequenceClassification"
        )
    except Exception as e:
        raise OSError(_absent(name, e, "vit", _VITS)) from e


def _own(kind: Any, config: Any, folder: Path) -> Any:
    """The model of `kind` whose fp16 weights are in `folder`, in fp32."""
    from safetensors.torch import load_file

    with torch.random.fork_rng():
        model = kind(config.from_pretrained(folder))
    state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, extra = model.load_state_dict(state, strict=False)
    if extra or set(missing) - {"lm_head.weight"}:
        raise ValueError(
            f"{folder.name} does not hold the tensors of a {kind.__name__}: missing "
            f"{missing}, extra {extra}."
        )
    model.tie_weights()
    return model


def _ready(model: Any, loss: str = "ForCausalLM") -> Any:
    """In eval mode, and told which loss it has: transformers does not know it from the
    class's name and warns.
    """
    model.loss_type = loss
    return model.eval()


def tokenizer(name: str = "tiny") -> Any:
    """The transformers fast tokenizer that belongs to `gpt2(name)`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name in _OURS:
        return PreTrainedTokenizerFast.from_pretrained(_checked(_HERE / _OURS[name]))
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as e:
        raise OSError(_absent(name, e, "tokenizer", _OURS)) from e


class Processor:
    """From images to what the zoo's ViTs take, called as transformers' image processors
    are: `processor(images, return_tensors="pt")["pixel_values"]`, (N, 1, 28, 28).

    images: one or many, of 28 × 28 grey values, white ink on black paper: tensors or
    arrays, real from 0 to 1 or uint8 from 0 to 255, (28, 28), (N, 28, 28) or
    (N, 1, 28, 28); PIL images; lists of these. Raises ValueError for another size or
    range.
    """

    size: ClassVar[dict[str, int]] = {"height": digits.SIDE, "width": digits.SIDE}
    image_mean, image_std = (digits.MEAN,), (digits.STD,)

    def __call__(self, images: Any, return_tensors: str | None = "pt") -> Any:
        from transformers import BatchFeature

        if return_tensors not in ("pt", "np", None):
            raise ValueError(
                f"return_tensors={return_tensors!r}: there are 'pt' (the default) and "
                "'np'."
            )
        many = images if isinstance(images, list | tuple) else [images]
        if not len(many):
            raise ValueError("there is no image.")
        x = torch.cat([_grey(image) for image in many])
        pixels = digits.pixel_values(x)
        return BatchFeature(
            {"pixel_values": pixels.numpy() if return_tensors == "np" else pixels}
        )


def _grey(image: Any) -> torch.Tensor:
    """(N, 1, 28, 28) float32 from 0 to 1."""
    if hasattr(image, "convert"):  # PIL
        image = np.array(image.convert("L"))
    x = torch.as_tensor(image)
    side = digits.SIDE
    channel = x.ndim in (2, 3) or (x.ndim == 4 and x.shape[1] == 1)
    if not channel or x.shape[-2:] != (side, side):
        raise ValueError(
            f"an image of shape {tuple(x.shape)}; needed are ({side}, {side}), "
            f"(N, {side}, {side}) or (N, 1, {side}, {side})."
        )
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if not (x.min() >= 0 and x.max() <= 1):  # NaN too
        raise ValueError(
            f"pixels from {x.min():.3g} to {x.max():.3g}; needed are real numbers from "
            "0 (paper) to 1 (ink), or uint8. Are they normalised already?"
        )
    return x.reshape(-1, 1, side, side)


def processor(name: str = "tiny") -> Any:
    """The image processor that belongs to `vit(name)`, as `tokenizer` is for text.

    For "tiny" and "tiny-0-5" a `Processor`, which `hra.data.digits` uses as well; else
    transformers' AutoImageProcessor of a hub id or a folder. Raises OSError, saying
    what to do, when that is absent.
    """
    if name in _VITS:
        return Processor()
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name)
    except Exception as e:
        raise OSError(_absent(name, e, "processor", _VITS)) from e


def _absent(name: str, e: Exception, kind: str, ours: dict[str, str]) -> str:
    return (
        f"{name!r} could not be loaded: it is neither a model of hra "
        f"({', '.join(ours)}) nor a folder here, and the "
        f"model hub did not give it ({type(e).__name__}). Offline, use "
        f"{kind}('tiny'), or download the model on a "
        "machine with a network (hf download) and give the folder's path."
    )


@torch.no_grad()
def generate(
    model: Any,
    tok: Any,
    prompt: str,
    tokens: int = 60,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """`prompt` continued by sampling, from an explicit seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([tok(prompt)["input_ids"]])
    model.eval()
    for _ in range(tokens):
        logits = model(input_ids=ids[:, -model.config.n_positions :]).logits[0, -1]
        p = torch.softmax(logits.float() / temperature, -1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)[None]], 1)
    return tok.decode(ids[0])
