r"""Which answer a completion gives, which answers are the same one, and which are right.

Votes count classes: `canonical` names the class of an answer, the same text for every way to write
it. An answer is judged by its class alone, so that a class is never both right and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import takewhile
from typing import Protocol

from profiler.engines.interface import Prompt
from profiler.workload.answers import final_answer
from traces.errors import UsageError

NAMES = ("exact", "numeric", "choice", "math")
DECIMALS = 6
_MOST_DIGITS = 400  # of a number, and of its power of ten
_PLAIN_BELOW = 10**18  # a whole number that is its own name


class Verifier(Protocol):
    """How answers are read, counted and judged; one object for all problems of a run."""

    @property
    def name(self) -> str:
        """What options and recordings call it."""

    @property
    def too_long(self) -> int:
        """How many answers took longer than its limit."""

    @property
    def seconds(self) -> float:
        """What a child process took in all."""

    def answer_of(self, text: str) -> str | None:
        """Return the answer that a completion gives, as it is written; None where it has none."""

    def canonical(self, answer: str) -> str | None:
        """Return the name of the answer's class; None where it is no answer of this kind."""

    def matches(self, canonical: str, expected: str) -> bool:
        """Return whether the class is the one that was expected."""

    def gave_up(self, canonical: str) -> bool:
        """Return whether a class is a text that took longer than the limit to read."""


class _AtOnce:
    """What a verifier says that judges in this process."""

    too_long = 0
    seconds = 0.0

    def gave_up(self, canonical: str) -> bool:
        return False


def verifier(name: str) -> Verifier:
    """Return the verifier of a name in `NAMES`.

    Raises UsageError for another name, MissingDependencyError for `math` without math-verify.
    """
    if name == "math":
        from profiler.workload.math_check import MathVerifier

        return MathVerifier()
    made: dict[str, Callable[[], Verifier]] = {
        "exact": ByText,
        "numeric": Numeric,
        "choice": Choice,
    }
    if name not in made:
        raise UsageError(f"no verifier {name!r}. Choose one of {', '.join(NAMES)}")
    return made[name]()


def is_right(chosen: Verifier, answer: str | None, expected: str | None) -> bool | None:
    """Return whether a class of answers is the expected one, None where that cannot be told.

    So it is without an expected answer, where the verifier cannot read it, and where that took too
    long: of another answer it is not known then whether it is equal.
    """
    wanted = None if expected is None else chosen.canonical(expected)
    if expected is None or wanted is None:
        return None
    if wanted != answer and chosen.gave_up(wanted):
        return None
    return answer is not None and chosen.matches(answer, expected)


def read_answer(chosen: Verifier, text: str, prompt: Prompt) -> str | None:
    """Return the answer that a completion of the prompt gives."""
    if isinstance(chosen, Choice):
        asked = prompt if isinstance(prompt, str) else "\n".join(each["content"] for each in prompt)
        return chosen.answer_of(text, asked)
    return chosen.answer_of(text)


@dataclass(frozen=True, kw_only=True)
class ByText(_AtOnce):
    """Answers that `answer_of` reads out of a completion, the same when their texts are."""

    answer_of: Callable[[str], str | None] = final_answer
    name: str = "exact"

    def canonical(self, answer: str) -> str | None:
        return answer.strip() or None

    def matches(self, canonical: str, expected: str) -> bool:
        return canonical == expected.strip()


