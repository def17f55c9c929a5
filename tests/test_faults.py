"""Real situations that once went wrong, by kind: what is right in each."""

import copy
import os
import stat
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

import hra
from hra import linear, memory, sparse
from tests.attacks import Small, attack_lines
from tests.test_before_lora import WHOLE
from tests.test_every_adapter import CASES

LAYERS = {c.__name__: (c, h) for c, h, _ in reversed(CASES.values())}
TARGETS = "c_attn|c_fc"


def gpt2(dtype=torch.float32, seed=0):
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = hra.zoo.gpt2("random", seed=seed, initializer_range=0.3, **still)
    return model.to(dtype).eval()


def batch(rows=2, seed=3):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (rows, 12), generator=g)
    return {"input_ids": ids, "labels": ids}


def shaken(model, method=hra.SHiRA, targets=TARGETS, std=0.1, **hyper):
    tuned = hra.attach(model, method, targets=targets, **hyper)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (p for group in tuned.param_groups(1.0) for p in group["params"]):
            p.add_(std * torch.randn(p.shape, generator=g).to(p))
    return tuned


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- K1: state that torch can see ----------------------------------------------------


@pytest.mark.parametrize("layout", ["the same base", "another base"])
def test_a_state_dict_of_an_overwritten_model_is_the_pretrained_one(layout, tmp_path):
    model = gpt2()
    before, x = copy.deepcopy(model.state_dict()), batch()
    tuned = shaken(model, density=0.1)
    y = model(**x).logits  # the layers hold the values now
    sd = copy.deepcopy(model.state_dict())
    for k in before:
        if k not in sd:
            name = k.replace(".weight", ".base.weight").replace(".bias", ".base.bias")
            assert torch.equal(sd[name], before[k])
    other = gpt2(seed=0 if layout == "the same base" else 7)
    again = hra.attach(other, hra.SHiRA, targets=TARGETS, density=0.1)
    other(**x)  # it too is overwritten when it loads
    other.load_state_dict(sd)
    assert torch.equal(other(**x).logits, y)
    again.save(tmp_path / "s")
    assert torch.equal(hra.load(gpt2(), tmp_path / "s").model(**x).logits, y)
    torch.testing.assert_close(copy.deepcopy(again).merge()(**x).logits, y)
    assert same(again.detach().state_dict(), before)
    tuned.detach()


def test_the_output_head_that_shares_memory_is_tied():
    model = gpt2()
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.data)
    with pytest.raises(ValueError, match="tied"):
        hra.attach(model, hra.SHiRA, targets="lm_head")
    flat = torch.randn(24)  # two views of one storage that do not meet are not tied
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
    net[0].weight.data, net[1].weight.data = flat[:12].view(3, 4), flat[12:].view(4, 3)
    hra.attach(net, hra.SHiRA, density=0.5)


@pytest.mark.parametrize("name", list(LAYERS))
def test_values_that_change_before_the_backward_pass_are_refused(name):
    layer, x = wide_layer(name)
    trained = [p for p in layer.parameters() if p.requires_grad]
    want = torch.autograd.grad(layer(x).sin().sum(), [x, *trained])
    loss = layer(x).sin().sum()
    with torch.no_grad():
        for p in trained:
            p.add_(1.0)
    if name in (
        "BitFit",
        "PRANC",
        "NOLA",
        "LoSiA",
        "SparseAdapter",
        "SparseAdapterLoRA",
    ):  # they keep nothing that has changed
        got = torch.autograd.grad(loss, [x, *trained])
        return torch.testing.assert_close(got, want)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [x, *trained])


def wide_layer(name):
    """The method over a float64 layer, shaken, and an input that needs a gradient."""
    torch.manual_seed(0)
    method, hyper = LAYERS[name]
    layer = method(nn.Linear(12, 9).double(), **hyper).eval()
    with torch.no_grad():
        for p in layer.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    return layer, torch.randn(5, 12, dtype=torch.float64, requires_grad=True)


