"""The time of an engine step, from what it computes.

Two fits, both non-negative and linear. First one of the physical features over every engine of a
kind (same device, software and precision), which says what a layer, a byte and a FLOP cost there.
Then one law per engine, held towards the first where its own steps do not tell: no law is made
for an engine that was never recorded. Both are made towards `FLAT` and towards `STEEP`, as steps
of one load do not tell what comes with a step and what with each of its requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from advisor.evidence.features import (
    FEATURES,
    FLAT,
    HOST_WORK,
    STEEP,
    STEEP_ON_GPU,
    UNSEEN,
    ZERO,
    Features,
    Reads,
    demands,
    reads_of,
)
from advisor.evidence.gather import StepTable
from advisor.evidence.keys import law_key
from advisor.evidence.live.histograms import SPREAD
from advisor.evidence.unrecorded import differences, recording_of, what_differs
from advisor.kept import kept, plain_fields, with_arrays
from advisor.step_time.law import StepLaw
from advisor.step_time.pace import at_one_pace
from traces.errors import UsageError
from traces.schema.engine import EngineConfig
from traces.statistics import LEVEL, Z95, Floats, student_95
from traces.summary.comparison import PRIOR_REPEATS, RUN_TO_RUN, stretches, varied

FEWEST_DOUBLED = 50  # steps on either side, where smaller batches predict larger ones
ENOUGH_CONFIGURATIONS = 15  # left out, from which their errors' own quantile is taken
MOST_LEFT_OUT = 60  # groups: each takes a fit of the others
STALL = 10.0  # a step beyond so many times its prediction counts as that many times
# Bytes of weights a second that a rank on a processor never reads: a socket with HBM (Xeon Max) has
# 1.0 TB/s at most by STREAM, one with MRDIMMs (Xeon 6) a peak of 0.85.
FASTEST_PROCESSOR = 1.2e12


class StepTimeModel:
    """Step time as a non-negative linear function of what a step computes.

    `solver` is another linear regression for it (`StepTimeRegression`).

    Attributes
    ----------
    laws_: StepLaw by `law_key(engine)`.
    errors_: log(recorded / predicted total time), by (recording, law key), of recordings that
        were predicted from those of other configurations (of repeats of the same, where no other
        teaches the law).
    inside_: whether such a recording lay inside the domain of the others of its law.

    Notes
    -----
    The first fit is of what steps ask of the hardware (`features.demands`). Then all seconds of a
    law are scaled so that the recorded totals come out, so that stalls have their mean share. Of
    the repeats of a configuration the median counts, as a run may be disturbed as a whole.

    """

    def __init__(self, solver: Any = None) -> None:
        self.solver = solver

    def fit(self, tables: Sequence[StepTable], *, held_out: bool = True) -> StepTimeModel:
        """Learn the laws, and their spread from recordings that are left out in turn.

        Without `held_out` the spread is assumed, as it is where there is only one recording.
        """
        tables = [table for table in tables if len(table.seconds)]
        fitted = self.fit_shapes(tables)
        self.errors_: dict[tuple[str, EngineConfig], float] = {}
        self.inside_: dict[tuple[str, EngineConfig], bool] = {}
        for group in left_out_groups(tables) if held_out else ():
            names = {table.recording for table in group}
            others = [table for table in tables if table.recording not in names]
            taught = {law_key(table.engine) for table in others}
            held = [table for table in group if law_key(table.engine) in taught]
            kinds = {_kind(table.engine) for table in held}
            wanted = {law_key(table.engine) for table in held}
            laws = self.fit_laws([t for t in others if _kind(t.engine) in kinds], of=wanted)
            for name, key in dict.fromkeys((t.recording, law_key(t.engine)) for t in held):
                law_tables = [t for t in held if t.recording == name and law_key(t.engine) == key]
                recorded = sum(self._total(t, laws[key]) for t in law_tables)
                predicted = sum(float(t.composition.sum(axis=0) @ laws[key]) for t in law_tables)
                self.errors_[name, key] = float(np.log(recorded / predicted))
                rest = [t for t in others if law_key(t.engine) == key]
                self.inside_[name, key] = inside(law_tables, rest)
        configurations = {table.recording: table.configuration for table in tables}
        self.configurations_ = {found: configurations[found[0]] for found in self.errors_}
        self.laws_: dict[EngineConfig, StepLaw] = {}
        for key, ends in fitted.items():
            seconds = middle_of(ends)
            law_tables = [table for table in tables if law_key(table.engine) == key]
            sigma, repeats = self._spread(key, law_tables, seconds, outside=False)
            sigma_outside, repeats_outside = self._spread(key, law_tables, seconds, outside=True)
            coarse = any(table.coarse for table in law_tables)
            if coarse:
                sigma, sigma_outside = (
                    float(np.hypot(each, SPREAD)) for each in (sigma, sigma_outside)
                )
            self.laws_[key] = StepLaw(
                **of_steps(law_tables, ends),
                sigma=sigma,
                sigma_outside=max(sigma, sigma_outside),
                repeats=repeats,
                repeats_outside=repeats_outside,
                coarse=coarse,
                reads=reads_of(law_tables[0].facts),
            )
        return self

    def law(self, engine: EngineConfig) -> StepLaw:
        """Return the law of an engine. Raises UsageError when no such engine was recorded."""
        try:
            return self.laws_[law_key(engine)]
        except KeyError:
            fields = differences(law_key(engine), self.laws_)
            raise UsageError(
                f"{engine.label()} of {engine.model} was never recorded with "
                f"{what_differs(fields)}. A few problems teach its steps: "
                f"{recording_of(engine, fields)}, "
                "then give that recording too (to replay as --with)"
            ) from None

    def fit_laws(
        self, tables: Sequence[StepTable], *, of: Collection[EngineConfig] | None = None
    ) -> dict[EngineConfig, Floats]:
        """Return the seconds per feature of each law, by `law_key`, without their spreads.

        With `of`, of these laws alone.
        """
        laws = self._fit_towards(tables, of, lambda group: middle_of(_shapes(group))[None])
        return {key: each[0] for key, each in laws.items()}

    def fit_shapes(
        self, tables: Sequence[StepTable], *, of: Collection[EngineConfig] | None = None
    ) -> dict[EngineConfig, Floats]:
        """Return laws [shapes, FEATURES] by `law_key`, one towards each of its `_shapes`.

        Where the recorded steps tell what a feature costs, they are alike.
        """
        return self._fit_towards(tables, of, _shapes)

    def _fit_towards(
        self,
        tables: Sequence[StepTable],
        of: Collection[EngineConfig] | None,
        shapes_of: Callable[[Sequence[StepTable]], Floats],
    ) -> dict[EngineConfig, Floats]:
        """Return laws [shapes, FEATURES] by `law_key`."""
        laws: dict[EngineConfig, Floats] = {}
        for kind in dict.fromkeys(_kind(table.engine) for table in tables):
            group = [table for table in tables if _kind(table.engine) == kind]
            if not _starts_differ(group):
                apart = np.isin(FEATURES, HOST_WORK)
                group = [
                    dataclasses.replace(table, composition=np.where(apart, 0.0, table.composition))
                    for table in group
                ]
            by_law: dict[EngineConfig, list[StepTable]] = {}
            for table in group:
                by_law.setdefault(law_key(table.engine), []).append(table)
            with_facts = [table for table in group if table.facts is not None]
            names = list(dict.fromkeys(n for t in with_facts for n in _asked(t)))
            shapes = shapes_of(group)
            shared = (
                [self._fit_shared(with_facts, names, shape) for shape in shapes]
                if with_facts
                else []
            )
            for key, law_tables in by_law.items():
                if of is not None and key not in of:
                    continue
                priors: list[Floats | None] = [None] * len(shapes)
                if law_tables[0].facts is not None:
                    priors = [_demanded(law_tables[0], names).T @ each for each in shared]
                laws[key] = np.array(
                    [self._fit_own(law_tables, *each) for each in zip(shapes, priors, strict=True)]
                )
        return laws

    def _fit_shared(
        self, tables: Sequence[StepTable], names: Sequence[str], shape: Floats
    ) -> Floats:
        """Return the seconds per unit of each demand that one kind of engine makes."""
        asked = [_demanded(table, names).T for table in tables]
        rows = np.concatenate([t.composition @ each for t, each in zip(tables, asked, strict=True)])
        held = [  # each recording its part, so that many are held as one
            _towards(shape, t.composition, t.seconds, each) / np.sqrt(len(tables))
            for t, each in zip(tables, asked, strict=True)
        ]
        seconds = np.concatenate([table.seconds for table in tables])
        return self._coefficients(rows, seconds, np.concatenate(held))

    def _fit_own(self, own: Sequence[StepTable], shape: Floats, prior: Floats | None) -> Floats:
        composition = np.concatenate([table.composition for table in own])
        seconds = np.concatenate([table.seconds for table in own])
        held = _towards(shape, composition, seconds, np.eye(len(FEATURES)))
        coefficients = self._coefficients(composition, seconds, held, prior)
        coefficients[~composition.any(axis=0) & np.isin(FEATURES, UNSEEN)] = 0.0
        recorded = predicted = 0.0
        for name in dict.fromkeys(table.configuration for table in own):
            repeats = [table for table in own if table.configuration == name]
            totals = np.array([float(t.composition.sum(axis=0) @ coefficients) for t in repeats])
            ratios = np.array([self._total(t, coefficients) for t in repeats]) / totals
            predicted += float(totals.sum())
            recorded += float(totals.sum() * np.median(ratios))
        return np.asarray(coefficients * (recorded / predicted), dtype=float)

    def _coefficients(
        self, rows: Floats, seconds: Floats, held: Floats, prior: Floats | None = None
    ) -> Floats:
        from advisor.step_time.regression import StepTimeRegression  # loads scikit-learn

        return StepTimeRegression(self.solver).fit(rows, seconds, towards=held, prior=prior).coef_

    def _total(self, table: StepTable, law: Floats) -> float:
        return float(np.minimum(table.seconds, STALL * (table.composition @ law)).sum())

    def _spread(
        self, key: EngineConfig, own: Sequence[StepTable], seconds: Floats, *, outside: bool
    ) -> tuple[float, int]:
        """Return the spread of a law's log error for a fresh run, and the repeats it rests on.

        Errors of all held-out recordings of the same kind of engine are pooled with `RUN_TO_RUN`,
        which counts for `PRIOR_REPEATS` of them; few widen the spread as Student's t does. With
        errors from `ENOUGH_CONFIGURATIONS` and more it is their own 90 % quantile that is met, with
        the correction of conformal prediction for so many configurations. Without any it is
        `RUN_TO_RUN` and the spread within the run, and outside of the recorded domain also how far
        off the run's larger batches are, predicted from those up to half of the largest.
        """
        held_out = [
            (name, other)
            for name, other in self.errors_
            if _kind(other) == _kind(key) and (outside or self.inside_[name, other])
        ]
        errors = [self.errors_[each] for each in held_out]
        groups = len({self.configurations_[each] for each in held_out})
        if groups >= ENOUGH_CONFIGURATIONS:
            level = min(LEVEL * (1 + 1 / groups), 1.0)
            return float(np.quantile(np.abs(errors), level)) / Z95, len(errors)
        if errors:
            freedom = PRIOR_REPEATS + len(errors)
            squares = PRIOR_REPEATS * RUN_TO_RUN**2 + float(np.sum(np.square(errors)))
            return float(np.sqrt(squares / freedom)) * student_95(freedom) / Z95, len(errors)
        factors = [stretches(table.seconds, table.composition @ seconds) for table in own]
        sigma = float(np.hypot(RUN_TO_RUN, varied(np.concatenate(factors))))
        if not outside:
            return sigma, 0
        even = [at_one_pace(table, seconds) for table in own]  # large batches come at slow hours
        return float(np.hypot(sigma, self._doubled(even))), 0

    def _doubled(self, own: Sequence[StepTable]) -> float:
        """Return how far off the steps above half of the largest batch are: |log|.

        The others predict them. 0 where either are fewer than `FEWEST_DOUBLED`.
        """
        composition = np.concatenate([table.composition for table in own])
        seconds = np.concatenate([table.seconds for table in own])
        requests = composition[:, FEATURES.index("requests")]
        large = requests > requests.max() / 2
        if min(large.sum(), (~large).sum()) < FEWEST_DOUBLED:
            return 0.0
        few, many = (
            dataclasses.replace(own[0], composition=composition[which], seconds=seconds[which])
            for which in (~large, large)
        )
        law = self._fit_own([few], middle_of(_shapes([few])), None)
        predicted = float(many.composition.sum(axis=0) @ law)
        return abs(float(np.log(self._total(many, law) / predicted)))


def learned(
    tables: Sequence[StepTable], *, held_out: bool = True, solver: Any = None
) -> StepTimeModel:
    """Return `StepTimeModel(solver).fit(tables, held_out=held_out)`.

    It is made once, but for a solver of the user's.
    """

    def fit() -> StepTimeModel:
        return StepTimeModel(solver).fit(tables, held_out=held_out)

    return fit() if solver is not None else kept((tables, held_out), fit, _plain, _of_plain)


def left_out_groups(tables: Sequence[StepTable]) -> list[list[StepTable]]:
    """Return the groups of tables to predict from the rest: whole configurations.

    Where nothing else would teach a configuration's laws, each of its recordings alone. Of more
    than `MOST_LEFT_OUT` groups so many, evenly spaced.
    """
    teachers: dict[EngineConfig, set[str]] = {}
    for table in tables:
        teachers.setdefault(law_key(table.engine), set()).add(table.configuration)
    taught = {table.configuration for table in tables if len(teachers[law_key(table.engine)]) > 1}
    names = [
        (each.configuration, "" if each.configuration in taught else each.recording)
        for each in tables
    ]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if len(places) < 2:
        return []
    from sklearn.model_selection import LeaveOneGroupOut  # loads scikit-learn

    splits = LeaveOneGroupOut().split(tables, groups=[places[name] for name in names])
    left_out = [[tables[place] for place in held] for _, held in splits]
    if len(left_out) > MOST_LEFT_OUT:
        kept_ones = np.linspace(0, len(left_out) - 1, MOST_LEFT_OUT).round().astype(int)
        left_out = [left_out[place] for place in kept_ones]
    return left_out


def fewest_requests(tables: Sequence[StepTable]) -> float:
    """Return how many requests nearly all steps had at least."""
    place = FEATURES.index("requests")
    return float(np.quantile(np.concatenate([t.composition[:, place] for t in tables]), 0.05))


def inside(held: Sequence[StepTable], rest: Sequence[StepTable]) -> bool:
    """Whether steps lie, but for a few, within the batches and contexts of the others."""
    for place in (FEATURES.index("requests"), FEATURES.index("kv_tokens")):
        values = np.concatenate([table.composition[:, place] for table in held])
        others = np.concatenate([table.composition[:, place] for table in rest])
        low, high = np.quantile(others, 0.05), max(t.most[place] for t in rest)
        if np.median(values) < low or np.quantile(values, 0.95) > 1.1 * high:
            return False
    return True


def _plain(model: StepTimeModel) -> dict[str, Any]:
    return {
        "laws": [
            {"engine": engine.to_json(), "reads": law.reads}
            | {"law": plain_fields(law, "prior", "reads")}
            for engine, law in model.laws_.items()
        ],
        "left_out": [
            {"recording": name, "engine": engine.to_json(), "error": error}
            | {"inside": model.inside_[name, engine]}
            | {"configuration": model.configurations_[name, engine]}
            for (name, engine), error in model.errors_.items()
        ],
    }


def _of_plain(document: dict[str, Any]) -> StepTimeModel:
    model = StepTimeModel()
    model.laws_ = {
        EngineConfig.from_json(each["engine"]): StepLaw(
            **with_arrays(each["law"]), reads=Reads(*each["reads"])
        )
        for each in document["laws"]
    }
    left_out = [
        ((each["recording"], EngineConfig.from_json(each["engine"])), each)
        for each in document["left_out"]
    ]
    model.errors_ = {name: each["error"] for name, each in left_out}
    model.inside_ = {name: each["inside"] for name, each in left_out}
    model.configurations_ = {name: each["configuration"] for name, each in left_out}
    return model


def of_steps(own: Sequence[StepTable], ends: Floats) -> dict[str, Any]:
    """Return the fields of a `StepLaw` that follow from its steps and from its `ends`."""
    return {
        "seconds": middle_of(ends),
        "ends": ends,
        "fewest": fewest_requests(own),
        "high": np.max([table.most for table in own], axis=0),
        "runs": len({table.recording for table in own}),
    }


def _starts_differ(tables: Sequence[StepTable]) -> bool:
    """Whether recordings had different numbers of samples a problem.

    Else what a problem and what a sample costs the recorder cannot be told apart, and any split of
    it would be wrong for another number.
    """
    totals = [Features(*table.composition.sum(axis=0)) for table in tables]
    ratios = {round(t.sample_starts / t.problem_starts) for t in totals if t.problem_starts > 0}
    return len(ratios) > 1


def middle_of(laws: Floats) -> Floats:
    """Return the likeliest [FEATURES] of the laws or shapes [shapes, FEATURES] of `_shapes`."""
    return np.asarray(laws[:2].mean(axis=0))


def _shapes(tables: Sequence[StepTable]) -> Floats:
    """Return the shapes [2 or 3, FEATURES] that laws of a kind of engine are made towards.

    The mean of the first two is the likeliest. What nobody names is most likely a GPU, but may
    grow as a processor does.
    """
    on_gpu = _on_gpu(tables)
    if on_gpu is None:
        return np.array([FLAT, STEEP_ON_GPU, STEEP])
    return np.array([FLAT, STEEP_ON_GPU if on_gpu else STEEP])


def _on_gpu(tables: Sequence[StepTable]) -> bool | None:
    """Whether engines of a kind ran on GPUs: as told, or by steps that no processor makes.

    None where neither says it, as of imports and of watches without the plugin.
    """
    on_gpu = tables[0].engine.on_gpu
    if on_gpu is None and any(_weights_read(each) > FASTEST_PROCESSOR for each in tables):
        return True
    return on_gpu


def _weights_read(table: StepTable) -> float:
    """Return the bytes of weights a second that each rank read at least, 0 where not known."""
    size = None if table.facts is None else table.facts.read_weight_bytes(1.0)
    engine = table.engine
    ranks = engine.tensor_parallel_size * engine.pipeline_parallel_size
    return (size or 0.0) / ranks / float(np.median(table.seconds))


def _towards(shape: Floats, composition: Floats, seconds: Floats, asked: Floats) -> Floats:
    """Return rows that hold coefficients towards a shape, as `StepTimeRegression.fit` takes them.

    `asked` [FEATURES, coefficients] says what a feature's time is made of.
    """
    unit = float(np.median(seconds / (composition @ shape)))  # of a step's fixed part
    weights = 1 / (unit * np.maximum(FLAT, STEEP))
    return np.column_stack([asked * weights[:, None], shape * unit * weights])


@lru_cache(maxsize=4096)
def _kind(engine: EngineConfig) -> EngineConfig:
    """Return what decides the speed of layers, bytes and FLOPs: device, software, precision."""
    return dataclasses.replace(
        law_key(engine),
        model="",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=1,
        num_gpus=None,
        block_size=None,
        speculative=None,
    )


def _demanded(table: StepTable, names: Sequence[str]) -> Floats:
    """Return [names, FEATURES]: how much of each demand a unit of a step's feature makes."""
    asked = _asked(table)
    return np.array([asked.get(name, ZERO) for name in names])


def _asked(table: StepTable) -> dict[str, Features[float]]:
    return {} if table.facts is None else demands(table.facts, table.engine)
