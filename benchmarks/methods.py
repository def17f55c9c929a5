"""A training step of every method, beside PEFT's, on two random GPT-2s: time as a ratio
to full fine-tuning, and bytes.

    python -m benchmarks.methods [--rounds 15] [--model a b] [--only LoRA DoRA] [--json
    FILE]

One process, two threads; the contenders take turns, a round gives each one step, ratios
are taken within a round and their medians reported. "full again" is full fine-tuning a
second time: how far it is from 1 is the noise. MiB: gradients, moments, saved (what
autograd keeps, parameters and buffers apart), peak (the largest sum of what a step
allocates on top of the model and the moments, from the profiler).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import hra
from hra import memory

MODELS = {
    "a": ({"n_embd": 256, "n_layer": 6, "n_head": 8, "vocab_size": 5000}, 8),
    "b": ({"n_embd": 768, "n_layer": 4, "n_head": 12, "vocab_size": 1000}, 4),
}
LENGTH, TARGETS = 128, "c_attn|c_proj|c_fc"
SHIRA_R = {
    "a": 2,
    "b": 5,
}  # PEFT's SHiRA counts r (d_out + d_in) entries: about 1 % of these models' layers
HYPER: dict[str, dict[str, Any]] = {
    "NOLA": {"k": 16, "l": 16},
    "PRANC": {"m": 2},
}  # the defaults draw for seconds


def base(name: str) -> nn.Module:
    config, _ = MODELS[name]
    model = hra.zoo.gpt2(
        "random",
        n_positions=LENGTH,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
        **config,
    )
    model.config.use_cache = False
    return model.train()


def plain(name: str) -> nn.Module:
    return base(name)


def ours(method: str) -> Callable[[str], nn.Module]:
    def make(name: str) -> nn.Module:
        model = base(name)
        hra.attach(model, hra.METHODS[method], targets=TARGETS, **HYPER.get(method, {}))
        return model

    return make


def linear_layers(model: nn.Module) -> nn.Module:
    """GPT-2's Conv1D replaced by nn.Linear of the same map: PEFT's SHiRA refuses
    Conv1D.
    """
    from hra import linear

    for name, layer in list(linear.linears(model)):
        if linear.is_conv1d(layer):
            W, b = linear.weight(layer), linear.bias(layer)
            new = nn.Linear(W.shape[1], W.shape[0])
            new.weight.data.copy_(W.data)
            new.bias.data.copy_(b.data)  # type: ignore[union-attr]
            model.set_submodule(name, new)
    return model


def theirs(kind: str) -> Callable[[str], nn.Module]:
    def make(name: str) -> nn.Module:
        import peft

        rest = {"target_modules": TARGETS.split("|"), "fan_in_fan_out": True}
        if kind == "SHiRA":
            model = peft.get_peft_model(
                linear_layers(base(name)),
                peft.ShiraConfig(r=SHIRA_R[name], target_modules=TARGETS.split("|")),
            )
            return model.train()
        if kind == "VeRA":
            config: Any = peft.VeraConfig(r=256, d_initial=0.1, **rest)
        else:
            config = peft.LoraConfig(
                r=8, lora_alpha=16, use_dora=kind == "DoRA", **rest
            )
        model = peft.get_peft_model(base(name), config)
        if kind == "LoRAFA":
            for n, p in model.named_parameters():
                p.requires_grad_(p.requires_grad and "lora_A" not in n)
        return model.train()

    return make


class Contender:
    """A model, its optimizer, one step."""

    def __init__(self, label: str, make: Callable[[str], nn.Module], name: str) -> None:
        self.label, self.model = label, make(name)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.opt = torch.optim.AdamW(self.params, lr=1e-4)
        config, batch = MODELS[name]
        ids = torch.randint(
            config["vocab_size"],
            (batch, LENGTH),
            generator=torch.Generator().manual_seed(0),
        )
        self.batch = {"input_ids": ids, "labels": ids}
        self.ratios: list[float] = []

    def step(self) -> float:
        begin = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        return time.perf_counter() - begin

    def bytes(self) -> dict[str, float]:
        bill = memory.measure(self.model, self.batch)
        return {
            "gradients": bill.gradients.bytes,
            "moments": bill.moments.bytes,
            "saved": bill.activations.bytes,
            "peak": self.peak(),
        }

    def peak(self) -> int:
        """Largest sum of the bytes that a step has allocated and not yet freed."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
            self.step()
        events = sorted(
            (e.start_ns(), e.nbytes())
            for e in p.profiler.kineto_results.events()
            if e.name() == "[memory]"
        )
        now = most = 0
        for _, change in events:
            now += change
            most = max(most, now)
        return most


def contenders(name: str, only: list[str] | None, peft: bool) -> list[Contender]:
    made = [Contender("full", plain, name), Contender("full again", plain, name)]
    for m, method in hra.METHODS.items():  # those that stand at linear layers
        if (only is None or m in only) and memory.states_law(method):
            made.append(Contender(m, ours(m), name))
            if peft and m in ("LoRA", "LoRAFA", "DoRA", "VeRA", "SHiRA"):
                made.append(Contender(f"{m} (PEFT)", theirs(m), name))
    return made


def table(
    name: str, rounds: int, only: list[str] | None, peft: bool
) -> dict[str, dict[str, float]]:
    every = contenders(name, only, peft)
    rows = {c.label: c.bytes() for c in tqdm(every, desc=f"({name}) bytes")}
    for c in every:
        c.step()
    for k in tqdm(range(rounds), desc=f"({name}) rounds"):
        order = (
            every[k % len(every) :] + every[: k % len(every)]
        )  # nobody is always first
        times = {c.label: c.step() for c in order}
        for c in every:
            c.ratios.append(times[c.label] / times["full"])
        gc.collect()
    for c in every:
        q = statistics.quantiles(c.ratios, n=4)
        rows[c.label] |= {
            "step": statistics.median(c.ratios),
            "low": q[0],
            "high": q[2],
        }
    return rows


def show(name: str, rows: dict[str, dict[str, float]]) -> None:
    config, batch = MODELS[name]
    print(
        f"\n({name}) d {config['n_embd']}, {config['n_layer']} layers, vocabulary "
        f"{config['vocab_size']}, "
        f"batch {batch} x {LENGTH}; step: median (quartiles), full = 1; the rest in MiB"
    )
    print(
        f"{'':<16}{'step':>6}{'quartiles':>14}{'gradients':>11}{'moments':>9}{'saved':>8}{'peak':>8}"
    )
    for label, r in rows.items():
        print(
            f"{label:<16}{r['step']:>6.2f}{r['low']:>8.2f}-{r['high']:.2f}  "
            + "".join(
                f"{r[k] / 2**20:>{w}.1f}"
                for k, w in (
                    ("gradients", 9),
                    ("moments", 9),
                    ("saved", 8),
                    ("peak", 8),
                )
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--model", nargs="+", choices=list(MODELS), default=list(MODELS)
    )
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    try:
        import peft  # noqa: F401

        beside = True
    except ImportError:
        beside = False
        print("PEFT is not installed (pip install 'hra[peft]'): our rows only.")
    result = {}
    for name in args.model:
        result[name] = table(name, args.rounds, args.only, beside)
        show(name, result[name])
    if args.json:
        args.json.write_text(
            json.dumps(
                {"rounds": args.rounds, "torch": torch.__version__, "tables": result},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
