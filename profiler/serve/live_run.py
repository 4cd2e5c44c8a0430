"""A run whose problems come as they are asked, driven by the events of a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from opentelemetry.context import Context

from profiler.engines.interface import SampleResult
from profiler.policies.interface import Decision, GoOn
from profiler.runs.flight import Flight, Sent
from profiler.runs.loop import RunLoop
from profiler.workload.problems import Problem

SCORES_S = 0.005  # between looks at a scorer
CLIENT, ENDED = "client gone", "server ended"  # why a question has no answer


@dataclass(kw_only=True)
class LiveRun(RunLoop):
    """One policy over the questions that come (see `RunLoop`).

    `checked_in` is where answers are compared whose verifier takes its time, None where it takes
    none. `on_end` hears of each flight that is over, and of why.
    """

    on_end: Callable[[Flight, str], None]
    checked_in: ThreadPoolExecutor | None = None
    ended: dict[str, list[Sent]] = field(default_factory=dict)  # by problem
    checking: set[Sent] = field(default_factory=set)  # ended, and their answers being compared

    def __post_init__(self) -> None:
        super().__post_init__()
        self.label = self.policy.label()

    def ask(self, problem: Problem, arrival: int, context: Context) -> None:
        """Begin a problem that arrived then (unix nanoseconds), in its client's trace or a new one.

        A trace of all that a server is ever asked would be too large for anybody.
        """
        self.ended[problem.problem_id] = []
        self._begin(problem, arrival, context)
        self._take_refused()

    def take(self, result: SampleResult) -> None:
        sent = self.open.get(result.request_id)
        if sent is None or self.checked_in is None or result.error is not None:
            self._take_all(result)
            return
        sent.result = result  # so that its problem counts it, should it end before the check
        self.checking.add(sent)
        asked = partial(self._check, sent.flight.problem, self._text(sent, result))
        checked = asyncio.get_running_loop().run_in_executor(self.checked_in, asked)
        checked.add_done_callback(lambda _: self._checked(sent, result))

    def _check(self, problem: Problem, text: str) -> None:
        """Have the verifier judge an answer; it keeps that, so that the next time takes no time."""
        self.workload.is_correct(problem, self.workload.answer_to(problem, text))

    def _checked(self, sent: Sent, result: SampleResult) -> None:
        if sent not in self.checking:  # the server has ended
            return
        self.checking.remove(sent)
        if sent.flight.closed:
            self._take_of(sent, result)  # not by its name, which a later problem may have
        else:
            self._take_all(result)

    def end_checks(self) -> None:
        """Write the rows of samples of closed problems that are still being checked, unjudged."""
        for sent in self.checking:
            self._close_sample(sent, cancelled_by=ENDED)
        self.checking.clear()

    def _take_all(self, result: SampleResult) -> None:
        self._take(result)
        self._take_refused()

    def look_at_scores(self) -> None:
        self._take_scores(wait_s=0.0)
        self._take_refused()

    def time_out(self, problem_id: str) -> None:
        """Answer a problem by the votes that there are."""
        flight = self.flights.get(problem_id)
        if flight is not None:
            self._time_out(flight)

    def abandon(self, problem_id: str, why: str) -> None:
        """Cancel a problem that nobody will answer: its client has gone, or the server ends."""
        flight = self.flights.get(problem_id)
        if flight is not None:
            flight.decision = Decision(answer=None, by_sample=None)
            self._close_problem(flight, cancelled_by=why)

    def _deliver(self, sent: Sent) -> None:
        self.ended[sent.flight.problem.problem_id].append(sent)
        super()._deliver(sent)

    def _close_problem(self, flight: Flight, *, cancelled_by: str) -> None:
        super()._close_problem(flight, cancelled_by=cancelled_by)
        self.on_end(flight, cancelled_by)

    def _end_problem(self, flight: Flight, cancelled_by: str) -> None:
        for request_id, sent in flight.open.items():
            if sent in self.checking and sent.result is not None:
                del self.open[request_id]
                flight.count(sent)
                sent.chain = sent.base.after(sent.result, sent.append, None)
                self.ended[flight.problem.problem_id].append(sent)
        if cancelled_by in (CLIENT, ENDED):
            self.spans.abandon_problem(flight, cancelled_by)
        else:
            super()._end_problem(flight, cancelled_by)

    def chosen(self, flight: Flight) -> Sent | None:
        """Return the sample whose answer was chosen: of several the best scored, or the first.

        Where requests go on from earlier ones it is the last. Without a decision it is the first
        that ended by itself.
        """
        answer = None if flight.decision is None else flight.decision.answer
        same = [each for each in self.voters(flight) if each.chain and each.chain.answer == answer]
        if answer is None or not same:
            ended = [each for each in self.ended[flight.problem.problem_id] if _is_whole(each)]
            return min(ended, key=lambda each: (_was_cut(each), each.draw.index), default=None)
        last = self.policy.spec.rule is None
        return max(
            same, key=lambda each: (self._score_of(each), each.draw.index * (1 if last else -1))
        )

    def voters(self, flight: Flight) -> list[Sent]:
        """Return the requests whose answers count: of rounds of a chain the last that parsed."""
        chains: dict[int, Sent] = {}
        for sent in self.ended[flight.problem.problem_id]:
            if _is_whole(sent) and sent.chain is not None and sent.chain.answer is not None:
                how, index = sent.draw.how, sent.draw.index
                if isinstance(how, GoOn) and how.reopen:
                    index %= self.policy.n
                elif sent.draw.round is not None:  # it revises the first, or is asked in its place
                    index = 0
                chains[index] = sent
        return list(chains.values())

    def _score_of(self, sent: Sent) -> float:
        if not self.needs.scores or sent.result is None:
            return 0.0
        score = sent.score if self.scoring is not None else sent.result.logprob_mean
        return float("-inf") if score is None else score


def _is_whole(sent: Sent) -> bool:
    """Whether it ended, and not at the end of a step of thought."""
    return sent.result is not None and sent.result.error is None and not sent.paused


def _was_cut(sent: Sent) -> bool:
    return sent.result is None or sent.result.finish_reason != "stop"
