"""The candidates of an answer as rows of the screen."""

from __future__ import annotations

from dataclasses import dataclass

from traces.schema.advice import Pick, Recommendation
from tui.text.layout import model_name
from tui.text.show import policy_text


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the Advice table: marks (@ system-optimal, + compute-optimal) and the pick."""

    marks: str
    pick: Pick

    @property
    def key(self) -> str:
        """Return what stays the same when the row is computed again."""
        return f"{self.pick.engine.key()} {self.pick.policy.key()}"


def candidates(advice: Recommendation) -> list[Candidate]:
    """Return the system-optimal pick, then the front by latency, then the compute-optimal."""
    rows: dict[str, Candidate] = {}
    chosen = [("@", advice.system_optimal), ("+", advice.compute_optimal)]
    front = sorted(advice.pareto, key=lambda pick: _estimate(pick, "latency_s"))
    missed = [("!", miss.pick) for miss in advice.missed]
    for mark, pick in [chosen[0], *(("o", pick) for pick in front), chosen[1], *missed]:
        if pick is None:
            continue
        row = Candidate(marks=mark, pick=pick)
        earlier = rows.get(row.key)
        marks = mark if earlier is None else earlier.marks + mark
        chosen_pick = pick  # the fronts' copies do not say what was run
        if earlier is not None and pick.measured is None:
            chosen_pick = earlier.pick
        rows[row.key] = Candidate(marks="".join(dict.fromkeys(marks)), pick=chosen_pick)
    return list(rows.values())


def _estimate(pick: Pick, name: str) -> float:
    estimate = pick.estimates.get(name)
    return float("inf") if estimate is None else estimate.value


def pick_title(pick: Pick) -> str:
    """Return model, engine, device where it is not a recorded one, and policy in short."""
    where = "" if pick.prior is None else f" {pick.prior}"
    return f"{model_name(pick.engine.model)} {pick.engine.label()}{where} {pick.policy.label()}"


def paste_text(pick: Pick) -> str:
    """Return what `c` copies: the command and the policy as a comment."""
    return f"{pick.command or '# no command'}\n# policy: {policy_text(pick.policy)}\n"
