"""Which answers are read, which are one class and right; and that hostile ones cost little."""

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.workload import math_check
from profiler.workload.answers import last_boxed
from profiler.workload.verifiers import ByText, Choice, Numeric, number_in, rounded, verifier
from traces.errors import MissingDependencyError, UsageError

NUMBERS = {
    "42": "42",
    "The answer is 42!\n\n* That was fun": "42",
    "The answer is 42! · bye": "42",
    "-7": "-7",
    "−7": "-7",
    "1,234,567": "1234567",
    "1\\,234": "1234",
    "1{,}000": "1000",
    "$1,234.50": "1234.5",
    "-$5": "-5",
    "3/4": "0.75",
    "\\frac{3}{4}": "0.75",
    "\\dfrac34": "0.75",
    "-\\frac{1}{2}": "-0.5",
    "1 3/4": "1.75",
    "2\\frac{1}{2}": "2.5",
    "50%": "0.5",
    "50\\%": "0.5",
    "7 percent": "0.07",
    "1e-3": "0.001",
    "1.5 \\times 10^{6}": "1500000",
    "2×10^5": "200000",
    "10^6": "1000000",
    "0.333333": "0.333333",
    "1/3": "0.333333",
    "2.0000001": "2",
    "12345.67": "12345.67",
    "-0.0": "0",
    "1e-8": "1E-8",
    "x = 7": "7",
    "The answer is 42.": "42",
    "the answer is -5": "-5",
    "So 3 + 4 = 7": "7",
    "It is $42$ cm^2": "42",
    "7\\text{ cm}": "7",
    "The answer is 5!": "5",
    "5! = 120": "120",
    "90^\\circ": "90",
    "1, 2, 3": "3",
    "#### 18": "18",
    "The final answer is **204**.": "204",
    "She makes **$1,218** every day.": "1218",
    "**Answer: -7**": "-7",
    "10 - 3 = __7__": "7",
    "***7***": "7",
    "She earns $18/hour": "18",
    "\\textbf{18}": "18",
    "\\text{-1,218 dollars}": "-1218",
    "It is 18^\\circ C": "18",
    "12 345 678.5": "12345678.5",
    "1 000": "1000",
    "It is 1 000 000 in all": "1000000",
    "Answer: 2\u202f345 people": "2345",
    "of the first 2 100 are left": "100",
    "The sides are 120 130 150.": "150",
}
NO_NUMBERS = (
    "2**10", "x = 3**2 + 4**2", "5:3", "at 12:30", "2^10", "2^{10}", "3\\sqrt{2}", "2\\pi", "3/pi",
    "0.\\overline{3}", "1/2 + 1/3", "x = 3 - 5", "10-5", "1,5", "(3,5)", "12,34", "2x", "3i",
    "5 million", "5\\text{ million}", "1.5\\ \\mathrm{billion}", "5!", "$5!$", "5!/3!", "5! + 1",
    "(5!)", "2 \\cdot 5!", "120 = 5!", "\\(5!\\)", "The answer is $5!$.", "5!.", "2 \\cdot 5",
    "5\\text{ millions}", "5 \\textbf{ million}", "$5$ million",
    "3 \\pm 1", "±1", "1/0", "2/3/4", "2024-01-05", "1e99999", "9" * 500, "none", "",
)  # fmt: skip
LETTERS = {
    "B. Answer choice A is incorrect because it is hot.": "B",
    "C. While answer choice (A) is tempting, it ignores friction.": "C",
    "B) Answer A is wrong as it is odd.": "B",
    "B. The answer A would be wrong.": "B",
    "(B)": "B",
    "B": "B",
    "b": "B",
    "B.": "B",
    "**B**": "B",
    "B. Paris": "B",
    "E) all of them": "E",
    "The answer is B": "B",
    "the answer is (b).": "B",
    "Answer: C": "C",
    "Answer is **D**.": "D",
    "**Answer**: C": "C",
    "Why?\n\n**Final answer**:\n\n**B**": "B",
    "The answer is `B`": "B",
    "\\boxed{B}": "B",
    "\\boxed{\\text{D}}": "D",
    "final answer: $\\boxed{A}$": "A",
    "The correct option is E because A is wrong": "E",
    "So option (C) is right. (D) is not.": "C",
    "A good guess would be (C)": "C",
    "It follows that\n\nC": "C",
    "<think>(A)</think>(B)": "B",
    "A) is wrong since it is hot. The answer is C.": "C",
    "A. Mercury is hot.\nB. Venus is hotter.\nThe correct answer is B.": "B",
    "A: false.\nB: true.\n\nAnswer: B": "B",
    "I. Statement one is true. Answer: C": "C",
    "B) 42. Option A is wrong, as it is odd.": "B",
    "The answer is a mystery": None,
    "I see": None,
    "F": "F",
    "K": None,
    "<think>A": None,
    "": None,
}
HOSTILE = (
    "\\boxed{" * 40_000, "\\boxed{" + "{}" * 100_000, "{" * 200_000, "1," * 100_000, "1" * 200_000,
    "1 " * 100_000, "(" * 200_000, "answer " * 50_000, " " * 200_000, "-" * 200_000, "*" * 200_000,
    "\\frac{1}" * 30_000, "\\text{" * 40_000, "\n" * 200_000 + "A",
    "\\boxed{a}" * 20_000 + "\\boxed{" * 20_000,
)  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_numbers(text, number):
    assert Numeric().canonical(text) == number


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: text[:20])
def test_what_is_no_number_has_no_vote(text):
    assert Numeric().answer_of(text) is None
    assert not Numeric().matches("5", text)


