"""Small models, really pretrained, in the repository; and any other GPT-2 by the same call.

`gpt2("tiny")`: 3 M parameters, pretrained by `python -m hra.zoo.pretrain gpt2-tiny` on the addresses in `hra.data`
(see the card in `hra/zoo/gpt2-tiny/README.md`).
"""
from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).parent
_OURS = {"tiny": "gpt2-tiny"}


@cache
def _checked(folder: Path) -> Path:
    """`folder`, once every file's SHA-256 agrees with SHA256SUMS."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{name} of hra's {folder.name} is damaged (its SHA-256 differs). Install hra again.")
    return folder


def gpt2(name: str = "tiny", **config: Any) -> Any:
    """A transformers GPT2LMHeadModel in eval mode, float32.

    name: "tiny" (ours, offline), "random" (fresh weights, `config` as for GPT2Config, plus `seed`), or a hub id or a
    folder that transformers can load. Raises OSError, saying what to do, when that is absent and there is no network.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if name == "random":
        seed = config.pop("seed", 0)
        base = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
                "bos_token_id": 0, "eos_token_id": 0}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _ready(GPT2LMHeadModel(GPT2Config(**{**base, **config})))
    if config:
        raise TypeError(f"gpt2({name!r}) takes no further arguments; {sorted(config)} belong to gpt2('random', ...).")
    if name in _OURS:
        from safetensors.torch import load_file

        folder = _checked(_HERE / _OURS[name])
        with torch.random.fork_rng():
            model = GPT2LMHeadModel(GPT2Config.from_pretrained(folder))
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        missing, extra = model.load_state_dict(state, strict=False)
        if extra or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"{folder.name} does not hold the tensors of a GPT-2: missing {missing}, unexpected {extra}.")
        model.tie_weights()
        return _ready(model)
    try:
        return _ready(GPT2LMHeadModel.from_pretrained(name))
    except Exception as e:
        raise OSError(_absent(name, e)) from e


def _ready(model: Any) -> Any:
    """In eval mode, and told which loss it has: transformers does not know it from the class's name and warns."""
    model.loss_type = "ForCausalLM"
    return model.eval()


def tokenizer(name: str = "tiny") -> Any:
    """The transformers fast tokenizer that belongs to `gpt2(name)`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name in _OURS:
        return PreTrainedTokenizerFast.from_pretrained(_checked(_HERE / _OURS[name]))
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as e:
        raise OSError(_absent(name, e)) from e


def _absent(name: str, e: Exception) -> str:
    return (f"{name!r} could not be loaded: it is neither a model of hra ({', '.join(_OURS)}) nor a folder here, and the "
            f"model hub did not give it ({type(e).__name__}). Offline, use gpt2('tiny'), or download the model on a "
            "machine with a network (hf download) and give the folder's path.")


@torch.no_grad()
def generate(model: Any, tok: Any, prompt: str, tokens: int = 60, temperature: float = 0.8, seed: int = 0) -> str:
    """`prompt` continued by sampling, from an explicit seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([tok(prompt)["input_ids"]])
    model.eval()
    for _ in range(tokens):
        logits = model(input_ids=ids[:, -model.config.n_positions:]).logits[0, -1]
        p = torch.softmax(logits.float() / temperature, -1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)[None]], 1)
    return tok.decode(ids[0])
