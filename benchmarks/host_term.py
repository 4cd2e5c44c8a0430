"""The host's part of a step, learned from published runs: ``python benchmarks/host_term.py``.

Needs ttscope[prior], and `--runs FOLDER` (shared/data/gpu_runs) for the labs' runs. Each point is
replayed with the kernels of the prior, and with each term of the host's part a little longer: how
much longer a token then takes is the point's exposure. `HostTerm` is fitted to these. Printed is
what each generation learned, then the error of TPOT (of the whole batch where no TPOT was measured)
by kernels alone, and with the host's part of the points of other models, of other GPUs and of other
labs. `--write` keeps what all points say in advisor/step_time/host/host_term.json.

Of engines that schedule asynchronously kernels hide a share of the host's part. That is learned
from theirs, and before vLLM 0.14 from pairs of runs with and without it too (`taught_hidden`).

Not learned from, but predicted: points whose requests waited for KV blocks (how many blocks they
had is not told), engines that schedule asynchronously (how much of the host's part they hide is not
known beforehand), runs whose time has the client's and the front end's part in it (`CHECKED`),
quantised models and mixtures (whose kernels are known less well than the host's part is long),
tensor parallelism over PCIe before vLLM 0.12 (no table has those all-reduces), and arrivals at a
server that has seen none of the prompts (whose lengths are a guess, and matter only there).
A closed loop teaches by the whole time of a request over its tokens, as how it splits into TTFT and
TPOT depends on who arrives with whom.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from host_fit import SHARED, HostTerm, LeftOutSpread, as_table
from replayed_points import (
    SEED,
    chosen,
    errors,
    kept_of,
    options,
    priced_engine,
    replayed,
    times_of,
)
from serving_points import OPEN, TOGETHER, Point

from advisor.evidence.features import FEATURES
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import StepCost, with_hidden
from advisor.step_time.host.law import (
    ASYNCHRONOUS,
    BEFORE,
    KEPT,
    OLD,
    SINCE,
    SYNCHRONOUS,
    TERMS,
    generation_of,
    hiding_of,
    in_features,
    ranks_of,
)
from advisor.step_time.host.spread import ENOUGH, GPU, PLAIN, SEEN, kind_of, stratum
from advisor.step_time.prior.relatives import RELATIVES
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted
from traces.statistics import Z95, jeffreys

Floats = npt.NDArray[np.float64]

SHARES: Final = np.linspace(0.0, 1.0, 5)  # of the host that may hide
# What a lab found on 77 rows of dense 16-bit models on vLLM 0.11 that are not at hand: none hid.
ELSEWHERE: Final = {BEFORE: (0.0,), SINCE: ()}
CHECKED: Final = ("gpustack",)  # labs whose requests come at once, so that the front end matters
USUAL: Final = np.array(
    [8e-4, 4e-4, 4e-5, 2e-3, 1e-8]
)  # seconds [TERMS] that exposures are taken at
SMALL: Final = 0.2  # of these: how far a term is moved
FEWEST: Final = 3  # models of a lab on a GPU that say what a kind of model is like
WAITED: Final = 0.5  # seconds in the queue, on average, from which a point waited,
FULL: Final = 0.9  # and share of the KV cache from which it waited for blocks
SILICON: Final = ("aic", "inferencex")  # labs of one file
PCIE: Final = tuple(name for name, each in RELATIVES.items() if each.wires != each.of)


class Off(NamedTuple):
    """Predicted over measured: TPOT (the whole batch's time where there is none), and TTFT."""

    tpot: float
    ttft: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A priced point: seconds of a token, as measured and by kernels alone, and its exposure.

    Where the lengths of prompts are a guess that matters (`guessed`), it teaches nothing.
    """

    point: Point
    engine: EngineConfig
    cost: StepCost
    generation: str
    measured: float
    kernels: float
    exposure: Floats
    waited: bool
    guessed: bool
    teaches: bool

    def off(self, seconds: Floats, hidden: Mapping[str, float] = {}) -> Off:
        """Return predicted over measured with a host's part [TERMS].

        Shares `hidden` (`hiding_of`) of it hide where the engine schedules asynchronously.
        """
        cost = with_host(self.cost, self.engine, seconds, self.share(hidden))
        work, done = replayed(self.point, self.engine, cost)
        if self.point.load == TOGETHER:
            assert self.point.latency_s
            return Off(done.makespan_s / self.point.latency_s, np.nan)
        assert self.point.tpot_s and self.point.ttft_s
        tpot, ttft = times_of(self.point, work, done)
        return Off(tpot / self.point.tpot_s, ttft / self.point.ttft_s)

    def share(self, hidden: Mapping[str, float]) -> float:
        """Return which of the shares `hidden` is that of its engine, 0 where none is."""
        ahead = self.generation == ASYNCHRONOUS
        return hidden.get(hiding_of(self.engine), 0.0) if ahead else 0.0


def with_host(cost: StepCost, engine: EngineConfig, seconds: Floats, hidden: float) -> StepCost:
    """Add a host's part [TERMS] to kernels. They hide a share of it."""
    kernels = cost._replace(linear=np.zeros(len(FEATURES)), hidden=np.zeros(0))
    return with_hidden(kernels, in_features(seconds, engine), hidden)


def _a_token(point: Point, work: ReplayWorkload, done: Replayed) -> float:
    """Return the predicted seconds of a token: of the whole batch, TPOT, or a request's time."""
    if point.load == TOGETHER:
        return done.makespan_s / point.output_tokens
    tpot, ttft = times_of(point, work, done)
    if point.load == OPEN:
        return tpot
    return (ttft + tpot * (point.output_tokens - 1)) / point.output_tokens


def _measured(point: Point) -> float:
    if point.load == TOGETHER:
        assert point.latency_s
        return point.latency_s / point.output_tokens
    assert point.tpot_s and point.ttft_s
    if point.load == OPEN:
        return point.tpot_s
    return (point.ttft_s + point.tpot_s * (point.output_tokens - 1)) / point.output_tokens


def rows_of(points: Sequence[Point]) -> list[Row]:
    """Return the points that can be priced, and print how many, and why others cannot."""
    rows, refused = [], Counter[tuple[str, str]]()
    for point in points:
        try:
            rows.append(row_of(point))
        except (UsageError, TablesError, ValueError) as error:
            refused[point.lab, str(error).removeprefix("--gpu: ")] += 1
    print(f"{len(rows):,} of {len(points):,} points priced")
    for lab, count in Counter(point.lab for point in points).items():
        print(f"  {lab}: {sum(row.point.lab == lab for row in rows):,} of {count:,}")
    for (lab, why), count in refused.most_common():
        print(f"  {count:>5} of {lab} not priced: {why}")
    return rows


def row_of(point: Point) -> Row:
    """Return a point with its exposure. Raises what says why it cannot be priced."""
    if point.facts is None or point.unknown is not None:
        raise UsageError(point.unknown or "no facts of the model")
    generation = generation_of(point.engine)
    engine, cost = priced_engine(point.system, point.facts, point.engine, truncated=point.truncated)
    law = USUAL * (SHARED if generation != OLD else 1.0)
    laws = [law, *(law * (1 + SMALL * term) for term in np.eye(len(TERMS)))]
    ran = [replayed(point, engine, with_host(cost, engine, law, 0.0)) for law in laws]
    usual, *moved = (_a_token(point, work, done) for work, done in ran)
    exposure = (np.array(moved) - usual) / (SMALL * USUAL)
    work, done = ran[0]
    kept = kept_of(point, work)
    queued = float(np.mean((done.scheduled_s - done.queued_s)[kept]))
    blocks, size = engine.num_gpu_blocks, engine.block_size
    full = bool(blocks and size and done.peak["kv_tokens"] > FULL * blocks * size)
    waited = (full and queued > WAITED) or bool(done.preempted[kept].any())
    guessed = point.load == OPEN and not point.before
    old_wires = point.system in PCIE and engine.tensor_parallel_size > 1 and point.version < (0, 12)
    return Row(
        point=point,
        engine=engine,
        cost=cost,
        generation=generation,
        measured=_measured(point),
        kernels=usual - float(exposure @ USUAL),
        exposure=exposure,
        waited=waited,
        guessed=guessed,
        teaches=not (waited or old_wires or guessed or generation == ASYNCHRONOUS)
        and point.lab not in CHECKED
        and kind_of(point.facts) == PLAIN,
    )


def fitted(rows: Sequence[Row]) -> HostTerm:
    kept = [row for row in rows if row.teaches]
    return HostTerm().fit(
        np.array([row.exposure for row in kept]),
        np.array([row.kernels for row in kept]),
        np.array([row.measured for row in kept]),
        np.array([row.generation for row in kept]),
    )


def seconds_of(model: HostTerm, row: Row) -> Floats:
    """Return the seconds [TERMS] that a fit has for a point."""
    return model.seconds(SYNCHRONOUS if row.generation == ASYNCHRONOUS else row.generation)


def taught_hidden(
    rows: Sequence[Row], seconds: Floats
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return which share of the host's part is hidden, of all points and without a model.

    By `hiding_of`. Each model and precision says the share with which its times have no bias (of
    the mean log): of every third point that did not wait for blocks, or of pairs of runs that
    differ by how they schedule, of what that changed. A lab says the median of these, which one
    model whose kernels are priced wrongly does not move. Labs count alike (`ELSEWHERE` too).
    """
    kept_ = [
        row
        for row in rows
        if row.generation == ASYNCHRONOUS and not row.waited and row.point.lab not in CHECKED
    ][::3]
    found: list[tuple[str, str, str, Floats]] = []  # which engines, lab, model, errors [SHARES]
    for row in kept_:
        name = hiding_of(row.engine)
        logs = np.array([np.log(row.off(seconds, {name: share}).tpot) for share in SHARES])
        found.append((name, row.point.lab, _shape(row.point), logs))
    for ahead, plain in pairs(rows):
        name = hiding_of(ahead.engine)
        usual = np.log(plain.off(seconds).tpot)
        logs = np.array([np.log(ahead.off(seconds, {name: share}).tpot) for share in SHARES])
        found.append((name, ahead.point.lab, _shape(ahead.point), logs - usual))

    def best(name: str, without: str | None) -> float:
        shares = list(ELSEWHERE[name])
        own = [each for each in found if each[0] == name and each[2].split()[0] != without]
        for lab in sorted({each[1] for each in own}):
            of_lab = [each for each in own if each[1] == lab]
            models = sorted({each[2] for each in of_lab})
            biases = [np.mean([e[3] for e in of_lab if e[2] == m], axis=0) for m in models]
            said = [float(np.interp(0.0, -bias, SHARES)) for bias in biases]  # it falls with them
            shares.append(float(np.median(said)))
            if without is None:
                count = f"{counted(len(of_lab), 'point')} of {counted(len(models), 'model')}"
                print(f"  {name}: {lab} hides {shares[-1]:.0%} ({count})")
        return float(f"{np.mean(shares):.3g}")

    names = sorted({each[2].split()[0] for each in found})
    without = {each: {name: best(name, each) for name in (BEFORE, SINCE)} for each in names}
    return {name: best(name, None) for name in (BEFORE, SINCE)}, without


def _shape(point: Point) -> str:
    return f"{family(point)} {point.precision}"


def pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield each run that schedules asynchronously with one that does not, and else is the same.

    Prompts and outputs may differ by two tokens on average.
    """
    plain = {
        replace(row.engine, async_scheduling=True): row
        for row in rows
        if row.generation == SYNCHRONOUS and row.point.lab in CHECKED and row.point.skewed
    }
    for row in rows:
        other = plain.get(row.engine)
        if other is not None and row.point.skewed and row.point.system == other.point.system:
            yield row, other


def family(point: Point) -> str:
    """Return a model's name for leaving it out, with all of the same shape."""
    facts = point.facts
    assert facts is not None
    return f"{facts.num_hidden_layers}x{facts.hidden_size}x{facts.intermediate_size}"


LEFT_OUT: Final[dict[str, Callable[[Row], str]]] = {
    "model": lambda row: family(row.point),
    "GPU": lambda row: row.point.system,
    "lab": lambda row: row.point.lab,
}


def left_out(
    rows: Sequence[Row],
    key: Callable[[Row], str],
    whole: Sequence[Off],
    hidden: Mapping[str, float],
    without: Mapping[str, Mapping[str, float]],
) -> list[Off]:
    """Return predicted over measured of each point, from those of other models, GPUs or labs.

    `whole` is that from all that teach, which stays where none of a group does. The shares `hidden`
    are those `without` the model in any case.
    """
    model = fitted(rows)
    found = [
        row.off(seconds_of(model, row), without.get(family(row.point), hidden))
        if row.generation == ASYNCHRONOUS
        else each
        for row, each in zip(rows, whole, strict=True)
    ]
    for name in sorted({key(row) for row in rows}):
        others = [row for row in rows if key(row) != name]
        taught = any(row.teaches for row in rows if key(row) == name)
        if not taught or not any(row.teaches for row in others):
            continue
        model = fitted(others)
        for place, row in enumerate(rows):
            if key(row) == name:
                own = without.get(family(row.point), hidden)
                found[place] = row.off(seconds_of(model, row), own)
    return found


def table(
    title: str, rows: Sequence[Row], ratios: Sequence[float], key: Callable[[Row], str]
) -> None:
    print(f"\n{title}: points, mean and median |error| %, bias %, least and most")
    for name in sorted({key(row) for row in rows}):
        print(
            f"  {name:<40}"
            + errors([r for row, r in zip(rows, ratios, strict=True) if key(row) == name])
        )


def gains(rows: Sequence[Row], ratios: Sequence[float]) -> None:
    """Print how much faster more GPUs are, predicted over measured, at the same load."""
    times: dict[tuple[object, ...], dict[int, tuple[float, float]]] = {}
    for row, ratio in zip(rows, ratios, strict=True):
        p = row.point
        key = (p.lab, p.model, p.system, p.precision, p.prompt_tokens, p.output_tokens,
               p.in_flight, p.rate_per_s)  # fmt: skip
        times.setdefault(key, {})[row.engine.tensor_parallel_size] = (
            row.measured,
            ratio * row.measured,
        )
    print("\ngain of TP over the least measured, predicted / measured, by lab, GPU and TP")
    found: dict[str, list[float]] = {}
    for key, sizes in times.items():
        least = min(sizes)
        for size, (real, ours) in sizes.items():
            if size != least:
                gain = (sizes[least][1] / ours) / (sizes[least][0] / real)
                found.setdefault(f"{key[0]} {key[2]} TP {least} to {size}", []).append(gain)
    for name, values in sorted(found.items()):
        print(f"  {name:<40}{errors(values)}")


def seen(rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    """Return what ran in each generation, of the points that teach."""
    found: dict[str, dict[str, object]] = {}
    kinds = [(row.generation, kind_of(row.point.facts)) for row in rows if row.point.facts]
    for key in sorted(set(kinds)):
        own = [
            row
            for row, kind in zip(rows, kinds, strict=True)
            if kind == key and not row.waited and row.point.lab not in CHECKED
        ]
        if len({(row.point.lab, family(row.point), row.point.system) for row in own}) >= FEWEST:
            found[", ".join(key)] = {
                "systems": sorted({row.point.system for row in own}),
                "ranks": max(ranks_of(row.engine) for row in own),
            }
    return found


def shares_of(rows: Sequence[Row], model: HostTerm, hidden: Mapping[str, float]) -> Floats:
    """Return the share of each point's time that the host's part takes and no kernels hide."""
    host = np.array(
        [(1 - row.share(hidden)) * (row.exposure @ seconds_of(model, row)) for row in rows]
    )
    return host / (host + np.array([row.kernels for row in rows]))


def intervals(
    rows: Sequence[Row], found: Mapping[str, Sequence[Off]], host: Floats
) -> dict[str, dict[str, float]]:
    """Return the spread by what was left out, and print what it covers of clusters left out.

    `host` is its share of each point's time.
    """
    kept_ = [
        at
        for at, row in enumerate(rows)
        if not row.waited and row.point.facts is not None and row.point.lab not in CHECKED
    ]
    own_rows = [rows[at] for at in kept_]
    kinds_ = [
        f"{row.generation}, {kind_of(row.point.facts)}" for row in own_rows if row.point.facts
    ]
    errors_ = {
        unseen: np.log([found[f"{unseen} left out"][at].tpot for at in kept_])
        for unseen in (SEEN, GPU, "lab")
    }
    strata = [stratum(kind, unseen) for unseen in (SEEN, GPU) for kind in kinds_]
    clusters = 2 * [f"{r.point.lab} {family(r.point)} {r.point.system}" for r in own_rows]
    sizes = np.concatenate([errors_[SEEN], errors_[GPU]])
    groups, names, shares = np.array(clusters), np.array(strata), np.tile(host[kept_], 2)
    whole = LeftOutSpread().fit(sizes, shares, clusters, strata)
    print(
        "\n90 % intervals: spread of kernels and host, half-width (least and most), points,"
        " clusters; held of clusters left out (95 % interval)"
    )
    draw = np.random.default_rng(SEED)
    for name in sorted(set(strata)):
        own = np.flatnonzero(names == name)
        held = np.zeros(len(own), dtype=bool)
        for cluster in sorted(set(groups[own].tolist())):
            rest_ = own[groups[own] != cluster]
            asked = groups[own] == cluster
            if len(rest_):
                held[asked] = _held(rest_, own[asked], sizes, shares, groups, names)
        kinds = sorted(set(groups[own].tolist()))
        by = np.array([held[groups[own] == cluster].mean() for cluster in kinds])
        again = by[draw.integers(0, len(by), (2000, len(by)))].mean(axis=1)
        low, high = np.quantile(again, [0.025, 0.975])
        width = 100 * np.expm1(Z95 * whole.sigma(name, shares[own]))
        print(
            f"  {name:<32}{whole.kernels_[name]:>7.3f}{whole.host_[name]:>7.3f}"
            f"{np.median(width):>6.1f} % ({width.min():.1f} to {width.max():.1f}){len(own):>6}"
            f"{len(kinds):>4}   {100 * by.mean():.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        )
        for kind, share in zip(kinds, by, strict=True):
            here = groups[own] == kind
            inside = " to ".join(
                f"{100 * each:.0f}"
                for each in jeffreys(round(share * int(here.sum())), int(here.sum()))
            )
            print(
                f"    {kind:<40}{np.median(width[here]):>6.1f} %{int(here.sum()):>6}"
                f"   {100 * share:.0f} % ({inside})"
            )
    print("\nof a lab, by the interval that models of the others give: points, held, half-width")
    count = len(own_rows)
    labs = np.array([row.point.lab for row in own_rows])
    for lab in sorted(set(labs.tolist())):
        for name in sorted({n for n, of in zip(names[:count], labs, strict=True) if of == lab}):
            own = np.flatnonzero((names[:count] == name) & (labs == lab))
            rest_ = np.flatnonzero((names[:count] == name) & (labs != lab))
            if len(rest_):
                with_lab = np.concatenate([errors_["lab"], errors_[GPU]])
                held = _held(rest_, own, sizes, shares, groups, names, asked=with_lab)
                law = LeftOutSpread().fit(sizes[rest_], shares[rest_], groups[rest_].tolist(),
                                          names[rest_].tolist())  # fmt: skip
                width = 100 * np.expm1(Z95 * law.sigma(name, shares[own]))
                print(f"  {lab} {name:<40}{len(own):>6}{100 * held.mean():>6.0f} %"
                      f"{np.median(width):>7.1f} %")  # fmt: skip
    kept_names = list(whole.kernels_)  # those of few models widen others (`spread_of`)
    for far in [name for name in kept_names if GPU in name]:  # a GPU more is no less unlike
        for spreads in (whole.kernels_, whole.host_):
            spreads[far] = max(spreads[far.replace(GPU, SEEN)], spreads[far])
    return {
        name: {
            "kernels": float(f"{whole.kernels_[name]:.4g}"),
            "host": float(f"{whole.host_[name]:.4g}"),
            "points": whole.points_[name],
            "clusters": whole.clusters_[name],
        }
        for name in kept_names
    }


def _held(
    rest: npt.NDArray[np.int_],
    own: npt.NDArray[np.int_],
    sizes: Floats,
    shares: Floats,
    groups: npt.NDArray[np.str_],
    names: npt.NDArray[np.str_],
    *,
    asked: Floats | None = None,
) -> npt.NDArray[np.bool_]:
    """Return whether intervals that the `rest` of a stratum teaches hold the errors of `own`.

    These are `asked`, where others than `sizes`.
    """
    law = LeftOutSpread().fit(
        sizes[rest], shares[rest], groups[rest].tolist(), names[rest].tolist()
    )
    errors_ = (sizes if asked is None else asked)[own]
    return np.abs(errors_) <= Z95 * law.sigma(str(names[own[0]]), shares[own])


def of_ttft(rows: Sequence[Row], found: Sequence[Off]) -> dict[str, dict[str, float]]:
    """Return between which ratios to the predicted TTFT 90 % of those measured lie, by kind.

    Points that waited for blocks are left out. Each model of a lab and GPU weighs the same. Printed
    is what the interval of `first_tokens_of` holds of models, labs and GPUs that were left out.
    """
    kept = [
        (f"{row.generation}, {kind_of(row.point.facts)}",
         f"{row.point.lab} {family(row.point)} {row.point.system}", -np.log(off.ttft))
        for row, off in zip(rows, found, strict=True)
        if row.point.facts is not None and not row.waited and np.isfinite(off.ttft)
        and (row.point.load != OPEN or row.point.before)
    ]  # fmt: skip
    names, groups, logs = (np.array(each) for each in zip(*kept, strict=True))
    of_kind = {name: (logs[names == name], groups[names == name]) for name in sorted({*names})}
    shown = {n: weighted(*each) for n, each in of_kind.items() if len({*each[1]}) >= FEWEST}
    told = {}
    print(
        "\nTTFT, measured over predicted: 5 %, median, 95 %, points, clusters; of those left out"
        " held, and mean |error| % of the predicted times the others' median"
    )
    every = []
    for name, (sizes, clusters) in of_kind.items():
        count = len({*clusters})
        others = [shown[n] for n in shown if n != name] if count - 1 < ENOUGH else []
        held, off = [], []
        for each in sorted({*clusters}):
            rest = clusters != each
            used = [*others, *([weighted(sizes[rest], clusters[rest])] if rest.any() else [])]
            low, high = min(each[0] for each in used), max(each[2] for each in used)
            held.append(np.mean((sizes[~rest] >= low) & (sizes[~rest] <= high)))
            usual = np.mean([one[1] for one in used])
            off += np.abs(np.expm1(usual - sizes[~rest])).tolist()
        every += off
        low, middle, high = weighted(sizes, clusters)
        print(
            f"  {name:<32}{np.exp(low):>6.2f}{np.exp(middle):>6.2f}{np.exp(high):>6.2f}"
            f"{len(sizes):>6}{count:>4}   {100 * np.mean(held):.0f} %{100 * np.mean(off):>8.1f}"
        )
        if count >= FEWEST:
            told[name] = {
                "low": float(f"{np.exp(low):.3g}"),
                "usual": float(f"{np.exp(middle):.3g}"),
                "high": float(f"{np.exp(high):.3g}"),
                "points": len(sizes),
                "clusters": count,
            }
    print(f"  all {len(every)} points: {100 * np.mean(every):.1f} % off")
    return told


def weighted(values: Floats, clusters: npt.NDArray[np.str_]) -> list[float]:
    """Return the 5 %, 50 % and 95 % quantiles of values whose clusters weigh the same."""
    weight = np.array([1 / np.sum(clusters == each) for each in clusters])
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    places = np.minimum(np.searchsorted(share, [0.05, 0.5, 0.95]), len(values) - 1)
    return [float(each) for each in values[order][places]]


def by_kind(row: Row) -> str:
    """Return what the summaries are by: lab, generation of engines and kind of model."""
    assert row.point.facts is not None
    return f"{row.point.lab} {row.generation} {kind_of(row.point.facts)}"


def by_model(row: Row) -> str:
    return f"{row.point.lab} {row.point.model} {row.point.precision}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--write", action="store_true", help="keep the law of all points")
    given: argparse.Namespace = parser.parse_args()
    rows = rows_of(chosen(given))
    print(f"{sum(row.teaches for row in rows):,} teach")
    print(Counter((row.point.lab, row.generation, row.teaches) for row in rows))
    model = fitted(rows)
    for name, law in as_table(model).items():
        print(f"  {name:<14}" + "  ".join(f"{t} {1e6 * s:.4g} us" for t, s in law.items()))
    zero = np.zeros(len(TERMS))
    hidden, without = taught_hidden(rows, model.seconds(SYNCHRONOUS))
    print(f"  hidden {hidden}, and without a model {without}")
    whole = [row.off(seconds_of(model, row), hidden) for row in rows]
    found = {
        "kernels alone": [row.off(zero) for row in rows],
        "the host's part added for all": [row.off(seconds_of(model, row)) for row in rows],
        "the host's part hidden wherever it may be": [
            row.off(seconds_of(model, row), {BEFORE: 1.0, SINCE: 1.0}) for row in rows
        ],
    }
    found |= {
        f"{name} left out": left_out(rows, key, whole, hidden, without)
        for name, key in LEFT_OUT.items()
    }
    found["all points"] = whole
    for title, offs in found.items():
        table(title, rows, [off.tpot for off in offs], by_kind)
    asked = [off.tpot for off in found["model left out"]]
    firsts = [
        (row, off.ttft)
        for row, off in zip(rows, found["model left out"], strict=True)
        if np.isfinite(off.ttft)
    ]
    table(
        "model left out, by source",
        rows,
        asked,
        lambda r: "silicon_sample.csv" if r.point.lab in SILICON else r.point.lab,
    )
    for what, by in (("kind", by_kind), ("model", by_model)):
        table(
            f"TTFT, model left out, by {what}",
            [row for row, _ in firsts],
            [ratio for _, ratio in firsts],
            by,
        )
    for what, key in (
        (
            "GPU and TP",
            lambda r: f"{by_kind(r)} {r.point.system} tp{r.engine.tensor_parallel_size}",
        ),
        ("model", by_model),
        ("load", lambda r: f"{by_kind(r)} {r.point.in_flight or r.point.rate_per_s:>6}"),
    ):
        table(f"model left out, by {what}", rows, asked, key)
    dense = [
        at
        for at, row in enumerate(rows)
        if row.point.lab in SILICON and row.point.facts and kind_of(row.point.facts) == PLAIN
    ]
    for title in ("model left out", "GPU left out"):
        told, ratios = [rows[at] for at in dense], [found[title][at].tpot for at in dense]
        table(f"silicon_sample.csv, dense 16-bit, {title}, all", told, ratios, by_kind)
        table("by TP", told, ratios, lambda r: f"TP {r.engine.tensor_parallel_size}")
        table("by load", told, ratios, lambda r: f"{r.point.in_flight:>4} in flight")
    gains(rows, asked)
    spread = intervals(rows, found, shares_of(rows, model, hidden))
    ttft = of_ttft(rows, found["model left out"])
    if given.write:
        KEPT.write_text(json.dumps(
            {
                "about": "seconds of a step beyond its kernels, by generation of vLLM's engine:"
                " benchmarks/host_term.py --write. Coefficients are ttscope's own",
                "learned_from": {
                    f"{lab}, {name}": count
                    for (lab, name), count in sorted(Counter(
                        (row.point.lab, row.generation) for row in rows if row.teaches
                    ).items())
                },
                "sources": {
                    "aic, inferencex": "silicon_sample.csv of aiconfigurator-core, Apache-2.0",
                    "argonne": "LLM-Inference-Bench, BSD-3-Clause",
                    "iog": "IOG-Foundation/llm-inference-benchmarks, Apache-2.0",
                    "gpustack": "GPUStack performance lab, Apache-2.0: what is hidden alone",
                },
                "seconds": as_table(model),
                "hidden": hidden,
                "seen": seen(rows),
                "spread": spread,
                "ttft": ttft,
            },
            indent=1,
        ) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