def test_numeric_tolerance_is_one_unit_of_the_last_digit():
    matches = Numeric().matches
    assert matches("0.333333", "1/3") and matches("0.333334", "1/3")
    assert not matches("0.333335", "1/3")
    assert not matches("0.33", "1/3")
    assert matches("5.000001", "5") and not matches("5.000002", "5")
    assert not matches("1234567", "1234568")
    assert not matches("50", "50%")
    assert matches("1E-8", "0.00000001") and not matches("1E-8", "0")
    assert not matches("12345.67", "12345.68")


def fraction(digits):
    return st.builds(Fraction, st.integers(-(10**digits), 10**digits), st.integers(1, 10**digits))


@given(fraction(9))
def test_a_class_is_right_by_itself_and_stable(value):
    name = rounded(value)
    assert rounded(Fraction(name)) == name
    assert number_in(name) == Fraction(name)
    assert Numeric().matches(name, f"{value.numerator}/{value.denominator}")
    assert abs(Fraction(name) - value) <= max(Fraction(1, 2 * 10**6), abs(value) / 10**5)


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_are_exact(value):
    assert rounded(Fraction(value)) == str(value)
    assert Numeric().canonical(f"{value:,}") == str(value)
    assert not Numeric().matches(str(value), str(value + 1))


@pytest.mark.parametrize(("text", "letter"), LETTERS.items())
def test_letters(text, letter):
    assert Choice().answer_of(text) == letter


def test_choice_expected_in_any_form():
    assert Choice().matches("B", "(B)") and Choice().matches("B", "b")
    assert not Choice().matches("B", "Paris")


TEN = "\n".join(f"{letter}. {letter.lower()}" for letter in "ABCDEFGHIJ")


@pytest.mark.parametrize(
    ("prompt", "letter"),
    [
        ("", "B"),
        ("How does the enthalpy (H) change? (A) up (B) down (C) not", "B"),
        ("(A) a (B) b (C) c (D) d (F) f (G) g (H) h", "B"),
        ("Which?\n" + TEN, "H"),
        (json.dumps([{"role": "user", "content": "Which?\n" + TEN}]), "H"),
        (json.dumps(TEN.replace(". ", ") ")), "H"),
        (" ".join(f"({letter}) it" for letter in "ABCDEFGH"), "H"),
        (" ".join(f"({letter}) it" for letter in "ABCDEFG"), "B"),
        ("Which? Answer with a letter from A to J.", "H"),
        ("Which (A-H)?", "H"),
    ],
)
def test_letters_in_passing_are_choices_to_e_or_those_that_the_prompt_lists(prompt, letter):
    text = "It is negative, so (B), as the enthalpy (H) falls"
    assert Choice().answer_of(text, prompt) == letter
    assert Choice().answer_of("The answer is (H).", prompt) == "H"


def test_boxes_with_deep_braces():
    assert last_boxed("\\boxed{\\frac{\\sqrt{3}}{2}} done") == "\\frac{\\sqrt{3}}{2}"
    assert last_boxed("\\boxed{1} or \\boxed{2") == "1"
    assert last_boxed("\\fbox{3} \\boxed{\\{1\\}}") == "\\{1\\}"
    assert last_boxed("none") is None