def test_a_weight_that_is_gathered_anew_before_backward_gives_the_same_gradient():
    torch.manual_seed(0)
    layer = hra.SHiRA(nn.Linear(12, 9).double(), density=0.3)
    nn.init.normal_(layer.values)
    grads = []
    for gathered in (False, True):
        x = torch.ones(3, 12, dtype=torch.float64, requires_grad=True)
        y = layer(x).sin().sum()
        if gathered:
            sparse.overwrite_(layer.base.weight, layer.position, layer.stash)
        grads.append(torch.autograd.grad(y, [x, layer.values]))
    torch.testing.assert_close(grads[0], grads[1])


# ---- K3: what a linear layer is ------------------------------------------------------


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Plain(nn.Linear):
    """Overrides nothing."""


def lazy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LazyLinear(12)


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_that_are_not_plain_are_refused_at_attach(name):
    method, hyper = LAYERS[name]

    def refused(layer, words):
        net = nn.Sequential(nn.Linear(12, 12), layer)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(TypeError, match=words):
            hra.attach(net, method, targets="1", **hyper)
        plain = [
            {k: v.to_dense().float() for k, v in state.items()}
            for state in (net.state_dict(), before)
        ]
        assert same(*plain)

    refused(Scaled(12, 12), "Scaled.* a forward of its own")
    for hook in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        hooked = nn.Linear(12, 12)
        getattr(hooked, f"register_{hook}_hook")(lambda *_: None)
        refused(hooked, "carries a hook")
    patched = nn.Linear(12, 12)
    patched.forward = lambda x: x
    refused(patched, r"a forward of its own \(the instance\)")
    refused(nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)), "computed from")
    refused(
        nn.utils.prune.random_unstructured(nn.Linear(12, 12), "weight", 0.5), "no w"
    )
    quantised = nn.Linear(12, 12)
    quantised._parameters["weight"] = nn.Parameter(
        torch.zeros(72, 1, dtype=torch.uint8), requires_grad=False
    )
    refused(quantised, "quantised layers are not supported")
    eight = nn.Linear(12, 12)
    eight.weight = nn.Parameter(torch.zeros(12, 12).to(torch.float8_e4m3fn))
    refused(eight, "quantised layers are not supported")
    sparse_ = nn.Linear(12, 12)
    sparse_.weight = nn.Parameter(torch.eye(12).to_sparse())
    refused(sparse_, "a dense one is needed")
    with pytest.raises(TypeError, match="run the model once first"):
        hra.attach(nn.Sequential(lazy()), method, **hyper)
    hra.attach(nn.Sequential(Plain(12, 12)), method, targets="0", **hyper)


def test_an_accepted_type_and_a_linear_inside_a_linear():
    linear.ACCEPTED.add(Scaled)
    try:
        hra.attach(nn.Sequential(Scaled(4, 4)), hra.LoRA, r=1)
    finally:
        linear.ACCEPTED.remove(Scaled)
    outer = nn.Linear(4, 4)
    outer.inner = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"0\.inner lies inside 0"):
        hra.attach(nn.Sequential(outer), hra.LoRA, r=1)


@pytest.mark.parametrize("method", [hra.Houlsby, hra.LinAdapter, hra.LoRA])
def test_a_layer_whose_weight_is_read_without_a_call(method):
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    if method is hra.LoRA:
        tuned = shaken(encoder, method, "linear1", r=2)
        x = torch.randn(2, 3, 8)
        want = encoder(x)  # gradients on: the slow path
        with torch.no_grad():
            torch.testing.assert_close(encoder(x), want)
        tuned.detach()
    else:
        with pytest.raises(ValueError, match="read by TransformerEncoderLayer"):
            hra.attach(encoder, method, targets="linear1", r=2)
        with pytest.raises(ValueError, match="read by MultiheadAttention"):
            hra.attach(encoder, method, targets="out_proj", r=2)


def test_a_weight_that_is_not_contiguous(tmp_path):
    def made():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8))
        net[0].weight.data = torch.randn(6, 8).T
        return net

    net, x = made(), torch.randn(3, 6)
    before = net[0].weight.detach().clone()
    tuned = shaken(net, targets="", density=0.3)
    y = net(x)
    torch.testing.assert_close(y, F.linear(x, tuned.adapters["0"].weight, net[0].bias))
    tuned.save(tmp_path / "n")
    assert torch.equal(tuned.detach()[0].weight, before)
    switch = hra.Switch(made())
    assert torch.equal(switch.to(tmp_path / "n")(x), y)
    assert torch.equal(switch.off()[0].weight, before)


