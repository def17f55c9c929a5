"""`hra.testing` on the usual mistakes: each is told in its own sentence."""

import re
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra
from hra import linear
from hra.adapter import Adapter
from hra.law import Law
from hra.testing import (
    AdapterError,
    Case,
    check_adapter,
    half_precision_trains_in_float32,
)


class Student(Adapter):
    """LoRA as a student writes it: right, and what the mistakes below start from."""

    def __init__(self, base, r=4, alpha=8.0, *, seed=0, site=""):
        super().__init__(base, seed=seed, site=site)
        self.scale = alpha / r
        A = torch.randn(r, self.d_in, generator=self.generator("A"))
        self.A = nn.Parameter(A.to(self.W0))
        self.B = nn.Parameter(self.W0.new_zeros(self.d_out, r))

    def delta_weight(self):
        return self.scale * self.B @ self.A

    def forward(self, x):
        return self.base(x) + self.scale * F.linear(F.linear(x, self.A), self.B)


def count(m, n):
    return 4 * (m + n)


MISTAKES = {}  # class: (the words that tell it from the others, other arguments)


def mistake(said, **arguments):
    def note(cls):
        MISTAKES[cls] = said, arguments
        return cls

    return note


# ---- the constructor


@mistake("your constructor takes no site")
class NoSite(Student):
    def __init__(self, base, r=4, *, seed=0):
        super().__init__(base, r, seed=seed)


@mistake("your constructor takes no seed")
class NoSeed(Student):
    def __init__(self, base, r=4, *, site=""):
        super().__init__(base, r, site=site)


@mistake("site='fc' was given, self.site is ''")
class DropsSite(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed)