@given(st.text(alphabet="\\{}boxedfrac0123456789 ,.()ABCDE%$^-+=/\n", max_size=80))
def test_no_text_makes_a_verifier_stumble(text):
    for each in (ByText(), Numeric(), Choice()):
        answer = each.answer_of(text)
        if answer is None:
            continue
        name = each.canonical(answer)
        assert name is None or each.matches(name, name)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8])
def test_hostile_texts_cost_little(text):
    begun = time.process_time()
    for each in (ByText(), Numeric(), Choice()):
        answer = each.answer_of(text)
        if answer is not None:
            each.canonical(answer)
    assert time.process_time() - begun < 2


@pytest.fixture(scope="module")
def math():
    return verifier("math")


@pytest.mark.parametrize(
    "same",
    [
        ("1/2", "0.5", "\\frac{1}{2}", "x = 0.5", "The answer is $\\frac{1}{2}$.", "50\\%"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
        ("x^2+2x+1", "(x+1)^2"),
        ("\\{1,2\\}", "\\{2, 1\\}", "1,2"),
        ("x > 5", "5 < x"),
        ("\\frac{1}{3}", "0.\\overline{3}"),
        ("204", "Answer: 204", "**Answer:** 204", "The final answer is **204**.", "Total: 204"),
        ("1000000", "1 000 000", "Answer:1,000,000"),
        ("\\sqrt{2}", "Answer: \\sqrt{2}"),
        ("x^2+1", "Result: x^2 + 1", "The answer is x^2+1"),
        ("(1,2)", "Solution: (1,2)"),
        ("abc + 1", "1 + abc"),
    ],
)
def test_math_classes(math, same):
    names = {math.canonical(text) for text in same}
    assert len(names) == 1
    (name,) = names
    assert all(math.matches(name, text) for text in same)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("3 \\times 5", "15"),
        ("3 \\times 5 = 15", "15"),
        ("So the total is 3 \\times 5.", "15"),
        ("the total = 3 \\times 5 = 15", "15"),
        ("First 2.\nSo 3 \\times 5", "15"),
        ("Thus\nAnswer: 3 \\times 5", "15"),
        ("The result becomes 2 \\times 10^5", "200000"),
        ("So we get \\frac{3}{4}", "0.75"),
        ("the value becomes 3\\sqrt{2}", "4.242641"),
        ("so the area equals 2\\pi", "6.283185"),
        ("hence 50\\%", "0.5"),
        ("it costs \\$5", "5"),
        ("that makes 1,234 apples", "1234"),
        ("total 15 \\text{ cm}", "15"),
        ("Step one: 3\nStep two: x^2+1", "x^{2} + 1"),
        ("3 apples \\times 5", None),  # a word tears the formula apart
        ("even", "even"),
    ],
)
def test_math_reads_formulas_without_marks(math, text, name):
    """math-verify alone takes the last number, such as 5 of the first."""
    assert math.canonical(text) == name
    assert name is None or math.matches(name, name)


def test_math_tells_apart(math):
    different = ["1/2", "2", "x+1", "(1,2)", "[1,2]", "\\text{even}", "\\pi"]
    names = [math.canonical(text) for text in different]
    assert len(set(names)) == len(different)
    for name in names:
        for text in different:
            assert math.matches(name, text) == (name == math.canonical(text)), (name, text)
    assert math.canonical("") is None


def test_a_hostile_formula_is_wrong_and_counted():
    hasty = math_check.MathVerifier(limit_s=0.3)
    assert hasty.canonical("1/4") == "0.25"
    begun = time.monotonic()
    name = hasty.canonical("9^{9^{9^{9}}}")
    assert name == "9^{9^{9^{9}}}"
    assert hasty.matches(name, "7") is False
    assert hasty.too_long == 1 and hasty.gave_up(name) and not hasty.gave_up("0.25")
    assert hasty.canonical("2/8") == "0.25"
    assert time.monotonic() - begun < 60


@pytest.mark.slow
def test_a_worker_that_hangs_in_c_code_is_replaced(monkeypatch):
    stuck = math_check.MathVerifier(limit_s=0.2)
    stuck.canonical("1")
    import os
    import signal

    os.kill(stuck._worker._process.pid, signal.SIGSTOP)  # as deaf as C code
    assert stuck.canonical("3/4") == "3/4"
    assert stuck.canonical("6/8") == "0.75"
    assert stuck.too_long == 1


def test_without_math_verify(monkeypatch):
    monkeypatch.setattr(math_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="-m pip install 'math-verify"):
        verifier("math")


def test_no_such_verifier():
    with pytest.raises(UsageError, match="one of exact, numeric, choice, math"):
        verifier("guess")