# ---- K4: a file holds all that the tuned function depends on -------------------------


def test_also_trains_saves_counts_and_gives_back(tmp_path):
    model, x = gpt2(), batch()
    before = copy.deepcopy(model.state_dict())
    ln = sum(p.numel() for n, p in model.named_parameters() if "ln_" in n)
    tuned = hra.attach(model, hra.LoRA, targets="c_attn", also="ln_", r=2)
    alone = 2 * 2 * (32 + 96)
    assert tuned.num_trainable == ln + alone and "in full" in str(tuned)
    hra.fit(tuned, [x], 5, 1e-2, progress=False)
    y = model(**x).logits
    assert hra.memory.measure(tuned, x).trained.numbers == ln + alone
    assert hra.memory.predict(tuned, x) == hra.memory.measure(tuned, x)
    tuned.save(tmp_path / "a")
    again = hra.load(gpt2(), tmp_path / "a")
    assert torch.equal(again.model(**x).logits, y) and again.num_trainable == ln + alone
    torch.testing.assert_close(again.merge()(**x).logits, y)
    switched = hra.Switch(gpt2()).to(tmp_path / "a")
    torch.testing.assert_close(switched(**x).logits, y, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="trained in full"):
        hra.fuse(gpt2(), {tmp_path / "a": 1.0})
    assert same(tuned.detach().state_dict(), before)
    for tied in ("lm_head", "lm_head|wte"):  # one, or both of two that are one
        with pytest.raises(ValueError, match="tied"):
            hra.attach(model, hra.LoRA, targets="c_attn", also=tied)
    with pytest.raises(ValueError, match=r"h\.0 meets transformer\.h\.0\.attn"):
        hra.attach(model, hra.LoRA, targets="c_attn", also=r"h\.0")
    with pytest.raises(ValueError, match="none is left for LoRA"):
        hra.attach(nn.Sequential(nn.Linear(4, 4)), hra.LoRA, also="0")
    with pytest.raises(ValueError, match="matches no module"):
        hra.attach(model, hra.LoRA, targets="c_attn", also="classifier")


@pytest.mark.parametrize("name", ["PrefixTuning", "PromptTuning"])
def test_also_beside_a_method_of_the_whole_model(name, tmp_path):
    method, (hyper, _) = getattr(hra, name), WHOLE[getattr(hra, name)]
    model, x = gpt2(), batch()
    before = copy.deepcopy(model.state_dict())
    tuned = shaken(model, method, targets="", also=r"ln_f", **hyper)
    y = model(**x).logits
    tuned.save(tmp_path / "w")
    again = hra.load(gpt2(), tmp_path / "w")
    assert torch.equal(again.model(**x).logits, y)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "w").read_bytes()
    assert same(tuned.detach().state_dict(), before)


def test_merging_a_module_that_trains_in_full_takes_a_copy():
    model = gpt2()
    before = copy.deepcopy(model.state_dict())
    tuned = shaken(model, hra.LoRA, targets="c_attn", also="ln_f", r=2)
    merged = tuned.also["transformer.ln_f"].merged()  # as merge() calls it first
    assert not torch.equal(merged.weight, before["transformer.ln_f.weight"])
    assert same(tuned.detach().state_dict(), before)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.bn, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        class Out:
            loss = self.out(self.bn(self.fc(x))).square().mean()

        return Out


