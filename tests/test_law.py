"""The language of the laws: what it computes, and what it refuses."""

from fractions import Fraction
from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hra
from hra import memory
from hra.law import LONGEST, Law, evaluate

VALUES = {"d_in": 12, "d_out": 20, "r": 4, "mask": "rand", "project": True, "n": None}


@pytest.mark.parametrize(
    ("formula", "result"),
    [
        ("r*(d_in + d_out)", 128),
        ("d_in - r - 1", 7),
        ("d_in//5*5", 10),
        ("7/2", 3),
        ("1/3*3", 1),
        ("d_in - d_out", -8),
        ("min(r, d_in, 3) + max(1, 2)", 5),
        ("min(max(r, 9), (d_in))", 9),
        (" r ", 4),
        ("isqrt(r*(d_in + d_out))", 11),
        ("isqrt(1/2) + isqrt(25)//2*2", 4),
    ],
)
def test_what_a_formula_is(formula, result):
    assert evaluate(formula, VALUES) == result


HOSTILE = [
    "__import__('os').system('true')",
    "().__class__.__bases__",
    "r.bit_length()",
    "r[0]",
    "[r for r in (1,)]",
    "lambda: r",
    "print(r)",
    "abs(r)",
    "r**d_in",
    "r if r else r",
    "r == r",
    "r; r",
    "r := 1",
    "-r",
    "+r",
    "r r",
    "2r",
    "1e9",
    "1.5",
    "0x10",
    "1_000",
    "'r'",
    "f'{r}'",
    "r%2",
    "r<<2",
    "~r",
    "r\\\n+1",
    "# r",
    "",
    " ",
    "(",
    ")",
    "()",
    "(r",
    "r)",
    "min",
    "min()",
    "min(r)",
    "min r",
    "min(r,)",
    "isqrt",
    "isqrt(r, r)",
    "isqrt(r - d_in)",
    "sqrt(r)",
    "r +",
    "* r",
    "r // 0",
    "r / (r - r)",
    "unknown",
    "mask",
    "project",
    "n",
    "९",
    "𝐫",
    "r\0",
    "9" * 16,
    "(" * 51 + "r" + ")" * 51,
    "(" * 900,
    "r+" * LONGEST + "r",
    "999999999999999*" * 30 + "1/7",
    "999999999999999*" * 30 + "1",
    "1/7+" + "999999999999999*" * 30 + "1",
]


@pytest.mark.parametrize("formula", HOSTILE, ids=range(len(HOSTILE)))
def test_everything_else_is_refused_in_words(formula):
    with pytest.raises(ValueError, match="A formula has names, whole numbers"):
        memory.evaluate(formula, VALUES)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30) | st.text("rd_in0129+-*/(), minax", max_size=30))
def test_any_text_gives_a_number_or_a_value_error(text):
    try:
        assert isinstance(evaluate(text, VALUES), int)
    except ValueError:
        with pytest.raises(ValueError, match="A formula has"):
            evaluate(text, VALUES)


formulas = st.recursive(
    st.sampled_from(["r", "d_in", "d_out", "1", "7", "30"]),
    lambda f: st.one_of(
        st.builds("({} {} {})".format, f, st.sampled_from("+ - * / //".split()), f),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), f, f),
        st.builds("isqrt(max({}, 0))".format, f),
    ),
    max_leaves=8,
)


def exact(formula):
    """What the formula is in fractions, by Python's own parser (these are our own)."""
    names = {k: Fraction(v) for k, v in VALUES.items() if type(v) is int}
    for digits in ("30", "7", "1"):
        formula = formula.replace(digits, f"F({digits})")
    return eval(
        formula,
        {"F": Fraction, "min": min, "max": max, "isqrt": lambda x: isqrt(int(x))}
        | names,
    )


@settings(max_examples=300, deadline=None)
@given(formulas)
def test_it_computes_what_arithmetic_says(formula):
    if "/" in formula.replace("//", ""):  # a quotient is rounded to a float
        formula = formula.replace("//", "/").replace("/", "//")
    try:
        expected = exact(formula)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            evaluate(formula, VALUES)
    else:
        assert evaluate(formula, VALUES) == expected


def test_every_law_is_made_of_formulas_that_have_values():
    for method in (None, *hra.METHODS.values()):
        if method and not memory.states_law(method):
            assert not issubclass(method, hra.Adapter)
            with pytest.raises(ValueError, match="states no law"):
                memory.law(method)
            continue
        for grad in (True, False):
            law = memory.law(method, grad)
            hyper = {} if method is None else method.hyperparameters({})
            values = law.values(d_out=20, d_in=12, **hyper)
            parts = (
                "trained",
                "token",
                "once",
                "frozen",
                "int64",
                "masters",
                "cast",
                "wide",
            )
            for formulas in (getattr(law, part) for part in parts):
                assert all(evaluate(f, values) >= 0 for f in formulas.values())


def test_sizes_are_evaluated_in_turn():
    law = Law({"a": "K"}, sizes={"half": "d_in//2", "K": "half*r", "n": 3})
    assert law.values(d_in=9, r=2) == {"d_in": 9, "r": 2, "half": 4, "K": 8, "n": 3}
