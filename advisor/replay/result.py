"""What a replay gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.step_time.pace import Pace
from traces.statistics import Floats

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What happened, in seconds of simulated time.

    Per problem: `latency_s` from arrival to decision; `busy_share_s` of the engines' busy time,
    each step shared by tokens; `right`, the share of right answers among those that led when it
    was decided, by the sample with index `decided_by`. Per sample, in the order of the problems:
    `ttft_s` from the problem's arrival, `front_end_s`, what a server's front end took of it before
    the engine had it, and when it was queued, first scheduled, gave its first
    token and ended, with NaN for what did not happen. `totals` [FEATURES] over all steps; `peak`
    the most requests, tokens and context of a step; `beyond_s`, how much of `busy_s` is of steps
    beyond what their law was learned from. `log` [leaps] has records of LEAP, if kept, in
    the machine's own time where there is a `pace`.
    """

    latency_s: Floats
    busy_share_s: Floats
    ttft_s: Floats
    front_end_s: Floats
    makespan_s: float
    busy_s: float
    beyond_s: float
    steps: int
    preemptions: int
    totals: Floats
    peak: dict[str, float]
    arrival_s: Floats
    right: Floats
    decided_by: Ints
    engine: Ints
    queued_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    end_s: Floats
    cached_tokens: Ints
    prompt_tokens: Ints
    generated_tokens: Ints
    preempted: Ints
    cancelled: npt.NDArray[np.bool_]
    log: npt.NDArray[np.void] | None
    pace: Pace | None = None

    def by_clock(self, pace: Pace) -> Replayed:
        """Return a replay in a machine's own time by the clock, but for its log.

        What a problem took of the engines' busy time goes with its latency.
        """
        to = pace.by_clock
        arrival = to(self.arrival_s)
        latency = to(self.arrival_s + self.latency_s) - arrival
        drawn = self.first_token_s - self.ttft_s  # when its problem came, of each sample
        sent = self.queued_s - self.front_end_s
        with np.errstate(divide="ignore", invalid="ignore"):
            longer = np.where(self.latency_s > 0, latency / self.latency_s, pace.mean)
        busy_share = self.busy_share_s * longer
        busy = float(self.busy_share_s.sum())
        slower = float(busy_share.sum()) / busy if busy > 0 else 1.0
        return replace(
            self,
            latency_s=latency,
            busy_share_s=busy_share,
            ttft_s=to(self.first_token_s) - to(drawn),
            front_end_s=np.nan_to_num(to(self.queued_s) - to(sent)),
            makespan_s=float(to(np.array(self.makespan_s))),
            busy_s=self.busy_s * slower,
            beyond_s=self.beyond_s * slower,
            arrival_s=arrival,
            queued_s=to(self.queued_s),
            scheduled_s=to(self.scheduled_s),
            first_token_s=to(self.first_token_s),
            end_s=to(self.end_s),
            pace=pace,
        )

    def of_problems(self, places: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> Replayed:
        """Return the run of some of the problems, in the order of their places.

        `first` [problems + 1] are where the samples of each begin. What is known of all steps alone
        is shared: seconds as the problems took of them, the rest by generated tokens.
        """
        samples = np.concatenate([np.arange(first[place], first[place + 1]) for place in places])
        own = {name: getattr(self, name)[places] for name in _OF_PROBLEMS}
        own |= {name: getattr(self, name)[samples] for name in _OF_SAMPLES}
        tokens = own["generated_tokens"].sum() / max(self.generated_tokens.sum(), 1)
        busy = own["busy_share_s"].sum() / max(self.busy_s, 1e-12)
        ended = np.nanmax(own["end_s"], initial=0.0)
        return replace(
            self,
            **own,
            makespan_s=float(max(ended, (own["arrival_s"] + own["latency_s"]).max())),
            busy_s=self.busy_s * float(busy),
            beyond_s=self.beyond_s * float(busy),
            totals=self.totals * tokens,
        )


_OF_PROBLEMS: Final = ("latency_s", "busy_share_s", "arrival_s", "right", "decided_by")
_OF_SAMPLES: Final = (
    *("ttft_s", "front_end_s", "engine", "queued_s", "scheduled_s", "first_token_s", "end_s"),
    *("cached_tokens", "prompt_tokens", "generated_tokens", "preempted", "cancelled"),
)
