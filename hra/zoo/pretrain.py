"""Pretrain the zoo's own models from scratch, on the texts in the repository.
Resumable, seeded, logged.

    python -m hra.zoo.pretrain gpt2-tiny [--steps 8000] [--folder hra/zoo/gpt2-tiny]
    [--threads 2]
    python -m hra.zoo.pretrain vit-tiny          # and vit-tiny-0-5

A run that is interrupted continues from `checkpoint.pt` in the working folder. The
result is fp16 safetensors, the tokenizer, config.json, log.json and SHA256SUMS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from hra import data
from hra.data import digits

GPT2_TINY: dict[str, Any] = {
    "n_embd": 192,
    "n_layer": 6,
    "n_head": 6,
    "n_positions": 128,
}
VIT_TINY: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 7,
    "num_channels": 1,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_labels": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VOCABULARY = 2048
END = "<|endoftext|>"


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`; every string can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        clean_up_tokenization_spaces=False,
    )


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * t)))


@torch.no_grad()
def validation_loss(model: Any, ids: torch.Tensor, windows: int = 128) -> float:
    """Mean nats a token over evenly spaced windows of held-out text."""
    model.eval()
    length = model.config.n_positions
    starts = torch.linspace(0, len(ids) - length, windows).long()
    x = torch.stack([ids[s : s + length] for s in starts])
    loss = (
        sum(model(input_ids=b, labels=b).loss.item() * len(b) for b in x.split(16))
        / windows
    )
    model.train()
    return loss


@torch.no_grad()
def validation_images(model: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean cross-entropy in nats an image."""
    model.eval()
    x = digits.pixel_values(images)
    parts = zip(x.split(250), labels.split(250), strict=True)
    loss = sum(model(pixel_values=a, labels=b).loss.item() * len(b) for a, b in parts)
    model.train()
    return loss / len(labels)


def run(
    name: str,
    model: Any,
    batches: Any,
    validate: Callable[[Any], float],
    folder: Path,
    setting: dict[str, Any],
) -> None:
    """AdamW, warm-up and cosine, bf16 products; goes on from `checkpoint.pt` where
    there is one; exports at the end.
    """
    steps, peak = setting["steps"], setting["peak_lr"]
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    first, log, before, checkpoint = 0, [], 0.0, folder / "checkpoint.pt"
    if checkpoint.exists():
        c = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(c["model"])
        opt.load_state_dict(c["optimizer"])
        first, log, before = c["step"], c["log"], c["seconds"]
        for _ in range(first):
            next(batches)
    begun = time.perf_counter()
    model.train()
    with tqdm(
        range(first, steps), initial=first, total=steps, desc=name, mininterval=10
    ) as bar:
        for step in bar:
            for group in opt.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            with torch.autocast(
                "cpu", torch.bfloat16
            ):  # a quarter faster here; the weights stay fp32
                loss = model(**next(batches)).loss
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            if (step + 1) % 250 == 0 or step + 1 == steps:
                seconds = before + time.perf_counter() - begun
                log.append(
                    {
                        "step": step + 1,
                        "train": round(loss.item(), 4),
                        "validation": round(validate(model), 4),
                        "seconds": round(seconds),
                    }
                )
                bar.write(json.dumps(log[-1]))
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": opt.state_dict(),
                        "step": step + 1,
                        "log": log,
                        "seconds": seconds,
                    },
                    checkpoint.with_suffix(".part"),
                )
                checkpoint.with_suffix(".part").rename(checkpoint)
    export(model, folder, {"setting": setting, "log": log})


def gpt2_tiny(
    folder: Path, steps: int, batch: int = 16, peak: float = 2e-3, seed: int = 0
) -> None:
    """Train `gpt2-tiny` on the train part of the general corpus; the adaptation domains
    are never read.
    """
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(
            [d["text"] for d in data.split("sotu")], VOCABULARY
        ).save_pretrained(folder)
    tok = PreTrainedTokenizerFast.from_pretrained(folder)
    ids, held_out = data.tokens(tok, "sotu"), data.tokens(tok, "sotu", "validation")
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **GPT2_TINY,
        )
    )
    run(
        "gpt2-tiny",
        model,
        data.lm_batches(ids, batch, 128, seed),
        lambda m: validation_loss(m, held_out),
        folder,
        {
            "steps": steps,
            "batch": batch,
            "length": 128,
            "peak_lr": peak,
            "seed": seed,
            "tokens": len(ids),
        },
    )


def vit_tiny(
    folder: Path,
    steps: int,
    classes: tuple[int, ...],
    batch: int = 64,
    peak: float = 1e-3,
    seed: int = 0,
) -> None:
    """Train a ViT on the train part of the digits in `classes`; its head has all ten
    classes, for new ones to come.
    """
    images, labels = digits.digits("train", classes)
    held_out = digits.digits("validation", classes)
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(**VIT_TINY))
    model.loss_type = "ForSequenceClassification"
    run(
        folder.name,
        model,
        digits.image_batches(images, labels, batch, seed, augment=True),
        lambda m: validation_images(m, *held_out),
        folder,
        {
            "steps": steps,
            "batch": batch,
            "peak_lr": peak,
            "seed": seed,
            "images": len(images),
            "classes": list(classes),
        },
    )


def export(model: Any, folder: Path, log: dict) -> None:
    """Write the fp16 weights, the config, the log and SHA256SUMS."""
    state = {
        k: v.half().contiguous()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    (folder / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    files = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    lines = [
        f"{hashlib.sha256((folder / f).read_bytes()).hexdigest()}  {f}\n"
        for f in files
        if (folder / f).exists()
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


MODELS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "gpt2-tiny": (gpt2_tiny, 8000),
    "vit-tiny": (lambda folder, steps: vit_tiny(folder, steps, tuple(range(10))), 5000),
    "vit-tiny-0-5": (
        lambda folder, steps: vit_tiny(folder, steps, tuple(range(6))),
        4000,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--folder", type=Path, help="default: the model's own in hra/zoo"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, steps = MODELS[args.model]
    folder = args.folder or Path(__file__).parent / args.model
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, args.steps or steps)


if __name__ == "__main__":
    main()
