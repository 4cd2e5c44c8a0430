"""One measured load against others of an engine: ``python benchmarks/measured_loads.py --runs R``.

Needs ttscope[prior], and what `host_term.py` reads. Each published point is predicted with the
host's part of points of other models. Then each load of an engine (a model, GPU and size of a lab)
corrects that engine's other loads, as `ttscope replay --gpu --measured` does. Printed are the mean
absolute errors before and after, the share of 90 % intervals that hold, and their half-width, by
how far the loads are apart.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from host_term import Row, by_kind, family, fitted, row_of, seconds_of, with_host
from silicon import chosen, kept_of, options, priced_engine, replayed

from advisor.step_time.host.law import ASYNCHRONOUS
from advisor.step_time.host.spread import spread_of
from advisor.step_time.prior.recalibration import Load, MeasuredLoads
from traces.statistics import Z95

Known = tuple[Load, float, float]  # the load, log of measured over predicted, the prior's spread
DISTANCES = (("as many requests", 0.0, 0.1), ("up to twice", 0.1, 1.1), ("up to 4 times", 1.1, 2.1),
             ("more", 2.1, np.inf))  # fmt: skip


def known(rows: Iterable[Row]) -> dict[tuple[object, ...], list[Known]]:
    """Return the loads of each engine, by a host's part that its model has not taught."""
    every = list(rows)
    laws, found = {}, defaultdict(list)
    for row in every:
        point, facts = row.point, row.point.facts
        if row.waited or facts is None:
            continue
        if (name := family(point)) not in laws:
            laws[name] = fitted([each for each in every if family(each.point) != name])
        if row.has_prompts:  # as all points taught it
            _, cost = priced_engine(point.system, facts, point.engine)
        else:
            hidden = row.generation == ASYNCHRONOUS
            cost = with_host(row.cost, row.engine, seconds_of(laws[name], row), hidden)
        work, run = replayed(point, row.engine, cost)
        kept = kept_of(point, work)
        if point.tpot_s is None:
            assert point.latency_s
            log = np.log(point.latency_s / run.makespan_s)
        else:
            spent = (run.end_s - run.first_token_s)[kept]
            log = np.log(
                point.tpot_s / np.mean(spent / np.maximum(work.output_tokens[kept] - 1, 1))
            )
        sizes = row.engine.tensor_parallel_size, row.engine.data_parallel_size
        versions = point.engine.vllm_version, row.engine.expert_parallel
        engine = (by_kind(row), point.model, point.precision, point.system, *sizes, *versions)
        sigma = spread_of(point.system, facts, row.engine).sigma
        found[engine].append((Load.of(run), float(log), sigma))
    return found


def main() -> None:
    given = options().parse_args()
    rows = [row for point in chosen(given) if (row := row_of(point)) is not None]
    pairs = defaultdict(list)
    for engine, loads in known(rows).items():
        for load, log, sigma in loads:
            spread = np.array([sigma, 0.0])
            one = MeasuredLoads(loads=(load,), logs=np.array([log]), spreads=spread[None])
            for other, off, _ in loads:
                if other is not load:
                    value, wide = one.correction(other, spread)
                    apart = abs(np.log2(other.requests / load.requests))
                    pairs[engine[0]].append((apart, off, off - value, sigma, wide))
    print("pairs of loads, mean |error| % by the prior and with one load, held and half-width %")
    for name, values in sorted(pairs.items()):
        found = np.array(values)
        for title, low, high in (("all", 0.0, np.inf), *DISTANCES):
            own = found[(found[:, 0] >= low) & (found[:, 0] < high)]
            if not len(own):
                continue
            _, before, after, sigma, wide = own.T
            cells = [
                f"{100 * np.mean(np.abs(error)):>6.1f}"
                f"{100 * np.mean(np.abs(error) <= Z95 * s):>5.0f}"
                f"{100 * (np.exp(Z95 * np.median(s)) - 1):>6.1f}"
                for error, s in ((before, sigma), (after, wide))
            ]
            print(f"  {name:<32}{title:<18}{len(own):>7}   " + "   ".join(cells))


if __name__ == "__main__":
    main()