_INTEGER = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\[,!;:]\s?)[0-9]{3})+(?![0-9])|[0-9]+)"
_PLAIN = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = r"(?:[eE][+-]?[0-9]+|\s?(?:\\times|\\cdot|×|\*|x)\s?10\s?(?:\^|\*\*)\s?\{?[+-]?[0-9]+\}?)"
_SIGN = r"[+\-−]?\s?"
_BRACED = r"\{\s?[+\-−]?[0-9]+\s?\}"
_FRAC = rf"\\[dt]?frac\s?(?:{_BRACED}\s?{_BRACED}|[0-9][0-9]|[0-9]\{{[0-9]+\}})"
_NUMBER = (
    rf"(?P<sign>{_SIGN})\\?\$?(?:"
    rf"(?:(?P<whole>[0-9]+)\s?)?(?P<latex>{_FRAC})"
    rf"|(?:(?P<mixed>[0-9]+)\s)?(?P<above>[0-9]+)\s?/\s?(?P<below>[0-9]+)(?![0-9./])"
    rf"|(?P<bare>10)\s?\^\s?\{{?(?P<exponent>[+-]?[0-9]+)\}}?"
    rf"|(?P<plain>{_PLAIN})(?P<power>{_POWER})?"
    rf")(?P<percent>\s?(?:\\?%|percent\b))?"
)
_WHOLE = re.compile(_NUMBER)
# Not a part of a word, an index, a power, a longer number, or a list without spaces.
_MANY = (
    r"(?:[\s~$]|\\[ ,;:!])*(?:\\(?:text(?:bf)?|mathrm|mathbf|mbox)\{[\s~]*)?"
    r"(?i:hundred|thousand|[mbtr]+illion)s?\b"
)
_IN_TEXT = re.compile(
    rf"(?<![\w.^\\{{}}/])(?<![0-9][,:])(?<!\\[,!;:])(?<!\*\*){_NUMBER}"
    r"(?!\.?[0-9]|[,:][0-9]|\s?(?:\^(?!\{?\\circ)|\*\*)|\s?/\s?[0-9]|_|[a-zA-Z](?![a-zA-Z])"
    rf"|\.?\s?\\(?!text|mathrm|mathbf|quad)[a-zA-Z]|{_MANY})"
)
_FORMULA = r"(?:pi|sqrt|log|ln|sin|cos|tan|exp)(?![a-zA-Z])"
_TERM_BEFORE = re.compile(r"(?:(?:[\w)}]|[0-9]!)\s*[+*/×·−-]|\\pm|\\mp|±|\\times|\\cdot)\s*\Z")
# "!" ends a sentence, but before the end of brackets or of math it makes a factorial.
_FACTORIAL = re.compile(r"!(?=[^\S\n]*(?:[)\]$]|\\[)\]]))")
_TERM_AFTER = re.compile(
    rf"!?[^\S\n]*(?:[+*×±]|[/·](?!\s?(?!{_FORMULA})[a-zA-Z]{{2}})|\\times|\\cdot|[−-]\s*(?=[0-9(\\]))\s*[\w(\\]"
)
_LEAD = re.compile(r"\A(?:\\\(|\\\[|\$+)?\s*(?:[a-zA-Z](?:_\w)?\s*=\s*)?")
_TRAIL = re.compile(
    rf"(?!{_MANY})"
    r"(?:\\text\{[^{}]*\}|\\mathrm\{[^{}]*\}|\^\{?\\circ\}?|°|\\\)|\\\]|\$|\.|\s)*\Z"
)
# Markdown's bold text, which is none of 2**10.
_BOLD = re.compile(
    r"(?<![\w)\]}*])\*\*\*?(?![\s*])([^*\n]{1,200})(?<!\s)\*\*\*?(?![\w(*])"
    r"|(?<!\w)__(?![\s_])([^_\n]{1,200})(?<!\s)__(?!\w)"
)
_GAPS = "\u00a0\u2009\u202f"  # that break no line, so that they are within a number
_GROUPED = re.compile(rf"(?<![\w.,:])[0-9]{{1,3}}(?:[ {_GAPS}][0-9]{{3}})+(?![\w,:])")

_IN_LETTERS = re.compile(
    r"(?<![\w}])\\(?:text(?:bf)?|math(?:bf|rm))\{\s*([+\-−]?\\?\$?\.?[0-9][^{}]*)\}"
)


def _joined(match: re.Match[str]) -> str:
    """Return the groups of a number as one, unless they may be two numbers with a space between."""
    first, *groups = match[0].split()
    alone = match.span() == (0, len(match.string))
    long = len(groups) > 1 and len(first) < 3
    sure = alone or long or any(each[0] == "0" for each in groups) or " " not in match[0]
    return "".join([first, *groups]) if sure else match[0]


def number_in(text: str) -> Fraction | None:
    r"""Return the number that a text is, or the last number in it; None where there is none.

    Read are thousands separators (1,234, 1\,234 or 1 234 567), decimals, fractions (3/4,
    \frac{3}{4}, 1 3/4), per cent (of one), powers of ten (1e-3, 2 \times 10^5), a dollar sign, and
    Markdown's bold. A number that is part of a formula (2^10, 3\sqrt{2}, 5!, 3 \pm 1) is none, and
    so are 1,5 and 2:3. Words around a number, units among them, are left out: units are not
    converted. Numbers in words (5 million) are none.
    """
    return _number(unmarked(text[-4000:]).strip())


