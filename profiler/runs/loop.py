"""The loop of one run: problems in flight, what their policies want, their spans.

A policy says what to draw and when it has decided; the run sends requests, hands back what ended,
scores it where there is a scorer, forces answers at a thinking budget where the engine does not,
and cancels what is no longer needed at once.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from opentelemetry.context import Context
from opentelemetry.trace import Span

from profiler.engines.interface import (
    THINK_END,
    THINK_START,
    Engine,
    Prompt,
    SampleRequest,
    SampleResult,
    refusal,
)
from profiler.policies.interface import Decision, Draw, GoOn, Move, Revise, Vote
from profiler.policies.registry import effort_for, start
from profiler.runs.checkpoints import Checkpoints
from profiler.runs.flight import Chain, Flight, Sent, revised_prompt
from profiler.runs.lookup import NgramRecorder
from profiler.runs.spans import RunSpans
from profiler.runs.telemetry import Telemetry
from profiler.workload.lengths import length_of
from profiler.workload.problems import Problem, Workload
from profiler.workload.scorers import Scored, ScoringThreads
from traces.clock import now_ns
from traces.recording.spans import RecordingSpanProcessor
from traces.schema.tts.parameters import Needs, most_requests
from traces.schema.tts.policy import Policy

Progress = Callable[[int, int], None]
_SCORER_WAIT_S = 0.01
_IDLE_S = 0.01


@dataclass(kw_only=True)
class RunLoop:
    """One policy over all problems of a workload; `go` works through them.

    Problems that take longer than `timeout_s` are answered by the votes there are; none begins
    after `stop_after_s`. With `arrivals_s`, ascending, each arrives at its time, however many are
    in flight, and begins between two steps of an engine in this process.
    """

    workload: Workload
    policy: Policy
    engine: Engine
    telemetry: Telemetry
    recorder: RecordingSpanProcessor
    needs: Needs
    keep_text: bool
    what_if: NgramRecorder | None = None
    timeout_s: float | None = None
    scoring: ScoringThreads | None = None
    checkpoints: Checkpoints | None = None
    stop_after_s: float | None = None
    arrivals_s: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self.run_id = uuid.uuid4().hex[:8]
        self.open: dict[str, Sent] = {}
        self.flights: dict[str, Flight] = {}  # in the order in which they began
        self.refused: deque[SampleResult] = deque()

    def go(self, concurrency: int, progress: Progress) -> None:
        waiting = deque(self.workload.problems)
        total, done = len(waiting), 0
        self.open_spans()
        ended = False
        begun = now_ns()
        arrivals = deque(begun + int(each * 1e9) for each in self.arrivals_s or ())
        last = float("inf") if self.stop_after_s is None else time.monotonic() + self.stop_after_s
        try:
            progress(0, total)
            while waiting or self.flights or self.open:
                if waiting and time.monotonic() > last:
                    total -= len(waiting)
                    waiting.clear()
                    arrivals.clear()
                while waiting and self._has_room(arrivals, concurrency):
                    self._begin(waiting.popleft(), arrivals.popleft() if arrivals else None)
                self._advance(arrivals[0] if arrivals else None)
                if (finished := total - len(waiting) - len(self.flights)) != done:
                    done = finished
                    progress(done, total)
            ended = True
        finally:
            if not ended:  # what is in flight keeps its null end
                self.engine.cancel(list(self.open))
            self.spans.end()

    def open_spans(self) -> None:
        """Open the run's span, under which problems and samples get theirs."""
        self.spans = RunSpans(
            self.telemetry,
            self.recorder,
            workload=self.workload,
            policy=self.policy,
            engine=self.engine,
            run_id=self.run_id,
            keep_text=self.keep_text,
        )

    def _has_room(self, arrivals: deque[int], concurrency: int) -> bool:
        """Whether the next problem may begin now; waits a moment where nothing else is to do."""
        if not arrivals:
            return len(self.flights) < concurrency
        early_s = (arrivals[0] - now_ns()) / 1e9
        if early_s > 0 and not self.open:
            time.sleep(min(early_s, _IDLE_S))
        return early_s <= 0

    def _advance(self, arrival: int | None) -> None:
        """Take what ends before the next arrival, unix nanoseconds; None where none is set."""
        until = () if arrival is None else (max(arrival - now_ns(), 0) / 1e9,)
        for result in self.engine.poll(*until):
            self._take(result)
        self._take_refused()
        self._take_scores(wait_s=0.0 if self.open else _SCORER_WAIT_S)
        if self.timeout_s is not None:
            self._expire(now_ns() - int(self.timeout_s * 1e9))

    def _take_refused(self) -> None:
        while self.refused:
            self._take(self.refused.popleft())

    def _take_scores(self, *, wait_s: float) -> None:
        if self.scoring is not None:
            for sent, scored in self.scoring.ended(wait_s=wait_s):
                self._take_score(sent, scored)

    def _expire(self, begun_before: int) -> None:
        """Answer the problems that have taken too long by the votes there are."""
        for flight in list(self.flights.values()):
            if flight.begun > begun_before:
                return
            self._time_out(flight)

    def _time_out(self, flight: Flight) -> None:
        flight.decision = Decision(answer=flight.run.answer_now(), by_sample=None)
        self._close_problem(flight, cancelled_by="timeout")

    def _begin(
        self, problem: Problem, arrival: int | None = None, context: Context | None = None
    ) -> None:
        """Begin a problem, which may have arrived before now, in a trace of its own."""
        now = now_ns()
        effort = effort_for(self.policy, problem.group)
        span = self.spans.begin_problem(problem, now, arrival, context, effort=effort)
        extra = most_requests(self.policy)
        policy_run = start(self.policy, problem.group)
        flight = Flight(problem, policy_run, span, extra=extra, begun=now, effort=effort)
        self.flights[problem.problem_id] = flight
        self._follow(flight, flight.run.begin())

    def _follow(self, flight: Flight, move: Move) -> None:
        for draw in move.draw:
            self._draw(flight, draw)
        if move.decision is not None:
            flight.decision = move.decision
            self._close_problem(flight, cancelled_by="decision")

    def _draw(self, flight: Flight, draw: Draw) -> None:
        base, prompt = Chain(), flight.problem.prompt
        if draw.parent is not None:
            earlier = flight.chains[draw.parent]
            if isinstance(draw.how, GoOn):
                ids = self.engine.think_end_ids
                base = earlier.reopened(ids) if draw.how.reopen else earlier
            elif isinstance(draw.how, Revise):
                prompt = revised_prompt(draw.how.template, prompt, earlier)
        sent = Sent(flight, draw, self._open_span(flight, draw), base)
        thought = self._thought_left(base)
        limits = [self._room(base, sent.append), draw.max_tokens]
        if thought is not None and (self._continues(draw) or not self.engine.thinking_budget):
            sent.forced_at = thought
            limits.append(thought)
        sent.fixed_tokens = length_of(flight.problem.output_tokens, draw.index)
        self._submit(sent, prompt, _least(limits))

    def _force(self, head: Sent) -> None:
        """Go on from a sample that has reached its budget, its thought closed."""
        chain = head.chain or Chain()
        draw = Draw(
            index=head.flight.next_extra(),
            role="forced",
            how=GoOn(append="" if chain.thought_ended else THINK_END),
            parent=head.draw.index,
            round=head.draw.round,
            depth=head.draw.depth,
        )
        sent = Sent(head.flight, draw, self._open_span(head.flight, draw), chain, head=head)
        self._submit(sent, head.flight.problem.prompt, self._room(chain, sent.append))

    @staticmethod
    def _continues(draw: Draw) -> bool:
        return isinstance(draw.how, GoOn)

    def _thought_left(self, base: Chain) -> int | None:
        """Return how many tokens of thought the budget leaves; None where it does not count."""
        budget = self.policy.thinking_token_budget
        if budget is None or base.thought_ended:
            return None
        return max(budget - base.thought_tokens, 0)

    def _room(self, base: Chain, append: str) -> int | None:
        """Return how many tokens may follow by max_tokens and the model's length."""
        most, longest = self.policy.max_tokens, self.engine.config.max_model_len
        # The tokens that close a thought count, as they do where the engine forces them.
        closing = len(self.engine.think_end_ids or (0,)) if append == THINK_END else 0
        limits = [None if most is None else most - base.spent - closing]
        if longest is not None and base.prompt is not None and base.tokens is not None:
            # A token is no shorter than a character.
            limits.append(longest - len(base.prompt) - len(base.tokens) - len(append))
        return _least(limits)

    def _open_span(self, flight: Flight, draw: Draw) -> Span:
        return self.spans.begin_sample(flight, draw, self._request_id(flight, draw))

    def _request_id(self, flight: Flight, draw: Draw) -> str:
        return f"{self.run_id}.{flight.problem.problem_id}.{draw.index}"

    def _submit(self, sent: Sent, prompt: Prompt, max_tokens: int | None) -> None:
        policy, flight = self.policy, sent.flight
        request_id = self._request_id(flight, sent.draw)
        self.open[request_id] = flight.open[request_id] = sent
        if sent.fixed_tokens is not None:
            max_tokens = sent.fixed_tokens
        if max_tokens is not None and max_tokens < 1:
            self.refused.append(refusal(request_id, now_ns()))
            return
        context = sent.span.get_span_context()
        native = sent.forced_at is None and not self._continues(sent.draw)
        self.engine.submit(
            SampleRequest(
                request_id=request_id,
                prompt=prompt,
                chat=self.workload.chat,
                temperature=policy.temperature,
                top_p=policy.top_p,
                max_tokens=max_tokens,
                thinking_token_budget=policy.thinking_token_budget if native else None,
                reasoning_effort=flight.effort,
                traceparent=f"00-{context.trace_id:032x}-{context.span_id:016x}-01",
                continues=sent.base.continuation(sent.append)
                if self._continues(sent.draw)
                else None,
                top_logprobs=self.needs.top_logprobs,
                confidence_window=self.needs.confidence_window,
                want_token_ids=self.needs.token_ids
                or sent.forced_at is not None
                or self.checkpoints is not None,
                stop=sent.draw.stop,
                fixed_length=sent.fixed_tokens is not None,
            )
        )

    def _take(self, result: SampleResult) -> None:
        sent = self.open.pop(result.request_id, None)
        if sent is not None:
            self._take_of(sent, result)

    def _take_of(self, sent: Sent, result: SampleResult) -> None:
        flight = sent.flight
        del flight.open[result.request_id]
        result = _held_to_its_length(sent, result)
        answer = None
        if result.error is None:
            answer = self.workload.answer_to(flight.problem, self._text(sent, result))
        sent.result, sent.chain = result, sent.base.after(result, sent.append, answer)
        cut = result.finish_reason == "length" and result.error is None
        if sent.forced_at is not None and cut and not flight.closed:
            room = self._room(sent.chain, "" if sent.chain.thought_ended else THINK_END)
            if room is None or room > 0:
                flight.heads[sent.draw.index] = sent
                self._force(sent)
                return
        if flight.closed or sent.head is not None:
            self._close_sample(sent)
        if flight.closed:
            return
        if sent.head is not None:
            sent = self._completed(sent)
        scored = result.error is None and (answer is not None or sent.paused)
        if self.scoring is not None and self.needs.scores and scored:
            self._score(sent)
        else:
            self._deliver(sent)

    @staticmethod
    def _text(sent: Sent, result: SampleResult) -> str:
        """Return all that was generated for a sample, the marks of its thought included."""
        text = sent.base.text + sent.append + result.text
        if sent.base.opened or result.opened:
            text = THINK_START + text  # so that a thought that was never closed has no answer
        return text

    def _completed(self, forced: Sent) -> Sent:
        """Return the sample that a forced answer completes, with that answer."""
        head = forced.head
        assert head is not None and head.result is not None and forced.result is not None
        del head.flight.heads[head.draw.index]
        head.chain = forced.chain
        head.result = replace(
            head.result, finish_reason=forced.result.finish_reason, error=forced.result.error
        )
        return head

    def _score(self, sent: Sent) -> None:
        assert self.scoring is not None and sent.chain is not None
        flight = sent.flight
        draw = Draw(index=flight.next_extra(), role="scorer", parent=sent.draw.index)
        flight.scored[sent.draw.index] = sent, self._open_span(flight, draw)
        self.scoring.submit(flight.problem.prompt, sent.chain.text, sent)

    def _take_score(self, sent: Sent, scored: Scored) -> None:
        if sent.flight.closed:  # its rows are written
            return
        _, span = sent.flight.scored.pop(sent.draw.index)
        self.spans.end_scorer(
            span,
            prompt_tokens=scored.prompt_tokens,
            output_tokens=scored.output_tokens,
            error=scored.error,
        )
        sent.score = scored.score
        sent.flight.failures += scored.error is not None
        self._deliver(sent)

    def _deliver(self, sent: Sent) -> None:
        """Write a request's row and tell the policy of it."""
        result, chain, flight = sent.result, sent.chain, sent.flight
        assert result is not None and chain is not None
        self._close_sample(sent)
        flight.chains[sent.draw.index] = chain
        failed, paused = result.error is not None, sent.paused
        thought = self._thought_left(chain.reopened(self.engine.think_end_ids))
        room = _least([self._room(chain, " " * 16), thought])
        vote = Vote(
            sample_index=sent.draw.index,
            answer=None if paused else chain.answer,
            failed=failed,
            tokens=result.output_tokens,
            score=sent.score if self.scoring is not None else result.logprob_mean,
            logprob_mean=result.logprob_mean,
            confidence=result.confidence_min_window,
            thought_ended=chain.thought_ended,
            paused=paused,
            room=room,
        )
        self._follow(flight, flight.run.on_sample(vote))

    def _close_sample(self, sent: Sent, *, cancelled_by: str | None = None) -> None:
        correct = self.spans.end_sample(sent, cancelled_by=cancelled_by)
        assert sent.result is not None
        if self.what_if is not None:
            self.what_if.add(sent.flight.problem.problem_id, sent.draw.index, sent.result)
        if cancelled_by is None and self.checkpoints is not None:
            self.checkpoints.keep(sent, correct=correct)

    def _close_problem(self, flight: Flight, *, cancelled_by: str) -> None:
        """End a problem with its decision: cancel at once what still runs for it."""
        flight.closed = True
        for result in self.engine.cancel(list(flight.open)):
            sent = self.open.pop(result.request_id)
            del flight.open[result.request_id]
            sent.result = result
            self._close_sample(sent, cancelled_by=cancelled_by)
        for sent in flight.heads.values():
            assert sent.result is not None
            sent.result = replace(sent.result, finish_reason="abort")
            self._close_sample(sent, cancelled_by=cancelled_by)
        for sent, span in flight.scored.values():
            self.spans.end_scorer(span, cancelled_by=cancelled_by)
            self._close_sample(sent)
        self._end_problem(flight, cancelled_by)
        del self.flights[flight.problem.problem_id]

    def _end_problem(self, flight: Flight, cancelled_by: str) -> None:
        self.spans.end_problem(flight, timed_out=cancelled_by == "timeout")


def _least(limits: list[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def _held_to_its_length(sent: Sent, result: SampleResult) -> SampleResult:
    """Return the result, as a failed one where a server did not keep the length it was given."""
    given, came = sent.fixed_tokens, result.output_tokens
    if given is None or came is None or came == given or result.error is not None:
        return result
    return replace(result, error="length not kept")
