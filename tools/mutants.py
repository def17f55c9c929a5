"""Fault injection: put one known fault at a time into a copy of `hra`; the suite must
notice every one.

    python tools/mutants.py [name ...]

The faults are of the kinds found in released libraries of this field.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# name: (file, text, what replaces it, tests that must fail)
MUTANTS = {
    "A starts too large through a transposed layout": (
        "methods/lora.py",
        "self.d_in**-0.5, self.generator",
        "self.r**-0.5, self.generator",
        "tests/test_lora.py",
    ),
    "A and B both start at zero": (
        "methods/lora.py",
        "self.A.copy_(draw)",
        "self.A.zero_()",
        "tests/test_every_adapter.py",
    ),
    "the fast path forgets the scale": (
        "methods/lora.py",
        "F.linear(self.scale * h, B)",
        "F.linear(h, B)",
        "tests/test_every_adapter.py",
    ),
    "the fast path scales the bias": (
        "methods/lora.py",
        "return F.linear(x, self.frozen, self.bias) + F",
        "return F.linear(x, self.frozen, self.bias) * 1.01 + F",
        "tests/test_every_adapter.py",
    ),
    "dropout also in eval": (
        "methods/lora.py",
        "self.dropout, self.training)",
        "self.dropout, True)",
        "tests/test_every_adapter.py",
    ),
    "rsLoRA keeps LoRA's scale": (
        "methods/rslora.py",
        "alpha / math.sqrt(r)",
        "alpha / r",
        "tests/test_lora.py",
    ),
    "DoRA scales the bias": (
        "methods/dora.py",
        "torch.addcmul(bias.to(p.dtype), p, gamma.to(p.dtype))",
        "(p + bias) * gamma",
        "tests/test_lora_family.py",
    ),
    "VeRA draws a pair for each layer": (
        "methods/vera.py",
        "site=name, shared=pair)",
        "site=name)",
        "tests/test_lora_family.py",
    ),
    "LoRA+ forgets the ratio": (
        "methods/loraplus.py",
        "self.ratio * lr",
        "lr",
        "tests/test_lora_family.py",
    ),
    "LoRA-FA's projection forgets the scale": (
        "methods/lorafa.py",
        "g.double() @ inverse / ctx.scale**2",
        "g.double() @ inverse",
        "tests/test_lora_family.py",
    ),
    "the bill forgets that dropout keeps a mask": (
        "law.py",
        'return {"dropout\'s mask": "d_in"} if dropout and grad else {}',
        "return {}",
        "tests/test_memory.py",
    ),
    "a timeline keeps activations until the backward pass has ended": (
        "memory/timeline.py",
        "kept.clear()",
        "kept",
        "tests/test_memory.py",
    ),
    "a tensor that two operations keep is counted twice": (
        "memory/blocks.py",
        "        elif tensor in self.noted:\n            return\n",
        "",
        "tests/test_memory.py",
    ),
    "RMSNorm's input is kept in the model's numbers": (
        "memory/blocks.py",
        'wide = {"x in fp32": "4", "1/rms": "4"}',
        "wide = {}",
        "tests/test_memory.py",
    ),
    "a formula is run": (
        "law.py",
        "return _Parser(formula, values).result()",
        "return int(eval(formula, dict(values)))",
        "tests/test_law.py",
    ),
    "the page counts what all layers share once a layer": (
        "viz/law.js",
        "if (own[1].shared.includes(k))",
        "if (false)",
        "tests/test_calculator.py",
    ),
    "two layers share SHiRA's random mask": (
        "methods/shira.py",
        'K, self.generator("mask"))',
        "K, torch.Generator().manual_seed(0))",
        "tests/test_shira.py",
    ),
    "a masked gradient leaks": (
        "methods/shira.py",
        "S.register_hook(self._masked)",
        "S.register_hook(lambda G: G)",
        "tests/test_shira.py",
    ),
    "struct forgets the diagonal": (
        "masks.py",
        "mask.fill_diagonal_(True)",
        "mask.fill_diagonal_(False)",
        "tests/test_shira.py",
    ),
    "an index is not validated": (
        "masks.py",
        "        index[0] < 0\n        or",
        "        False and",
        "tests/test_shira.py",
    ),
    "SHiRA forgets that Conv1D is stored transposed": (
        "sparse.py",
        "index % d_in * d_out + index // d_in if transposed else index",
        "index",
        "tests/test_every_adapter.py",
    ),
    "overlapping masks overwrite each other in a sum": (
        "switch.py",
        "total[torch.searchsorted(index, i)] += values",
        "total[torch.searchsorted(index, i)] = values",
        "tests/test_switch.py",
    ),
    "BitFit edits the pretrained bias": (
        "linear.py",
        "new = copy.deepcopy(layer)",
        "new = layer",
        "tests/test_before_lora.py",
    ),
    "the bottleneck forgets its skip connection": (
        "methods/houlsby.py",
        "return h + F.linear",
        "return F.linear",
        "tests/test_every_adapter.py",
    ),
    "a prompt's labels are counted": (
        "methods/prompttuning.py",
        "labels.new_full((rows, self.n), -100)",
        "labels.new_full((rows, self.n), 0)",
        "tests/test_before_lora.py",
    ),
    "Conv1D is forgotten": (
        "linear.py",
        "return W.T if is_conv1d(layer) else W",
        "return W",
        "tests/test_every_adapter.py",
    ),
    "detach subtracts instead of putting back": (
        "adapter.py",
        "model.set_submodule(self.site, self.base)",
        "model.set_submodule(self.site, linear.with_weight(self.base, self.W0 + 0.1 - 0.1))",  # noqa: E501
        "tests/test_every_adapter.py",
    ),
    "all layers share one draw": (
        "adapter.py",
        "{seed}\\0{site}",
        "{seed}",
        "tests/test_every_adapter.py",
    ),
    "the seed is ignored": (
        "adapter.py",
        "{seed}\\0{site}",
        "{site}",
        "tests/test_every_adapter.py",
    ),
    "observe is not called": (
        "adapter.py",
        "self.register_forward_hook(_show)",
        "pass",
        "tests/test_every_adapter.py",
    ),
    "a study that was killed begins again": (
        "studies/study.py",
        "old = self.record() if self._path().exists() else new",
        "old = new",
        "tests/test_studies.py",
    ),
    "paired differences are not paired": (
        "studies/study.py",
        '_field(r, value) - other[r["seed"]]',
        "_field(r, value) - next(iter(other.values()))",
        "tests/test_studies.py",
    ),
}


def survives(name: str) -> str | None:
    """Why the fault went unnoticed, or None."""
    file, old, new, tests = MUTANTS[name]
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)
        shutil.copytree(
            ROOT / "hra",
            copy / "hra",
            ignore=shutil.ignore_patterns("__pycache__", "checkpoint.pt"),
        )
        shutil.copytree(
            ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "hra" / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            return (
                f"cannot be injected: {old!r} stands {text.count(old)} times in {file}"
            )
        path.write_text(text.replace(old, new), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    if run.returncode == 1 and "failed" in run.stdout:
        return None
    said = run.stdout[-300:] + run.stderr[-300:]
    return f"survived (pytest exit {run.returncode}): {said}"


def main(names: list[str]) -> int:
    names = names or list(MUTANTS)
    bad = 0
    with ThreadPoolExecutor(2) as pool:
        for name, why in zip(names, pool.map(survives, names), strict=True):
            bad += why is not None
            if why:
                print(f"NOT CAUGHT  {name}: {why}")
    print(f"mutants: {len(names) - bad} of {len(names)} faults caught")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