def test_running_statistics_stand_still_or_are_saved(tmp_path):
    x = [{"x": 3 + torch.randn(16, 6)}]
    model = Normed()
    before = copy.deepcopy(model.state_dict())
    tuned = hra.attach(model, hra.LoRA, targets="fc", r=2)
    hra.fit(tuned, x, 4, 1e-2, progress=False)
    assert torch.equal(model.bn.running_mean, before["bn.running_mean"])
    assert model.bn.training
    model(**x[0])  # a loop of one's own moves them
    with pytest.raises(ValueError, match="running statistics"):
        tuned.save(tmp_path / "x")
    assert same(tuned.detach().state_dict(), before)
    tuned = hra.attach(model, hra.LoRA, targets="fc", also="bn", r=2)
    hra.fit(tuned, x, 4, 1e-2, progress=False)
    tuned.save(tmp_path / "b")
    want = model.eval()(**x[0]).loss
    again = hra.load(Normed(), tmp_path / "b")
    assert torch.equal(again.model.eval()(**x[0]).loss, want)
    model.train()
    assert same(tuned.detach().state_dict(), before)


def test_strangers_that_train_are_warned_of(tmp_path):
    model = gpt2()
    tuned = hra.attach(model, hra.LoRA, targets="c_attn", r=2)
    model.transformer.ln_f.requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"belongs to no adapter.*also=r'transformer.ln_f"
    ):
        hra.fit(tuned, [batch()], 1, progress=False)
    with pytest.warns(UserWarning, match="belongs to no adapter"):
        tuned.save(tmp_path / "w")


def test_bitfit_adds_nothing_up_but_switches(tmp_path):
    tuned, x = shaken(gpt2(), hra.BitFit), batch()
    y = tuned(**x).logits
    tuned.save(tmp_path / "b")
    with pytest.raises(TypeError, match="no ΔW to add up"):
        hra.fuse(gpt2(), {tmp_path / "b": 1.0})
    torch.testing.assert_close(
        hra.Switch(gpt2()).to(tmp_path / "b")(**x).logits, y, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", [hra.SHiRA, hra.VeRA, hra.NOLA, hra.PRANC])
@pytest.mark.parametrize("change", ["seed", "base", "batches", "hyper"])
def test_a_checkpoint_of_another_run_is_refused(method, change, tmp_path):
    def go(seed=0, base=0, first=3, **hyper):
        tuned = hra.attach(gpt2(seed=base), method, targets="c_fc", seed=seed, **hyper)
        kw = {"progress": False, "checkpoint": tmp_path / "c", "every": 1}
        return hra.fit(tuned, [batch(seed=first)], 2, 1e-3, **kw)

    go()
    kw = {"seed": {"seed": 1}, "base": {"base": 4}, "batches": {"first": 5}}
    own = {"SHiRA": {"alpha": 0.5}, "VeRA": {"d_init": 0.2}, "NOLA": {"alpha": 4.0}}
    kw["hyper"] = own.get(method.__name__, {"m": 7})
    with pytest.raises(ValueError, match="of another run"):
        go(**kw[change])
    assert len(go().steps) == 2


def test_a_mask_by_gradient_resumes_whatever_gradients_are_given(tmp_path):
    def grads(seed):
        kw = {"targets": "c_fc", "progress": False}
        return hra.probe(gpt2(), [batch(seed=seed)], **kw).mean

    def go(gradients, stop=9):
        model = gpt2()
        before = copy.deepcopy(model.state_dict())
        hyper = {"mask": "grad", "density": 0.05, "gradients": gradients}
        tuned = hra.attach(model, hra.SHiRA, targets="c_fc", **hyper)
        kw = {"checkpoint": tmp_path / "c", "every": 1, "progress": False}
        kw["callback"] = lambda log: len(log.steps) < stop
        hra.fit(tuned, [batch()], 6, 1e-2, **kw)
        state, y = copy.deepcopy(tuned.state_dict()), model(**batch()).logits
        assert same(tuned.detach().state_dict(), before)
        return state, y

    go(grads(0), stop=3)
    resumed, y = go(grads(5))
    (tmp_path / "c").unlink()
    unbroken, want = go(grads(0))
    assert same(resumed, unbroken) and torch.equal(y, want)


def test_a_run_resumed_with_other_batches_or_dropout_is_refused(tmp_path):
    rows = [batch(1, seed=i) for i in range(16)]

    def loader(seed):
        torch.manual_seed(seed)
        return iter(torch.utils.data.DataLoader(rows, batch_size=None, shuffle=True))

    def go(batches, dropout=0.1):
        tuned = hra.attach(gpt2(), hra.LoRA, targets="c_fc", r=2, dropout=dropout)
        kw = {"checkpoint": tmp_path / "c", "every": 1, "progress": False}
        return hra.fit(tuned, batches, 3, 1e-3, **kw)

    go(loader(0))
    advanced = loader(0)
    next(advanced)
    for other in (loader(1), advanced, [batch(1, seed=99)]):
        with pytest.raises(ValueError, match="of another run: batches"):
            go(other)
    with pytest.raises(ValueError, match=r"of another run: hyper.*dropout"):
        go(loader(0), dropout=0.5)
    assert len(go(loader(0)).steps) == 3


def test_one_name_written_by_many_at_once(tmp_path):
    tuned, old = shaken(gpt2(), hra.LoRA, r=2), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    errors = []

    def save():
        try:
            for _ in range(10):
                tuned.save(tmp_path / "a")
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for t in threads:
        t.start()
    loaded = 0
    while any(t.is_alive() for t in threads):  # whole, or not yet there
        if (tmp_path / "a").exists():
            hra.load(gpt2(), tmp_path / "a")
            loaded += 1
    for t in threads:
        t.join()
    sys.setswitchinterval(old)
    assert errors == [] and loaded
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_checkpoints_are_whole_or_refused(tmp_path):
    path = tmp_path / "c"

    def tuned():
        return hra.attach(gpt2(), hra.LoRA, targets="c_fc", r=2)

    kw = {"progress": False, "checkpoint": path, "every": 1}
    kw["evaluate"] = lambda: np.float32(1.5)
    t = tuned()
    hra.fit(t, [batch()], 3, 1e-3, callback=lambda log: len(log.steps) < 2, **kw)
    good = path.read_bytes()
    assert len(hra.fit(tuned(), [batch()], 3, 1e-3, **kw).steps) == 3
    with torch.no_grad():
        next(iter(t.adapters.values())).A.fill_(float("inf"))
    path.write_bytes(good)
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        bad = bytearray(good)
        place = int(torch.randint(len(good), (1,), generator=g))
        bad[place] ^= 1 << int(torch.randint(8, (1,), generator=g))
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"checksum|no checkpoint"):
            hra.fit(tuned(), [batch()], 3, 1e-3, **kw)
    path.write_bytes(good)
    t = tuned()
    opt = torch.optim.AdamW(t.param_groups(1.0))
    keeper = hra.train.Checkpoint(
        path, {}, t, opt, torch.amp.GradScaler("cpu"), hra.Log()
    )
    next(iter(t.adapters.values())).A.data[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="left as it was"):
        keeper.save()
    assert path.read_bytes() == good
    with pytest.raises(ValueError, match="does not exist; make it first"):
        hra.fit(tuned(), [batch()], 3, checkpoint=tmp_path / "no" / "c", progress=False)