def unmarked(text: str) -> str:
    r"""Return a text without Markdown's bold and \text{}, the groups of a number as one."""
    return _GROUPED.sub(_joined, _IN_LETTERS.sub(r"\1", _BOLD.sub(r"\1\2", text)))


@lru_cache(maxsize=64)  # an answer is read, then named, then judged
def _number(text: str) -> Fraction | None:
    lead = _LEAD.match(text)
    start = 0 if lead is None else lead.end()
    whole = _WHOLE.match(text, start)
    if whole is not None and _TRAIL.match(text, whole.end()):
        return _value(whole)
    if whole is not None and text[whole.end() :].rstrip(" $.") == "!":
        return None
    last = None
    for match in _IN_TEXT.finditer(text):
        last = match
    return None if last is None or _is_term(text, last) else _value(last)


def _is_term(text: str, match: re.Match[str]) -> bool:
    """Tell whether a number is a term or factor of a formula that was not worked out."""
    until = match.start() + len(match["sign"])
    if match["sign"].strip() and not match["sign"].endswith(" "):
        until = match.start()  # a sign that clings to its number
    before = text[max(until - 12, 0) : until]
    equals = before.rstrip().endswith("=") and text[match.end() :].rstrip() == "!"
    return bool(
        equals
        or _TERM_BEFORE.search(before)
        or _TERM_AFTER.match(text, match.end())
        or _FACTORIAL.match(text, match.end())
    )


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _MOST_DIGITS:
        return None
    part = match.groupdict()
    try:
        if part["latex"]:
            inside = part["latex"].partition("frac")[2]
            above, below = (
                re.findall(r"\{([^{}]*)\}", inside)
                if inside.count("{") == 2
                else [inside.strip()[0], inside.strip()[1:].strip("{}")]
            )
            value = _whole_number(above) / _whole_number(below) + int(part["whole"] or 0)
        elif part["above"]:
            value = Fraction(int(part["above"]), int(part["below"])) + int(part["mixed"] or 0)
        elif part["bare"]:
            value = _ten_to(int(part["exponent"]))
        else:
            value = Fraction(re.sub(r"[^0-9.]", "", part["plain"]))
            if part["power"]:
                value *= _ten_to(int(_exponent(part["power"])))
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    if part["percent"]:
        value /= 100
    return -value if part["sign"].strip() in ("-", "−") else value


def _whole_number(text: str) -> Fraction:
    return Fraction(int(text.replace("−", "-")))


def _exponent(power: str) -> str:
    if power[0] in "eE":
        return power[1:]
    return re.sub(r"[^0-9+-]", "", power.replace("**", "^").partition("^")[2])


def _ten_to(exponent: int) -> Fraction:
    if abs(exponent) > _MOST_DIGITS:
        raise OverflowError
    return Fraction(10) ** exponent


def rounded(value: Fraction) -> str:
    """Return a number to 6 decimals, or below 1 to 6 significant digits, without zeros behind.

    This names classes of numbers: whole numbers stay exact, 1/3 and 0.333333 are one.
    """
    if value.denominator == 1 and abs(value.numerator) < _PLAIN_BELOW:
        return str(value.numerator)
    with localcontext() as context:
        context.prec = 2 * _MOST_DIGITS + DECIMALS
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        last = -DECIMALS if abs(exact) >= 1 else exact.adjusted() + 1 - DECIMALS
        short = exact.quantize(Decimal(1).scaleb(last), rounding=ROUND_HALF_EVEN).normalize()
        return f"{short:f}" if short.adjusted() > -DECIMALS - 1 else f"{short:E}"


