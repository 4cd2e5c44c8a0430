"""One setting of a pick changed: both replayed as the answer was, and the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from traces.errors import UsageError
from traces.schema.advice import ESTIMATES, Budget, Pick
from traces.schema.engine import EngineConfig
from traces.schema.formats import intervals_of, value_of, with_interval
from traces.schema.quantities import latency, quantity
from traces.summary.run import Run
from tui.screens.advice.rows import pick_title
from tui.screens.library import words_of
from tui.text.replay import change_words

if TYPE_CHECKING:
    from advisor.advice.advisor import Advisor


def examples(pick: Pick) -> str:
    """Return changes that can be asked of a pick, as they are typed."""
    seqs = pick.engine.max_num_seqs
    changes = [f"engine.max_num_seqs={8 if seqs is None or seqs > 8 else max(seqs // 2, 1)}"]
    if pick.policy.n > 1:
        changes.append(f"policy.n={pick.policy.n // 2}")
    return " or ".join(changes)


def what_if(
    advisor: Advisor, pick: Pick, changes: str, budget: Budget | None = None
) -> tuple[str, list[Sequence[str]]]:
    """Return what a change such as `engine.max_num_seqs=8` makes of a pick: title and table.

    Both are at the load and the prices of the budget's answer. Raises UsageError for what cannot be
    asked or answered from the recordings.
    """
    from advisor.advice.beside import beside
    from advisor.what_if.question import changed, device_asked

    budget = budget or Budget()
    as_pick = Run(recording="what-if", complete=True, engine=pick.engine, policy=pick.policy)
    device = device_asked(None, pick.prior)
    engine, policy, _ = changed(as_pick, words_of(changes), device=device)
    engine = _of_servers(advisor, pick.engine, engine)
    two = [(pick.engine, pick.policy), (engine, policy)]
    check = beside(advisor, two, budget, prior=pick.prior)
    wanted = latency(budget.latency_percentile).name
    table: list[Sequence[str]] = [("", "pick", "changed", "change")]
    for name in dict.fromkeys((*ESTIMATES[:3], wanted, *ESTIMATES[3:])):
        one, other = check.estimate(name, 0), check.estimate(name, 1)
        if one is None and other is None:
            continue
        cells = value_of(one), with_interval(other), change_words(name, one, other)
        table.append((quantity(name).noun, *cells))
    rate = budget.rate_per_s
    load = "" if rate is None else f", at {rate:g} problems/s"
    of = intervals_of(check.estimate(name, 1) for name in ESTIMATES)
    title = ", ".join(filter(None, (f"{pick_title(pick)}, {changes.strip()}{load}", of)))
    return title, table


def _of_servers(advisor: Advisor, pick: EngineConfig, engine: EngineConfig) -> EngineConfig:
    """Return an engine of a changed size: of a mixture as servers with the ranks of the pick's.

    Raises UsageError where these cannot have so many ranks together.
    """
    size, ranks = engine.data_parallel_size, pick.ranks
    facts = advisor.evidence.models.get(engine.model)
    if ranks is None or size == pick.data_parallel_size or facts is None or not facts.num_experts:
        return engine
    if size % ranks:
        raise UsageError(
            f"engine.data_parallel_size={size}: a server of this mixture has {ranks} data-parallel "
            f"ranks. Ask for {ranks}, {2 * ranks} or another multiple"
        )
    return engine.of_servers(ranks)