def test_names_modes_and_links_of_files(tmp_path):
    compiled = torch.compile(gpt2())
    tuned = hra.attach(compiled, hra.LoRA, targets="c_attn", r=2)
    assert not any("_orig_mod" in s for s in tuned.adapters)
    tuned.save(tmp_path / "compiled")
    assert same(
        hra.load(gpt2(), tmp_path / "compiled").state_dict(), tuned.state_dict()
    )
    old = os.umask(0o022)
    try:
        tuned.save(tmp_path / "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    tuned.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    hra.load(gpt2(), tmp_path / "link")


@pytest.mark.parametrize("method", [hra.VeRA, hra.NOLA, hra.PRANC])
def test_seeded_bases_do_not_depend_on_the_default_dtype(method, tmp_path):
    tuned, x = shaken(gpt2(), method), batch()
    y = tuned(**x).logits
    tuned.save(tmp_path / "v")
    model = gpt2()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(hra.load(model, tmp_path / "v").model(**x).logits, y)
    finally:
        torch.set_default_dtype(torch.float32)


class Mine(hra.Adapter):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, seed=seed, site=site)
        self.A, self.B = (
            self.new_parameter(r, self.d_in),
            self.new_parameter(self.d_out, r),
        )
        with torch.no_grad():
            self.A.normal_(generator=self.generator("A"))

    def delta_weight(self):
        return self.B @ self.A