@mistake("call super().__init__(base, seed=seed, site=site) first")
class NoSuper(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        self.A = nn.Parameter(torch.zeros(r, base.weight.shape[1]))


@mistake("your constructor does not call super().__init__")
class OnlyModule(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        nn.Module.__init__(self)
        self.layer, self.seed, self.site = base, seed, site


@mistake("delta_weight is missing")
class NoDelta(Adapter):
    def __init__(self, base, *, seed=0, site=""):
        super().__init__(base, seed=seed, site=site)
        self.b = nn.Parameter(self.W0.new_zeros(self.d_out))


@mistake("the pretrained weight trains: super().__init__ has frozen it")
class Unfrozen(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.base.weight.requires_grad_(True)


@mistake("the pretrained fc.base.weight trains")
class UnfrozenLater(Student):
    def forward(self, x):
        self.base.weight.requires_grad_(True)
        return super().forward(x)


@mistake("param_groups hands the optimizer fc.base.weight")
class HandsOverTheBase(Student):
    def param_groups(self, lr):
        return [{"params": [*super().param_groups(lr)[0]["params"], self.base.weight]}]


@mistake("param_groups leaves it out")
class LeavesOutA(Student):
    def param_groups(self, lr):
        return [{"params": [self.B], "lr": lr}]


# ---- tensors


@mistake("self.mask of fc holds a tensor that is no parameter and no buffer")
class PlainTensor(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.mask = self.W0 != 0


@mistake("self.factors of fc holds a tensor")
class ListOfParameters(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.factors = [nn.Parameter(self.W0.new_zeros(r))]


@mistake("w is the pretrained weight under a second name")
class SecondName(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.w = base.weight


@mistake("B is float64 over float32")
class Float64(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.B = nn.Parameter(
            torch.zeros(self.d_out, r, dtype=torch.float64).to(self.W0.device)
        )


@mistake("B is float32 over float64")
class Float32(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.B = nn.Parameter(torch.zeros(self.d_out, r))


@mistake("B lies on cpu whatever device the layer is on")
class OnTheCPU(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.B = nn.Parameter(torch.zeros(self.d_out, r, dtype=self.W0.dtype))


@mistake("float32's rounding only: is a dtype written out?")
class DtypeWrittenOut(Student):
    def forward(self, x):
        h = F.linear(F.linear(x.float(), self.A.float()), self.B.float())
        return self.base(x) + self.scale * h


@mistake("nothing trains: what trains must be an nn.Parameter")
class Buffers(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        A, B = self.A.data, self.B.data
        del self.A, self.B
        self.register_buffer("A", A)
        self.register_buffer("B", B)


@mistake("two models share one tensor B, which lives on the class")
class OnTheClass(Student):
    shared: ClassVar = {}

    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        key = self.d_out, self.W0.dtype, self.W0.device
        self.B = self.shared.setdefault(key, self.B)


@mistake(
    "352 numbers train where the formula says 2,496", trained=lambda m, n: 4 * m * n
)
class CountedWrongly(Student):
    pass


# ---- ΔW


@mistake("delta_weight returns (12, 20), the transpose, for fc")
class Transposed(Student):
    def delta_weight(self):
        return super().delta_weight().T


@mistake("delta_weight returns (20, 1) for fc")
class Broadcasts(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.A = None
        self.B = nn.Parameter(self.W0.new_zeros(self.d_out, 1))

    def delta_weight(self):
        return self.B

    def forward(self, x):
        return F.linear(x, self.W0 + self.B, self.bias)


@mistake("did you forget the scale?")
class NoScale(Student):
    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


@mistake("it adds the transpose of ΔW")
class TransposedSquare(Student):
    def forward(self, x):
        delta = self.delta_weight()
        return self.base(x) + x @ (delta if self.d_out == self.d_in else delta.T)


@mistake("x is (..., d_in), W0 and ΔW are (d_out, d_in)")
class WrongProduct(Student):
    def forward(self, x):
        return self.base(x) + x @ self.delta_weight()


@mistake("Conv1D stores W transposed")
class ForgetsConv1D(Student):
    def forward(self, x):
        return F.linear(x, self.base.weight + self.delta_weight(), self.bias)


@mistake("W0 is missing: add self.base(x)")
class NoBase(Student):
    def forward(self, x):
        return F.linear(x, self.delta_weight(), self.bias)


@mistake("it is not linear in x")
class Nonlinear(Student):
    def forward(self, x):
        h = torch.tanh(F.linear(x, self.A))
        return self.base(x) + self.scale * F.linear(h, self.B)


@mistake("your forward adds the bias twice")
class BiasTwice(Student):
    def forward(self, x):
        y = super().forward(x)
        return y if self.bias is None else y + self.bias


@mistake("your forward leaves out the bias")
class NoBias(Student):
    def forward(self, x):
        return F.linear(x, self.W0 + self.delta_weight())


@mistake("your forward changes the bias")
class ScaledBias(Student):
    def forward(self, x):
        W = self.W0 + self.delta_weight()
        return F.linear(x, W, None if self.bias is None else 1.5 * self.bias)


# ---- the start and its draws


@mistake("let one factor start at zero")
class BothRandom(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        B = torch.randn(self.d_out, r, generator=self.generator("B"))
        self.B = nn.Parameter(B.to(self.W0))


@mistake("A and B of fc never move: where both factors")
class BothZero(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.A = nn.Parameter(torch.zeros_like(self.A))


@mistake("A differs between two adapters of one seed")
class Unseeded(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.A = nn.Parameter(torch.randn(r, self.d_in).to(self.W0))


@mistake("draws from torch's global generator, or seeds it")
class Reseeds(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        torch.manual_seed(seed)
        self.A = nn.Parameter(torch.randn(r, self.d_in).to(self.W0))


@mistake("seed=0 and seed=1 draw the same numbers")
class IgnoresSeed(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        draw = torch.Generator().manual_seed(len(site))
        self.A = nn.Parameter(torch.randn(r, self.d_in, generator=draw).to(self.W0))


@mistake("draw the same numbers from one seed")
class IgnoresSite(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        draw = torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(torch.randn(r, self.d_in, generator=draw).to(self.W0))


# ---- the forward pass


@mistake("your forward changes its input x in place")
class InPlaceX(Student):
    def forward(self, x):
        y = self.base(x)
        x *= self.scale
        return y + F.linear(F.linear(x, self.A), self.B)


@mistake("an in-place operation overwrote what the backward pass needs")
class InPlaceKept(Student):
    def forward(self, x):
        h = F.linear(x, self.A)
        y = self.base(x) + self.scale * F.linear(h, self.B)
        h *= self.scale
        return y


@mistake("no gradient reaches A of fc, although the output depends on it")
class Detached(Student):
    def forward(self, x):
        h = F.linear(x, self.A.data)
        return self.base(x) + self.scale * F.linear(h, self.B)


@mistake("no gradient reaches any trained parameter")
class AddedUnderNoGrad(Student):
    def forward(self, x):
        y = self.base(x)
        with torch.no_grad():
            y += self.scale * F.linear(F.linear(x, self.A), self.B)
        return y


@mistake("extra of fc trains, but nothing is computed from it", trained=None)
class Unused(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.extra = nn.Parameter(self.W0.new_ones(3))


@mistake("gradient of A at fc is off by")
class WrongGradient(Student):
    def forward(self, x):
        A = 0.5 * self.A + 0.5 * self.A.detach()
        return self.base(x) + self.scale * F.linear(F.linear(x, A), self.B)


@mistake("gradient of W_d at fc is off by", trained=None)
class WrongGradientWithoutDelta(hra.Houlsby):
    def forward(self, x):
        h = self.base(x)
        W_d = 0.5 * self.W_d + 0.5 * self.W_d.detach()
        z = F.gelu(F.linear(h, W_d, self.b_d))
        return h + F.linear(z, self.W_u, self.b_u)


@mistake("dropout must ask self.training")
class DropoutInEval(Student):
    def forward(self, x):
        h = F.linear(F.dropout(x, 0.1), self.A)
        return self.base(x) + self.scale * F.linear(h, self.B)


@mistake("two calls of delta_weight differ")
class NoisyDelta(Student):
    def delta_weight(self):
        return F.dropout(super().delta_weight(), 0.1)


@mistake("your forward fails on an x of shape (2, 12, d_in)")
class TwoDimensional(Student):
    def forward(self, x):
        tokens, _ = x.shape
        h = F.linear(x, self.A).view(tokens, -1)
        return self.base(x) + self.scale * F.linear(h, self.B)


@mistake("your forward makes (24, 20) of an x of shape (2, 12, d_in)")
class Flattens(Student):
    def forward(self, x):
        x = x.reshape(-1, self.d_in)
        return super().forward(x)


@mistake("your forward fails on a transposed x")
class ViewsStrides(Student):
    def forward(self, x):
        h = F.linear(x.view(-1, self.d_in), self.A)
        y = self.scale * F.linear(h, self.B)
        return self.base(x) + y.view(*x.shape[:-1], self.d_out)


@mistake("a row's result depends on the other rows")
class MeanOverBatch(Student):
    def forward(self, x):
        h = F.linear(x, self.A)
        h = h - h.mean(0, keepdim=True)
        return self.base(x) + self.scale * F.linear(h, self.B)


@mistake("observe is never called")
class PastTheHook(Student):
    def __call__(self, x):
        return self.forward(x)


# ---- merging, detaching, files


@mistake("merging fails")
class MergesUntransposed(Student):
    @torch.no_grad()
    def merged(self):
        layer = linear.with_weight(self.base, self.W0)
        layer.weight += self.delta_weight()
        return layer


@mistake("the merged model's outputs are off by")
class MergesBadly(Student):
    @torch.no_grad()
    def merged(self):
        layer = linear.with_weight(self.base, self.W0)
        delta = self.delta_weight()
        layer.weight += delta if layer.weight.shape == delta.shape else delta.T
        return layer


@mistake("the merged model's layers are not of their own type, Conv1D")
class MergesToLinear(Student):
    @torch.no_grad()
    def merged(self):
        layer = nn.Linear(self.d_in, self.d_out, self.bias is not None)
        layer = linear.with_weight(layer.to(self.W0), self.W0 + self.delta_weight())
        if self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer


@mistake("entries() is off by")
class WrongEntries(Student):
    def entries(self):
        return None, self.B @ self.A


@mistake("changes() writes another weight than merged() has")
class WrongChanges(Student):
    def changes(self):
        return {}


@mistake("building the adapter changes the pretrained fc.weight")
class EditsW0(Student):
    """PiSSA without its way back."""

    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.W0.data -= 0.01


@mistake("its forward changes the pretrained fc.weight")
class EditsW0Forward(Student):
    def forward(self, x):
        y = super().forward(x)
        self.base.weight.data *= 0.999
        return y


@mistake("training changes the pretrained")
class UnmergesBySubtraction(Student):
    def forward(self, x):
        with torch.no_grad():
            self.W0.add_(self.delta_weight())
            self.W0.sub_(self.delta_weight())
        return super().forward(x)


@mistake("does not hold self.gain: what training changes")
class StateNotSaved(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.register_buffer("gain", self.W0.new_ones(()), persistent=False)

    def after_step(self, step, optimizer):
        self.gain += 0.1

    def delta_weight(self):
        return self.gain * super().delta_weight()

    def forward(self, x):
        return Adapter.forward(self, x)


@mistake("does not hold self.gains")
class StateInAList(StateNotSaved):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.gains = [1.0]

    def after_step(self, step, optimizer):
        self.gains[0] += 0.1

    def delta_weight(self):
        return self.gains[0] * super().delta_weight()


@mistake("it cannot be pickled")
class Lambda(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.act = lambda x: x


@mistake("30 steps of AdamW take the loss from")
class TooSmall(Student):
    def delta_weight(self):
        return 1e-4 * super().delta_weight()

    def forward(self, x):
        return Adapter.forward(self, x)


@mistake("attached to a model in eval mode it is in train mode")
class Trains(Student):
    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.train()


@mistake("your law says 52 numbers of trained in 416 bytes, held are 128 in 1,024")
class WrongLaw(Student):
    @classmethod
    def law(cls, **hyper):
        return Law({"A": "r*d_in+4"}, {"x": "d_in", "Ax": "r"})


@mistake("before training the outputs are off by 0, root mean square")
class SaysNear(Student):
    start_tolerance = 0.1


# ---- what is right


class InPlaceOnTheOutput(Student):
    """Nobody else holds what self.base(x) has just made."""

    def forward(self, x):
        y = self.base(x)
        y += self.scale * F.linear(F.linear(x, self.A), self.B)
        return y


class DefinitionAlone(Adapter):
    def __init__(self, base, *, seed=0, site=""):
        super().__init__(base, seed=seed, site=site)
        self.u = nn.Parameter(self.W0.new_zeros(self.d_out))

    def delta_weight(self):
        return self.u[:, None] * self.W0


# ---- the tests


@pytest.mark.parametrize("cls", list(MISTAKES), ids=lambda c: c.__name__)
def test_a_mistake_is_told_in_its_own_sentence(cls):
    said, arguments = MISTAKES[cls]
    with pytest.raises(AdapterError, match=re.escape(said)) as caught:
        check_adapter(cls, **{"trained": count} | arguments)
    text = str(caught.value)
    assert text.startswith(f"{cls.__name__} on ") and "\n" not in text
    told = [c.__name__ for c, (words, _) in MISTAKES.items() if words in text]
    assert told == [cls.__name__]


def test_at_least_thirty_mistakes():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize(
    ("cls", "trained"),
    [(Student, count), (InPlaceOnTheOutput, count), (DefinitionAlone, lambda m, n: m)],
)
def test_what_is_right_passes(cls, trained):
    before = torch.get_rng_state()
    assert check_adapter(cls, trained) is None
    assert torch.equal(torch.get_rng_state(), before)


class CoarseInHalf(Student):
    """Right in float32; in a half-precision base its scale is lost."""

    def __init__(self, base, r=4, *, seed=0, site=""):
        super().__init__(base, r, seed=seed, site=site)
        self.A, self.B = (self.new_parameter(*p.shape) for p in (self.A, self.B))
        draw = torch.randn(self.A.shape, generator=self.generator("A"))
        self.A.data.copy_(draw)

    def delta_weight(self):
        return self.scale * self.B @ self.A

    def forward(self, x):
        s = self.scale * (1 if self.W0.dtype.itemsize > 2 else 2)
        A, B = self.like_base(self.A), self.like_base(self.B)
        return self.base(x) + s * F.linear(F.linear(x, A), B)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Student, "what trains stays in float32 (self.new_parameter)"),
        (CoarseInHalf, "over bfloat16 its output is off by"),
    ],
)
def test_mistakes_in_half_precision(cls, said):
    case = Case(cls, dtype=torch.float32)
    with pytest.raises(AdapterError, match=re.escape(said)):
        half_precision_trains_in_float32(case)


def test_what_is_no_adapter_of_layers_is_refused(untyped):
    for other in (nn.Linear, hra.PromptTuning, hra.LoRA(nn.Linear(8, 8))):
        with pytest.raises(TypeError, match=r"takes a subclass of hra\.Adapter"):
            check_adapter(other)


def test_an_unknown_hyperparameter_is_named():
    with pytest.raises(TypeError, match="Student has no hyperparameter 'rank'"):
        check_adapter(Student, rank=4)
