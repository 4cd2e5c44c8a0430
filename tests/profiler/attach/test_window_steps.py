"""Which recorded steps a trace has, against an engine of which that is known."""

import random
from dataclasses import replace

import pytest

from profiler.attach.window_steps import NO_MARKS, NONE_ALIKE, NONE_CAME, Opened, SeenSteps
from traces.kineto.marks import StepMark
from traces.kineto.steps import TraceStep

MS = 10**6
BEGIN = 1_700_000_000 * 10**9
TRACE = 5 * 10**12  # the trace's clock is that far behind


class Engine:
    """Steps of one batch each, seen by a front end `lag` later; a window of some of them.

    The profiler starts between two steps. Its answer goes through the front end behind the steps
    before, and comes `answer` after that. With `ahead` that many batches are under way then, whose
    steps end later.
    """

    def __init__(self, draw, *, steady=False, ahead=0, lag=(0.2, 1.5), answer=1.0, steps=200):
        self.rows, self.marks = [], []
        at, context, batch = BEGIN, 4_000, 8
        first = draw.randrange(60, 120)
        self.first, self.count = first, 4
        self.opened = None
        for number in range(steps):
            if number == first - ahead:
                begun, at = at + MS // 10, at + round(30 * MS * draw.random()) + MS
                answered = max(at, self.newest) + round(answer * MS)
                self.opened = Opened(begun=begun, answered=answered, ended=0, under_way=ahead)
            prefills = 0 if steady else int(draw.random() < 0.2)
            batch += 0 if steady else draw.choice((-1, 0, 0, 0, 1)) * (2 < batch < 30)
            tokens = 50 * prefills
            context += batch
            start, at = at, at + round(draw.uniform(3, 6) * MS)
            load = (prefills, tokens, batch, batch)
            end = at + round(draw.uniform(*lag) * MS)
            names = ("prefill_requests", "prefill_tokens", "decode_requests", "decode_tokens")
            told = dict(zip(names, load, strict=True))
            row = told | {"step": number, "end": max(end, self.newest), "source": "measured"}
            self.rows.append(row | {"decode_kv_tokens": context, "prefill_kv_tokens": None})
            if first <= number < first + 4:
                mark = StepMark(**told)
                self.marks.append(
                    TraceStep(
                        number=number - first, name="", start_ns=start - TRACE,
                        end_ns=at - TRACE - MS // 20, last_kernel_ns=None, mark=mark,
                    )
                )  # fmt: skip
        self.opened = replace(self.opened, ended=self.rows[first + 20]["end"])

    @property
    def newest(self):
        return self.rows[-1]["end"] if self.rows else 0

    def held(self, error=MS // 2, offset=TRACE):
        seen = SeenSteps()
        for row in self.rows:
            seen.add(row, error)
        return seen.holding(self.marks, offset, self.opened)

    def with_context(self):
        for mark, place in zip(self.marks, range(self.first, 200), strict=False):
            told = replace(mark.mark, decode_kv_tokens=self.rows[place]["decode_kv_tokens"])
            self.marks[place - self.first] = replace(mark, mark=told)
        return self


def right(engine):
    return range(engine.first, engine.first + 4)


@pytest.mark.slow
def test_never_the_wrong_steps_and_mostly_the_right_ones():
    draw, known = random.Random(5), 0
    for case in range(400):
        lag = (0.2, 1.5) if case % 2 else (5, 12)  # less than a step, and a few of them
        engine = Engine(draw, steady=case % 3 == 0, ahead=case % 4 % 3, lag=lag)
        held = engine.held()
        assert held == right(engine) or "of the steps" in held
        if isinstance(held, str):  # the stretch that is named has them
            low, high = (int(each) for each in held.split("steps ")[1].split(",")[0].split(" to "))
            assert low <= engine.first < engine.first + 3 <= high
        known += not isinstance(held, str)
    assert known > 250


def test_batches_alike_are_told_apart_by_the_answer_to_the_start():
    """The first step after it is the first of the window, where none is under way."""
    engine = Engine(random.Random(1), steady=True)
    assert engine.held() == right(engine)
    late = Engine(random.Random(1), steady=True, answer=14)  # three steps end before it
    assert "4 of the steps" in late.held()
    assert late.with_context().held() == right(late)


def test_context_that_a_front_end_only_sums_does_not_rule_out_all():
    """A request was aborted: its sums are too high until nothing runs."""
    engine = Engine(random.Random(2)).with_context()
    for row in engine.rows:
        row["decode_kv_tokens"] += 777
    assert engine.held() == right(engine)


def test_steps_of_a_front_end_without_details_have_at_most_what_the_mark_says():
    engine = Engine(random.Random(3), steady=True)
    for row in engine.rows:
        row |= {"source": "inferred", "decode_requests": row["decode_requests"] - 1}
    assert engine.held() == right(engine)
    for row in engine.rows:
        row["decode_requests"] += 2
    assert engine.held() == NONE_ALIKE


@pytest.mark.parametrize("error", [None, MS])
def test_without_clocks_only_batches_decide(error):
    """An engine that publishes its steps itself, or a trace without a date."""
    offset = TRACE if error is None else None
    steady = Engine(random.Random(4), steady=True).with_context()
    assert "4 of the steps" in steady.held(error, offset)  # sums of a front end
    for row in steady.rows:
        row["prefill_kv_tokens"] = 0  # the engine counts itself
    assert steady.held(error, offset) == right(steady)


def test_why_not():
    engine = Engine(random.Random(6))
    opened = engine.opened
    assert SeenSteps().holding(engine.marks, TRACE, opened) == NONE_CAME
    seen = SeenSteps()
    seen.add(engine.rows[0], MS)
    assert seen.holding([], TRACE, opened) == NO_MARKS
    assert seen.holding(engine.marks, TRACE, opened) == NONE_ALIKE  # they did not come yet
    gone = [row for row in engine.rows if row["step"] != engine.first + 1]
    engine.rows = gone
    assert engine.held() == NONE_ALIKE