def test_a_class_of_ones_own_is_saved_loaded_and_billed(tmp_path):
    tuned, x = shaken(gpt2(), Mine, r=3), batch()
    tuned.save(tmp_path / "m")
    with pytest.raises(hra.io.AdapterFileError, match=r"method=Mine"):
        hra.load(gpt2(), tmp_path / "m")
    again = hra.load(gpt2(), tmp_path / "m", method=Mine)
    assert torch.equal(again.model(**x).logits, tuned(**x).logits)
    assert hra.memory.measure(again, x).trained.numbers == again.num_trainable
    with pytest.raises(ValueError, match="states no law"):
        hra.memory.cost(Mine, 8, 8, 4)
    switch = hra.Switch(gpt2())
    with pytest.raises(hra.io.AdapterFileError, match=r"method=Mine"):
        switch.to(tmp_path / "m")
    close = {"rtol": 1e-4, "atol": 1e-4}
    model = switch.to(tmp_path / "m", method=Mine)
    torch.testing.assert_close(model(**x).logits, tuned(**x).logits, **close)
    assert same(switch.off().state_dict(), gpt2().state_dict())
    shaken(gpt2()).save(tmp_path / "s")
    files = {tmp_path / "m": 0.5, tmp_path / "s": 1.0}
    fused = hra.fuse(gpt2(), files, method=Mine)
    site = next(iter(fused.adapters))
    want = 0.5 * tuned.adapters[site].delta_weight()
    want = want + hra.load(gpt2(), tmp_path / "s").adapters[site].delta_weight()
    torch.testing.assert_close(fused.adapters[site].delta_weight(), want)


class Rounded(hra.Adapter):
    """A file holds its numbers in half precision: `packed` converts, `unpack` too."""

    def __init__(self, base, *, seed=0, site=""):
        super().__init__(base, seed=seed, site=site)
        self.scale = self.new_parameter(self.d_out)

    def delta_weight(self):
        return self.scale[:, None] * self.W0

    def packed(self, hyper):
        return {"half": self.scale.detach().half()}, hyper

    @torch.no_grad()
    def unpack(self, tensors):
        self.scale.copy_(tensors["half"])


def test_what_a_file_holds_in_another_form_is_unpacked(tmp_path):
    tuned = shaken(gpt2(), Rounded)
    tuned.save(tmp_path / "r")
    again = hra.load(gpt2(), tmp_path / "r", method=Rounded)
    for site, a in again.adapters.items():
        assert a.scale.abs().max() > 0.1
        assert torch.equal(a.scale, tuned.adapters[site].scale.half().float())


def test_pranc_in_any_order_of_sites_and_in_transformers_files(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return self.down(self.up(x))

    x = torch.randn(3, 6)
    tuned = shaken(Net(), hra.PRANC, targets="", m=5)
    y = tuned(x)
    tuned.save(tmp_path / "p")
    assert torch.equal(hra.load(Net(), tmp_path / "p").model(x), y)
    model = gpt2()
    shaken(model, hra.PRANC, m=5)
    model.save_pretrained(tmp_path / "folder")


# ---- K5: numbers and dtypes ----------------------------------------------------------

EVERY = {**LAYERS, **{m.__name__: (m, h) for m, (h, _) in WHOLE.items()}}


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fit_lowers_the_loss_of_a_half_precision_model(name, dtype):
    method, hyper = EVERY[name]
    model = hra.zoo.gpt2("random").to(dtype).eval()
    targets = TARGETS if issubclass(method, hra.Adapter) else ""
    tuned = hra.attach(model, method, targets=targets, **hyper)
    wide = {p.dtype for g in tuned.param_groups(1.0) for p in g["params"]}
    assert wide == {torch.float32}
    with torch.no_grad():
        before = model(**batch()).loss.item()
    log = hra.fit(tuned, [batch()], 25, 2e-2, progress=False)
    with torch.no_grad():
        after = model.eval()(**batch()).loss.item()
    assert after < before, log


@pytest.mark.parametrize("name", list(EVERY))
def test_fit_under_autocast_moves(name):
    method, hyper = EVERY[name]
    targets = TARGETS if issubclass(method, hra.Adapter) else ""
    model = gpt2()
    model.requires_grad_(False)
    tuned = hra.attach(model, method, targets=targets, **hyper)

    def loss():  # in float32, by a plain forward pass
        with torch.no_grad():
            return model.eval()(**batch()).loss.item()

    before = loss()
    with torch.autocast("cpu", torch.bfloat16):
        hra.fit(tuned, [batch()], 25, 2e-2, progress=False)
        assert torch.is_autocast_cache_enabled()
    assert loss() < before


def test_dora_over_a_row_of_zeros_stays_zero_there():
    layer = nn.Linear(6, 4).double()
    with torch.no_grad():
        layer.weight[2] = 0
    for detach_norm in (True, False):
        dora = hra.DoRA(copy.deepcopy(layer), r=2, detach_norm=detach_norm)
        x = torch.randn(5, 6, dtype=torch.float64)
        opt = torch.optim.AdamW(dora.param_groups(0.05))
        for _ in range(3):
            dora(x).square().sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in (dora.A, dora.B, dora.m))
            opt.step()
            opt.zero_grad()
        assert torch.isfinite(dora(x)).all()
        assert not (dora.W0 + dora.delta_weight())[2].any()


