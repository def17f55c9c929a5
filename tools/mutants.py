"""Fault injection: put one known fault at a time into a copy of `hra`; the suite must
notice every one.

    python tools/mutants.py [name ...]

The faults are of the kinds found in released libraries of this field.
"""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
sys.dont_write_bytecode = True
# what every run of the tests imports is imported once, and the runs are forked; `hra`
# itself must be the faulty copy
FORK = multiprocessing.get_context("fork")
for module in (
    "hypothesis",
    "safetensors.torch",
    "transformers.models.gpt2",
    "tqdm.auto",
):
    importlib.import_module(module)
from transformers import GPT2LMHeadModel, ViTForImageClassification  # noqa: E402, F401

ROOT = Path(__file__).resolve().parents[1]
SUITE = "tests/test_every_adapter.py::test_every_adapter"
# name: (file, text, what replaces it, tests that must fail: the quickest that do)
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
        f"{SUITE}[every_trained_number_receives_a_gradient-LoRA]",
    ),
    "the fast path forgets the scale": (
        "methods/lora.py",
        "F.linear(self.scale * h, B)",
        "F.linear(h, B)",
        f"{SUITE}[forward_is_the_definition-LoRA]",
    ),
    "the fast path scales the bias": (
        "methods/lora.py",
        "return F.linear(x, self.frozen, self.bias) + F",
        "return F.linear(x, self.frozen, self.bias) * 1.01 + F",
        f"{SUITE}[forward_is_the_definition-LoRA]",
    ),
    "dropout also in eval": (
        "methods/lora.py",
        "self.dropout, self.training)",
        "self.dropout, True)",
        f"{SUITE}[eval_mode_is_deterministic-LoRA-dropout]",
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
    "DoRA's norm forgets the cross term": (
        "methods/dora.py",
        "2 * s * (W0.to(A.dtype) @ A.T) + s * s",
        "s * s",
        f"{SUITE}[forward_is_the_definition-DoRA]",
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
    "LoRA-FA trains A": (
        "methods/lorafa.py",
        "requires_grad=False",
        "requires_grad=True",
        f"{SUITE}[trained_count_is_the_formula-LoRAFA]",
    ),
    "LoRA-FA's projection forgets the scale": (
        "methods/lorafa.py",
        "g.double() @ inverse / ctx.scale**2",
        "g.double() @ inverse",
        "tests/test_lora_family.py",
    ),
    "NOLA draws other bases in the backward pass": (
        "bases.py",
        "(g * basis.to(g)).sum() for basis in draws(*ctx.bases)",
        "(g * basis.to(g)).sum() for basis in draws(1, *ctx.bases[1:])",
        "tests/test_lora_family.py::test_nola_coefficient_gradients_are_inner_products",
    ),
    "MoRA's r̂ is rounded up": (
        "methods/mora.py",
        '"floor": "isqrt((d_in + d_out)*r)"',
        '"floor": "isqrt((d_in + d_out)*r) + 1"',
        f"{SUITE}[trained_count_is_the_formula-MoRA]",
    ),
    "MoRA's sharing takes means": (
        "methods/mora.py",
        ".unflatten(1, (full, w)).sum(1)",
        ".unflatten(1, (full, w)).mean(1)",
        f"{SUITE}[forward_is_the_definition-MoRA]",
    ),
    "MoRA's fold drops chunks": (
        "methods/mora.py",
        "return _gather(x, w) if w < all_chunks else x",
        "return x[:, :w]",
        f"{SUITE}[forward_is_the_definition-MoRA-decoupling]",
    ),
    "MoRA's chunks all turn alike": (
        "methods/mora.py",
        "torch.arange(self.n_in, dtype=torch.float64)[:, None]",
        "torch.ones(self.n_in, dtype=torch.float64)[:, None]",
        "tests/test_mora.py::test_the_released_map",
    ),
    "MoRA keeps its input": (
        "methods/mora.py",
        "ctx.save_for_backward(h if ctx.short else x, M)",
        "ctx.save_for_backward(h if ctx.short else x, M, x)",
        f"{SUITE}[the_bill_is_the_measured_one-MoRA]",
    ),
    "ReMoRA does not change its groups": (
        "methods/remora.py",
        "FOUR[:2]",
        "FOUR[:1]",
        "tests/test_mora.py::test_a_cycle_of_groups_stops_below_two_r_hat_and_random"
        "_groups_do_not",
    ),
    "LoSiA's slots pass their neighbour's block by": (
        "methods/losia.py",
        "turn = step // self.period % len(self.blocks)",
        "turn = (step + 1) // self.period % len(self.blocks)",
        "tests/test_losia.py::test_the_table_of_the_schedule",
    ),
    "LoSiA's rate jumps at the end of the re-warm": (
        "methods/losia.py",
        "(step - moved + 1) / (T + 1) if warming",
        "0.5 * (step - moved + 1) / (T + 1) if warming",
        "tests/test_losia.py::test_the_table_of_the_schedule",
    ),
    "LoSiA keeps its moments": (
        "methods/losia.py",
        "            forget(optimizer, self.W_S)\n",
        "",
        "tests/test_losia.py::test_the_first_update_after_a_move_is_at_most_its_rate",
    ),
    "LoSiA forgets what earlier subnets have learnt": (
        "methods/losia.py",
        "self.past = D.flatten()[self.index]",
        "self.past = 0 * D.flatten()[self.index]",
        "tests/test_losia.py::test_a_move_leaves_the_map_and_the_union_grows_as_proved",
    ),
    "LoSiA watches the last micro-batch": (
        "methods/losia.py",
        "self.seen += G",
        "self.seen.copy_(G)",
        "tests/test_losia.py::test_four_micro_batches_are_one_big_batch",
    ),
    "LoSiA-Pro does not put the weight back": (
        "methods/losiapro.py",
        "            self.restored(linear.weight(self.base).data)\n",
        "",
        f"{SUITE}[detach_gives_the_model_back-LoSiAPro]",
    ),
    "LoSiA-Pro keeps x": (
        "methods/losiapro.py",
        "ctx.save_for_backward(kept, W_S, rows, cols)",
        "ctx.save_for_backward(kept, W_S, rows, cols, x)",
        f"{SUITE}[the_bill_is_the_measured_one-LoSiAPro]",
    ),
    "LoSiA-Pro takes its sibling's slice of another x": (
        "methods/losia.py",
        "if last and last[0]() is x and",
        "if last and",
        "tests/test_losia.py::test_a_slice_is_of_this_x_as_it_is_and_goes_with_it",
    ),
    "LoSiA's siblings move as the first one does": (
        "methods/losia.py",
        "scores = [b.mean * b.spread for b in every]",
        "scores = [a.mean * a.spread for b in every]",
        "tests/test_losia.py::test_columns_of_all_and_rows_of_each",
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
        "tests/test_memory.py::test_a_step_that_adds_up_two_batches_holds_the_bill_and_no_step_holds_more",
    ),
    "a tensor that two operations keep is counted twice": (
        "memory/blocks.py",
        "        elif tensor in self.noted:\n            return\n",
        "",
        "tests/test_memory.py::test_ordinary_fine_tuning_of_everything_is_predicted",
    ),
    "RMSNorm's input is kept in the model's numbers": (
        "memory/blocks.py",
        'wide = {"x in fp32": "4", "1/rms": "4"}',
        "wide = {}",
        "tests/test_memory.py::test_whatever_trains_of_a_model_its_bill_is_predicted",
    ),
    "measuring adds to the gradients that are there": (
        "memory/measure.py",
        "                t.grad = None  #",
        "                pass  #",
        "tests/test_memory.py::test_after_measuring_a_model_is_as_it_was_whatever_happened",
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
    "detach leaves SHiRA's values in the layer": (
        "entries.py",
        "        self.put_back()\n        super().release(model)",
        "        super().release(model)",
        f"{SUITE}[detach_gives_the_model_back-SHiRA-rand]",
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
    "a block's place forgets how many stand side by side": (
        "methods/partialft.py",
        "of = rows[:, None] * across + cols",
        "of = rows[:, None] + cols",
        "tests/test_partialft.py",
    ),
    "Fisher's squares are taken of a batch's mean": (
        "probe.py",
        "_probe(model, _examples(batches), targets",
        "_probe(model, batches, targets",
        "tests/test_relatives.py",
    ),
    "RoSA scales its sparse part like the low-rank one": (
        "methods/rosa.py",
        "        del self.alpha  #",
        "        pass  #",
        "tests/test_relatives.py",
    ),
    "SpIEL's moments stay where they were when entries move": (
        "methods/spiel.py",
        "                remap(s, begins.get(name, 0.0))\n",
        "                pass\n",
        "tests/test_spiel.py",
    ),
    "SpIEL drops the strongest": (
        "methods/spiel.py",
        ".abs().argsort(stable=True)",
        ".abs().neg().argsort(stable=True)",
        "tests/test_spiel.py",
    ),
    "SoRA's threshold is the released one": (
        "methods/sora.py",
        "self.g.copy_(F.softshrink(self.g, self.xi))",
        "self.g.copy_(F.hardshrink(F.softshrink(self.g, self.xi), self.xi))",
        "tests/test_sora.py",
    ),
    "fit leaves a method's own term out of the loss": (
        "train.py",
        "scaler.scale(loss + extra)",
        "scaler.scale(loss)",
        "tests/test_diffpruning.py",
    ),
    "diff pruning's gates forget the stretch in their penalty": (
        "methods/diffpruning.py",
        "c = math.log(-self.gamma / self.zeta)",
        "c = 0.0",
        "tests/test_diffpruning.py",
    ),
    "diff pruning adds its layer's gate to the count, as the released code": (
        "methods/diffpruning.py",
        "n = n * (self.log_alpha_g - c).sigmoid().sum()",
        "n = n + (self.log_alpha_g - c).sigmoid().sum()",
        "tests/test_diffpruning.py",
    ),
    "diff pruning draws one noise for all steps, as the released code": (
        "methods/diffpruning.py",
        "        self.steps += 1\n",
        "",
        "tests/test_diffpruning.py",
    ),
    "diff pruning ranks the entries with the noise": (
        "methods/diffpruning.py",
        "size = {a.site: a.gated()",
        "size = {a.site: a.gated(True)",
        "tests/test_diffpruning.py",
    ),
    "LT-SFT's second iteration ranks the entries of the first again": (
        "methods/ltsft.py",
        "S.view(-1)[kept[0].to(S.device)] = -1.0",
        "pass",
        "tests/test_relatives.py",
    ),
    "RoSA's sparse part learns as fast as the low-rank one": (
        "methods/rosa.py",
        "self.ratio * lr",
        "lr",
        "tests/test_relatives.py",
    ),
    "SoRA's other term is a mean by the layer": (
        "methods/sora.py",
        "(self.r * self.layers)",
        "self.r",
        "tests/test_sora.py",
    ),
    "a LoRA may be pruned to one factor": (
        "methods/sparseadapter.py",
        "if of_A.all() or not of_A.any():",
        "if False:",
        "tests/test_sparseadapter.py",
    ),
    "GraSP forgets the Hessian": (
        "pruned.py",
        "Hg = torch.autograd.grad(flow, w)",
        "Hg = g",
        "tests/test_sparseadapter.py",
    ),
    "Erdős-Rényi shares by the area": (
        "masks.py",
        "share |= {n: each * (a + b) for n, (a, b) in open_.items()}",
        "share |= {n: left * a * b / sum(size[m] for m in open_) "
        "for n, (a, b) in open_.items()}",
        "tests/test_sparseadapter.py",
    ),
    "scores that rank nothing prune an adapter": (
        "pruned.py",
        "if not S.any():",
        "if False:",
        "tests/test_sparseadapter.py",
    ),
    "an index is not validated": (
        "masks.py",
        "        index[0] < 0\n        or",
        "        False and",
        "tests/test_shira.py::test_bad_indices_are_refused",
    ),
    "SHiRA forgets that Conv1D is stored transposed": (
        "sparse.py",
        "index % d_in * d_out + index // d_in if transposed else index",
        "index",
        f"{SUITE}[forward_is_the_definition-SHiRA-rand]",
    ),
    "a switch leaves the adapter before it in place": (
        "switch.py",
        "                for tensor, position, old, _ in self._files[self.active]:\n"
        "                    sparse.overwrite_(tensor, position, old)\n",
        "",
        "tests/test_switch.py::test_a_file_stays_in_memory_and_a_bad_one_changes_nothing",
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
        f"{SUITE}[starts_as_the_pretrained_model-Houlsby]",
    ),
    "a prefix moves the text's positions": (
        "whole.py",
        'kwargs["position_ids"] = at',
        'kwargs["position_ids"] = at + self.n',
        "tests/test_before_lora.py::test_prefix_is_attention_over_more_keys",
    ),
    "a prompt's labels are counted": (
        "methods/prompttuning.py",
        "labels.new_full((rows, self.n), -100)",
        "labels.new_full((rows, self.n), 0)",
        "tests/test_before_lora.py",
    ),
    "hooks stay after detach": (
        "whole.py",
        "                    del hooks[key]  #",
        "                    pass  #",
        "tests/test_before_lora.py::test_only_the_adapter_trains_and_detach_is_exact",
    ),
    "Conv1D is forgotten": (
        "linear.py",
        "return W.T if is_conv1d(layer) else W",
        "return W",
        f"{SUITE}[merged_model_computes_the_same-LoRA]",
    ),
    "Conv1D is no target": (
        "linear.py",
        "isinstance(layer, (nn.Linear, *ACCEPTED)) or is_conv1d(layer)",
        "isinstance(layer, (nn.Linear, *ACCEPTED))",
        f"{SUITE}[starts_as_the_pretrained_model-FullFT]",
    ),
    "the rest of the model trains too": (
        "model.py",
        "        root.requires_grad_(False)\n",
        "",
        f"{SUITE}[something_trains_and_only_the_adapter-FullFT]",
    ),
    "detach subtracts instead of putting back": (
        "adapter.py",
        "model.set_submodule(self.site, self.base)",
        "model.set_submodule(self.site, linear.with_weight(self.base, self.W0 + 0.1 - 0.1))",  # noqa: E501
        f"{SUITE}[detach_gives_the_model_back-LoRA]",
    ),
    "requires_grad is not given back": (
        "model.py",
        "p.requires_grad_(flags.get(name, p.requires_grad))",
        "p.requires_grad_(True)",
        f"{SUITE}[detach_gives_the_model_back-FullFT]",
    ),
    "merge leaves ΔW out": (
        "adapter.py",
        "linear.with_weight(self.base, self.W0 + self.delta_weight())",
        "linear.with_weight(self.base, self.W0)",
        f"{SUITE}[merged_model_computes_the_same-FullFT]",
    ),
    "a tensor hides outside the state dict": (
        "methods/fullft.py",
        "        self.delta = self.new",
        "        self.mask = self.W0 * 1\n        self.delta = self.new",
        f"{SUITE}[no_tensor_hides-FullFT]",
    ),
    "all layers share one draw": (
        "adapter.py",
        "{seed}\\0{site}",
        "{seed}",
        f"{SUITE}[draws_depend_on_seed_and_site-LoRA]",
    ),
    "the seed is ignored": (
        "adapter.py",
        "{seed}\\0{site}",
        "{site}",
        f"{SUITE}[draws_depend_on_seed_and_site-LoRA]",
    ),
    "tensors do not follow the base's dtype": (
        "adapter.py",
        "torch.zeros(shape, dtype=dtype, device=W.device)",
        "torch.zeros(shape, dtype=WIDE, device=W.device)",
        f"{SUITE}[tensors_follow_the_layer-FullFT]",
    ),
    "a failed attach leaves the model frozen": (
        "model.py",
        "        for _, p, flag in flags:\n            p.requires_grad_(flag)\n",
        "",
        "tests/test_model.py::test_a_bad_rank_at_the_second_site_undoes_the_first",
    ),
    "tied weights are adapted": (
        "linear.py",
        "if len(names) > 1:",
        "if len(names) > 9:",
        "tests/test_model.py::test_a_tied_weight_is_refused_with_the_reason",
    ),
    "the checksum is not compared": (
        "io.py",
        'if checksum(found, self.raw) != self.meta["checksum"]:',
        "if False:",
        "tests/test_files.py::test_one_flipped_bit",
    ),
    "another base is accepted": (
        "model.py",
        "if self.strict_base and base",
        "if not self.strict_base and base",
        "tests/test_files.py::test_another_base",
    ),
    "the file is written in place": (
        "io.py",
        'path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")\n'
        "    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)",
        "path\n    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)",
        "tests/test_files.py::test_a_failed_save_leaves_the_old_file",
    ),
    "observe is not called": (
        "adapter.py",
        "self.register_forward_hook(_show)",
        "pass",
        f"{SUITE}[observe_sees_the_dense_gradient-LoRA]",
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
        "tests/test_studies.py::test_paired_differences_on_a_hand_example",
    ),
    "the cross terms forget what one adapter does alone": (
        "analysis/orthogonality.py",
        "return with_b - (without - activation(z))",
        "return with_b",
        "tests/test_analysis_sparse.py",
    ),
    "the first cross term forgets one of the outputs": (
        "analysis/orthogonality.py",
        "_curvature(activation, z) * a * b",
        "_curvature(activation, z) * a",
        "tests/test_analysis_sparse.py",
    ),
    "the first cross term takes the slope for the curvature": (
        "analysis/orthogonality.py",
        "for _ in range(2):",
        "for _ in range(1):",
        "tests/test_analysis_sparse.py",
    ),
    "interference is held to one effect alone": (
        "analysis/orthogonality.py",
        "(one + two).norm()",
        "one.norm()",
        "tests/test_analysis_sparse.py",
    ),
    "AWOM is of the inputs that are read, not of the outputs": (
        "analysis/orthogonality.py",
        "product = A1.T @ A2\n",
        "product = A1 @ A2.T\n",
        "tests/test_analysis_sparse.py",
    ),
    "AWOR counts what is not zero": (
        "analysis/orthogonality.py",
        "return 1.0 - float((product != 0)",
        "return float((product != 0)",
        "tests/test_analysis_sparse.py",
    ),
    "expected AWOR forgets one of the masks": (
        "analysis/orthogonality.py",
        "(1.0 - p) ** d_out",
        "(1.0 - density1) ** d_out",
        "tests/test_analysis_sparse.py",
    ),
    "expected AWOM takes rows for columns": (
        "analysis/orthogonality.py",
        "d_out**0.5 * d_in * density",
        "d_in**0.5 * d_out * density",
        "tests/test_analysis_sparse.py",
    ),
    "the page adds one of two adapters": (
        "viz/pad.js",
        "+ a * (u[i] - old[i]) + b * (v[i] - old[i])",
        "+ a * (u[i] - old[i])",
        "tests/test_two_adapters.py::test_the_page_adds_both_changes_up",
    ),
    "the page's cross terms are matrix products": (
        "viz/cross.js",
        "cross: both.map((p, i) => p - alone[i])",
        "cross: product.slice(0, 4)",
        "tests/test_two_adapters.py::test_the_page_computes_the_cross_terms_of_the_library",
    ),
    "the tail of the singular values begins one late": (
        "analysis/bounds.py",
        "rest = sigma[r:]",
        "rest = sigma[r + 1 :]",
        "tests/test_analysis_sparse.py",
    ),
    "the truncation keeps one direction too many": (
        "analysis/rank.py",
        "U[:, :r]",
        "U[:, : r + 1]",
        "tests/test_analysis_sparse.py",
    ),
    "the first step has LoRA's scale once": (
        "analysis/bounds.py",
        "else scale**2 * h.square().sum()",
        "else scale * h.square().sum()",
        "tests/test_one_step.py",
    ),
    "Adam's first step is as long as SGD's": (
        "analysis/bounds.py",
        "seen = x.abs() if adam else x.square()",
        "seen = x.square()",
        "tests/test_one_step.py",
    ),
    "a switch at no strength leaves the change": (
        "switch.py",
        "if strength != 1:",
        "if strength not in (0, 1):",
        "tests/test_switch.py",
    ),
}


def run_tests(copy: Path, tests: str) -> None:
    """In a process of its own, which ends with pytest's exit code."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    # no plugin is needed here, and importing nbval takes longer than most of the tests
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with open("said", "w", encoding="utf-8") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
        # without the type checks: the tests themselves must see the fault
        options = ["-x", "-p", "no:cacheprovider", "-o", "addopts=-p no:randomly"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = pytest.main([*options, tests])
        sys.stdout.flush()
    os._exit(code)


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
        child = FORK.Process(target=run_tests, args=(copy, tests))
        child.start()
        child.join()
        said = (copy / "said").read_text(encoding="utf-8")
    if child.exitcode == 1 and "failed" in said:
        return None
    return f"survived (pytest exit {child.exitcode}): {said[-600:]}"


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