class Numeric(_AtOnce):
    """The last number of the final answer; equal to 6 decimals, or 6 significant digits below 1.

    An answer is right within one unit of that last digit of the expected number: that is the
    tolerance, so that rounding up or down does not decide. Whole numbers, and 0, must be equal.
    """

    name = "numeric"

    def answer_of(self, text: str) -> str | None:
        answer = final_answer(text)
        return None if answer is None or number_in(answer) is None else answer

    def canonical(self, answer: str) -> str | None:
        number = number_in(answer)
        return None if number is None else rounded(number)

    def matches(self, canonical: str, expected: str) -> bool:
        wanted = number_in(expected)
        if wanted is None:
            return False
        if canonical == rounded(wanted) or not wanted:
            return canonical == rounded(wanted)
        unit = Fraction(1, 10**DECIMALS)
        if abs(wanted) < 1:
            unit = Fraction(Decimal(1).scaleb(Decimal(rounded(wanted)).adjusted() + 1 - DECIMALS))
        return abs(Fraction(canonical) - wanted) <= unit


_ALONE_CHARACTERS = 80
_LETTER_ALONE = re.compile(
    r"\A[\s*_($\[]*(?:\\(?:text|mathrm|mathbf|textbf)\{)?[\s(*]*([A-Ja-hj])[\s)*}]*"
    r"(?:[.:)\]*_$\s]*\Z|[.:)]+\s)"
)
_SAID = re.compile(
    r"(?i:\b(?:answer|choice|option)\b(?:\s+(?:choice|option))?(?:\s+is)?)\s*:?\s*(?:(?i:is|option|choice)\s+)*"
    r"[\s*_$\"`]*(?:\\boxed\{)?(?:\\(?:text|mathrm|mathbf|textbf)\{)?"
    r"(?:\(([A-Ja-j])\)|([A-HJ](?![A-Za-z'’])|I(?=[\s*_.)}\]$\"`]*(?:\Z|[.\n]))))"  # no pronoun
)
_TOLD = re.compile(r"(?i)\bis\b|:")  # "option A" or "answer A" alone may be one that is wrong
_BRACKETED = re.compile(r"\(([A-HJ])\)")  # (I) may be a number
_LINE = re.compile(r"^[\s*_]*([A-HJ])(?:[\s*_]*$|[.:)]\s)", re.MULTILINE)
_ALL, _USUAL = "ABCDEFGHIJ", "ABCDE"
# The choices of a prompt, which may be JSON: (A), A. or A: as items of a list, or A to J.
_ITEM = re.compile(r"[(\[]([A-J])[)\]]|(?:^|\s|\\n)[*_\"]*([A-J])[*_\"]*[.):]")
_RANGE = re.compile(r"\bA[)\s]*(?:-|–|to|through)[\s(]*([F-J])\b")


def choices_of(prompt: str) -> str:
    """Return the letters of a prompt's choices: A to E, or to the last that it lists from A on.

    Other letters are as a rule symbols, such as (H) of enthalpy.
    """
    listed = {"".join(each) for each in _ITEM.findall(prompt)}
    for last in _RANGE.findall(prompt):
        listed.update(_ALL[: _ALL.index(last) + 1])
    return max("".join(takewhile(listed.__contains__, _ALL)), _USUAL, key=len)


class Choice(_AtOnce):
    r"""A letter A to J, as models write it: (B), B., **B**, "The answer is B", \boxed{B}.

    The last `\boxed{...}` says it, else the last "answer is ..." (or choice, option), else a
    letter that stands alone or at the head of the text, else the last "option B", else the last
    letter in brackets or at the head of a line. Of these two F to J count only where the prompt
    lists them (`choices_of`).
    """

    name = "choice"

    def answer_of(self, text: str, prompt: str = "") -> str | None:
        answer = final_answer(text)
        return None if answer is None else _letter(answer, prompt)

    def canonical(self, answer: str) -> str | None:
        return _letter(answer)

    def matches(self, canonical: str, expected: str) -> bool:
        return canonical == self.canonical(expected)


def _letter(answer: str, prompt: str | None = None) -> str | None:
    """Return the letter of an answer; one that nothing names is a choice of the prompt."""
    answer = _BOLD.sub(r"\1\2", answer[-4000:])
    said = list(_SAID.finditer(answer))
    alone = _LETTER_ALONE.match(answer.strip()[:_ALONE_CHARACTERS])
    if alone and not any(_TOLD.search(each[0]) for each in said):
        return alone[1].upper()
    if said:
        return (said[-1][1] or said[-1][2]).upper()
    passing = [pattern.findall(answer) for pattern in (_BRACKETED, _LINE)]
    known = _ALL if prompt is None or not any(passing) else choices_of(prompt)
    for letters in passing:
        if found := [each for each in letters if each in known]:
            return str(found[-1])
    return None