@pytest.mark.parametrize("name", [n for n in LAYERS if not LAYERS[n][0].no_delta])
def test_second_derivatives_and_transforms_are_right_or_say_so(name):
    layer, x = wide_layer(name)
    trained = {n: p for n, p in layer.named_parameters() if p.requires_grad}

    def definition(x):
        return F.linear(x, layer.W0 + layer.delta_weight(), layer.bias)

    def penalty(f):  # of a loss that is linear in the output
        (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        return torch.autograd.grad(
            g.square().sum(), list(trained.values()), allow_unused=True
        )

    exact = "create_graph=True: this backward pass is once_differentiable"
    by_hand = name in ("SHiRA", "VeRA", "DoRA", "FullFT", "MoRA", "ReMoRA")
    by_hand = by_hand or name in ("LoSiAPro", "PartialFT", "FISH", "LTSFT", "RoSA")
    by_hand = by_hand or name == "SpIEL"
    if by_hand:
        with pytest.raises(RuntimeError, match=exact):
            penalty(layer)
    elif name != "BitFit":  # of which no gradient depends on the biases
        torch.testing.assert_close(penalty(layer), penalty(definition))

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).sin().sum()

    given = {n: p.detach() for n, p in layer.named_parameters()}
    if by_hand or name in ("PRANC", "NOLA"):
        with pytest.raises(RuntimeError):
            torch.func.grad(loss)(given)
        with pytest.raises(RuntimeError):
            torch.func.vmap(layer)(x[None])
    else:
        want = torch.autograd.grad(layer(x).sin().sum(), list(trained.values()))
        got = torch.func.grad(loss)(given)
        torch.testing.assert_close([got[n] for n in trained], list(want))
        torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], layer(x))


@pytest.mark.parametrize("name", ["LoRA", "Watching"])
def test_interrupted_measuring_changes_nothing(name):
    class Watching(hra.LoRA):
        def observe(self, G):
            pass

    model = Small().eval()
    tuned = hra.attach(model, Watching if name == "Watching" else hra.LoRA, r=2)
    x = torch.ones(2, 6)
    model(x).loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    copies = {n: g if g is None else g.clone() for n, g in grads.items()}
    before, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def check():
        assert same(model.state_dict(), before) and torch.equal(
            torch.get_rng_state(), seed
        )
        assert not any(m.training for m in model.modules())
        for n, p in model.named_parameters():
            assert p.grad is grads[n]
            assert p.grad is None or torch.equal(p.grad, copies[n])
        assert linear.kept_by_hooks is None
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None

    def task():
        memory.measure(tuned, {"x": x})

    bad, done = attack_lines(lambda: task, lambda _: check() or "", cases=120)
    assert bad == [] and done > 100
