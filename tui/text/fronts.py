"""The candidates of an answer as the page and the screen show them: what each is, and its sign."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from traces.schema.advice import Budget, Pick, Recommendation
from traces.schema.quantities import Quantity
from tui.text.words import front_goal, own_axes

PICK, RIVAL, FRONT, FLOPS, MISS, PRESENT = "pick", "rival", "system", "compute", "miss", "present"
SYMBOLS = {  # by what a row is, the first that it is; letters are those of the report
    (PICK,): "A",
    (RIVAL,): "B",
    (PRESENT,): "◆",
    (FRONT, FLOPS): "◉",
    (FRONT,): "●",
    (FLOPS,): "○",
    (MISS,): "×",
}


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """A configuration, all that it is, and where it stands in the document of `advise`."""

    roles: frozenset[str]
    pick: Pick
    where: str = ""

    @property
    def key(self) -> str:
        """Return what stays the same when the row is computed again."""
        return f"{self.pick.engine.key()} {self.pick.policy.key()}"

    @property
    def symbol(self) -> str:
        """Return how it is drawn."""
        return next(sign for roles, sign in SYMBOLS.items() if self.roles >= {*roles})


def candidates(advice: Recommendation) -> list[CandidateRow]:
    """Return the picks, then both fronts by accuracy, then the near misses, each once."""
    listed = [
        (PICK, advice.system_optimal, "system_optimal"),
        (RIVAL, advice.compute_optimal, "compute_optimal"),
        *((FRONT, pick, f"pareto.{at}") for at, pick in enumerate(advice.pareto)),
        *((FLOPS, pick, f"compute_pareto.{at}") for at, pick in enumerate(advice.compute_pareto)),
        *((MISS, miss.pick, "") for miss in advice.missed),
    ]
    rows: dict[str, CandidateRow] = {}
    for role, pick, where in listed:
        if pick is not None:
            row = CandidateRow(roles=frozenset({role}), pick=pick, where=where)
            # The picks come first: the fronts' copies do not say what was run.
            first = rows.get(row.key, row)
            rows[row.key] = replace(first, roles=first.roles | {role})
    order = [row for row in rows.values() if row.roles & {PICK, RIVAL}]
    rest = [row for row in rows.values() if row not in order]
    rest.sort(key=lambda row: (row.roles == {MISS}, accuracy_of(row)))
    return [*order, *rest]


def accuracy_of(row: CandidateRow) -> float:
    """Return what rows are sorted by, infinity where it is not known."""
    accuracy = row.pick.estimates.get("accuracy")
    return math.inf if accuracy is None else accuracy.value


def names_of(budget: Budget) -> dict[str, str]:
    """Return what the symbols mean."""
    front = f"front by {front_goal(budget).noun}"
    return {
        "A": "system-optimal",
        "B": "compute-optimal",
        "◆": "present, as measured",
        "◉": "on both fronts",
        "●": front,
        "○": "front by FLOPs",
        "×": "misses a limit",
    }


def joined_on(budget: Budget, axis: Quantity | None) -> frozenset[str]:
    """Return which fronts a line joins on an axis."""
    own = zip((FRONT, FLOPS), own_axes(budget), strict=True)
    return frozenset(front for front, best in own if axis and axis.name == best)
