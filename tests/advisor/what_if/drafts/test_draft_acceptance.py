"""The acceptance model, and runs that are drafted for with another k."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from advisor.evidence.features import Features
from advisor.evidence.gather import gather
from advisor.evidence.runs import Sample
from advisor.step_time.draft_law import draft_law
from advisor.step_time.fit import StepTimeModel
from advisor.what_if.drafts.draft_acceptance import AcceptanceModel, Kept, prior_strength
from advisor.what_if.drafts.redrafting import _counts_of, known_tokens, redraft, spread, steps_with
from tests.advisor import synthetic
from tests.advisor.synthetic import NGRAM, VOTE16, engine_of, record
from tests.advisor.what_if.test_predict import asked
from traces.errors import UsageError
from traces.schema.engine import Speculative
from traces.summary.run import summarise
from traces.summary.speculation.ngram import PromptLookup, draft_counts

DRAFT = Speculative(method="draft_model", model="small", num_speculative_tokens=3)


def kept(drafts, *at, problem="p", temperature=0.8, phase="thinking"):
    return Kept(problem=problem, temperature=temperature, phase=phase, drafts=drafts, kept=at)


def chances(rows, position, cell=(0.8, "thinking"), draws=400):
    """Draws of the chance at a position."""
    model, rng = AcceptanceModel().fit(rows), np.random.default_rng(0)
    return np.array([model.draw(rng).at(cell, position) for _ in range(draws)])


def test_shares_are_of_those_that_kept_what_was_before():
    rows = [kept(1000, 800, 400, 300)]
    got = [chances(rows, j).mean() for j in range(4)]
    assert got == pytest.approx([0.8, 0.5, 0.75, 0.75], abs=0.01)  # the last as the one before
    other = [*rows, kept(1000, 200, temperature=0.0, problem="q")]
    pooled = chances(other, 0, cell=(0.4, "answer")).mean()  # a cell that nobody saw
    assert pooled == pytest.approx(0.5, abs=0.01)


def test_shorter_drafts_say_nothing_of_later_positions():
    rows = [kept(1000, 500), kept(1000, 500, 400, problem="q")]
    assert chances(rows, 1).mean() == pytest.approx(0.8, abs=0.01)


def test_a_draft_that_was_shorter_than_allowed_says_nothing_of_what_it_lacked():
    """Lookup that mostly found one token, which was kept; of longer ones half the next was."""
    steps = [(2, 2)] * 100 + [(3, 3), (3, 2)] * 10 + [(1, 1)] * 5
    scheduled, advance = (np.array(each) for each in zip(*steps, strict=True))
    sample = Sample(
        output_tokens=int(advance.sum()) + 2, answer=None, correct=None,
        scheduled=scheduled, advance=advance,
    )  # fmt: skip
    run = SimpleNamespace(
        policy=VOTE16, problems={"p": SimpleNamespace(samples=[dataclasses.replace(sample)])}
    )
    rows = [dataclasses.replace(each, phase="thinking") for each in _counts_of(run)]
    assert chances(rows, 0).mean() == pytest.approx(1.0, abs=0.02)
    assert chances(rows, 1).mean() == pytest.approx(0.5, abs=0.05)


def test_a_thin_cell_is_held_to_the_pooled_value_and_a_rich_one_is_not():
    cells = [(0.0, 0.9, 2000), (0.4, 0.5, 2000), (0.8, 0.7, 2000), (1.0, 0.0, 4)]
    rows = [kept(n, round(n * p), temperature=t, problem=str(t)) for t, p, n in cells]
    rich, thin = (chances(rows, 0, cell=(t, "thinking")) for t in (0.0, 1.0))
    assert rich.mean() == pytest.approx(0.9, abs=0.02)
    assert 0.2 < thin.mean() < 0.68  # between its own 0 and the pooled 0.7
    assert thin.std() > 5 * rich.std()


@pytest.mark.slow
def test_the_strength_of_the_prior_is_that_of_the_beta_that_made_the_cells():
    rng = np.random.default_rng(0)
    for strength in (5.0, 50.0):
        n = np.full(400, 200.0)
        x = rng.binomial(200, rng.beta(0.6 * strength, 0.4 * strength, 400)).astype(float)
        assert prior_strength(x, n) == pytest.approx(strength, rel=0.2)
    alike = rng.binomial(200, 0.6, 400).astype(float)
    assert prior_strength(alike, np.full(400, 200.0)) > 500


@pytest.mark.slow
def test_the_interval_holds_the_truth_where_problems_differ():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        rows = []
        for number in range(30):
            own = rng.beta(6, 4)
            rows.append(kept(60, int(rng.binomial(60, own)), problem=str(number)))
        low, high = np.quantile(chances(rows, 0, draws=200), (0.05, 0.95))
        hits += low <= 0.6 <= high
    assert 165 <= hits <= 195  # 90 % of 200


# -- redrafting ------------------------------------------------------------------------------------


def drafted(right, k):
    """The sample whose token i, from 1 on, a draft gets right where `right[i]` says so."""
    scheduled, advance, place = [], [], 1
    while place < len(right):
        got = 0
        while got < k and place + got < len(right) and right[place + got]:
            got += 1
        emitted = min(got + 1, len(right) - place)
        scheduled.append(k + 1)
        advance.append(emitted)
        place += emitted
    return Sample(
        output_tokens=len(right), answer=None, correct=None, scheduled=np.array(scheduled),
        advance=np.array(advance),
    )  # fmt: skip


def test_what_a_draft_said_of_a_token_is_read_back():
    right = [0, 1, 1, 0, 1, 1, 1, 1, 0, 1]
    known = known_tokens(drafted(right, 3)).tolist()
    assert known[1:4] == [1, 1, 0]
    assert known[4:7] == [1, 1, 1]
    assert known[7] == -1  # after a draft that was kept whole
    assert known[8] == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same tokens drafted for with 1, 2, 3 and 5, by k."""
    folder = tmp_path_factory.mktemp("drafted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_sample", sample_of)
        return {
            k: synthetic.record(folder / str(k) / "same", engine_of(speculative=with_k(k)), VOTE16)
            for k in (1, 2, 3, 5)
        }


def sample_of(rng, engine, tokens, answer, correct):
    """A sample whose tokens are right for the draft by their place, whatever k."""
    own = np.random.default_rng(int(rng.integers(1 << 30)))
    right = own.random(tokens) < own.beta(8, 3)
    made = drafted(right, engine.speculative.num_speculative_tokens)
    return dataclasses.replace(made, answer=answer, correct=correct)


def with_k(k):
    return dataclasses.replace(DRAFT, num_speculative_tokens=k)


@pytest.mark.slow
@pytest.mark.parametrize(("recorded", "k"), [(3, 1), (3, 2), (5, 3), (3, 5)])
def test_steps_of_another_k_are_those_of_the_same_tokens(runs, recorded, k):
    evidence = gather([runs[recorded]])
    engine = engine_of(speculative=with_k(k))
    found = redraft(evidence, [runs[recorded]], engine, VOTE16)
    (truth,) = gather([runs[k]]).runs
    assert found.extrapolated == (k > recorded)
    real = [s for p in truth.problems.values() for s in p.samples]
    steps = sum(len(s.scheduled) for s in real)
    forwarded = sum(int(s.scheduled.sum()) for s in real)
    for run in found.runs:
        made = [s for p in run.problems.values() for s in p.samples]
        assert all(m.advance.sum() == r.output_tokens - 1 for m, r in zip(made, real, strict=True))
        assert sum(len(s.scheduled) for s in made) == pytest.approx(steps, rel=0.02)
        assert sum(int(s.scheduled.sum()) for s in made) == pytest.approx(forwarded, rel=0.02)
    if k < recorded:  # sample by sample, but for the tokens that nobody proposed
        made = [s for p in found.runs[0].problems.values() for s in p.samples]
        apart = [abs(len(m.scheduled) - len(r.scheduled)) for m, r in zip(made, real, strict=True)]
        assert np.mean(apart) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("recorded", "k"), [(3, 1), (5, 3), (3, 5)])
def test_a_run_with_another_k_is_foretold(runs, recorded, k):
    found = asked(runs[recorded], engine={"speculative": with_k(k)})
    real = summarise(runs[k])[0]
    for name in ("mean", "p95"):
        estimate, expected = found.predicted.latency_s[name], real.latency_s[name].value
        # Samples differ in how well they are drafted, which the drawn tokens do not.
        assert estimate.value == pytest.approx(expected, rel=0.03 if k < recorded else 0.06)
        assert estimate.low < expected < estimate.high
        assert estimate.extrapolated == (k > recorded)
    notes = " ".join(found.notes)
    assert f"drafts of {k} are made of the recorded ones of {recorded}" in notes
    assert f"drafting takes {k}/{recorded} of the time" in notes
    assert ("drafts are longer (marked *)" in notes) == (k > recorded)


@pytest.mark.slow
def test_the_time_of_drafting_goes_with_k_and_of_lookup_does_not(runs):
    model = StepTimeModel().fit(gather([runs[3]]).steps)
    law, _ = draft_law(model, [runs[3]], engine_of(speculative=with_k(1)))
    before = model.law(engine_of(speculative=with_k(3)))
    less = Features(*(before.seconds - law.seconds))
    assert less.draft_step == pytest.approx(4e-4 * 2 / 3, rel=0.01)
    assert less.draft_requests == pytest.approx(1e-5 * 2 / 3, rel=0.05)


# -- lookup that was not run -----------------------------------------------------------------------


def test_steps_of_lookup_with_fewer_tokens_come_from_the_counts_of_more():
    """Text that repeats itself: counts of k = 5 give what k = 3 and 2 would have taken."""
    rng = np.random.default_rng(3)
    exact, found = [], []
    for _ in range(40):
        words = [rng.integers(0, 9, 6).tolist() for _ in range(3)]
        text = [t for _ in range(12) for t in words[int(rng.integers(3))]]
        for k in (2, 3):
            lookups = [
                PromptLookup(num_speculative_tokens=n, prompt_lookup_min=2, prompt_lookup_max=4)
                for n in (k, 5)
            ]
            own, five = draft_counts(lookups, text[:12], text[12:])
            exact.append(steps_with([own], k, None, 0.0))
            found.append(steps_with([five], k, None, 0.0))
            assert exact[-1] == (own["steps"], sum(own["drafted"]))
    (steps, drafts), (ours, made) = np.sum(exact, axis=0), np.sum(found, axis=0)
    assert ours == pytest.approx(steps, rel=0.05)
    assert 0.8 * drafts < made < drafts  # a cut draft is followed by another sooner


@pytest.fixture
def counted(tmp_path):
    """A plain recording with the counts of lookup, and one that ran it on few problems."""
    plain = record(tmp_path / "plain", engine_of(), VOTE16, problems=12, lookups=True)
    ran = record(tmp_path / "ran", engine_of(speculative=NGRAM), VOTE16, problems=12)
    return plain, ran


@pytest.mark.slow
def test_lookup_that_was_only_counted_is_replayed_with_the_law_of_one_that_ran(counted):
    plain, ran = counted
    window = dataclasses.replace(NGRAM, prompt_lookup_min=2, prompt_lookup_max=4)
    found = asked(plain, [ran], engine={"speculative": window})
    samples = plain.frame("drafts")
    steps = samples.filter(samples["num_speculative_tokens"] == 3)["steps"].sum()
    assert found.tables["steps"]["decode_requests"].sum() == steps
    assert any("lookup never ran: each sample's verify steps are counted" in n for n in found.notes)
    within = dataclasses.replace(window, num_speculative_tokens=4)  # of the counts for 5
    found = asked(plain, [ran], engine={"speculative": within})
    assert not found.predicted.latency_s["mean"].extrapolated
    longer = dataclasses.replace(window, num_speculative_tokens=8)
    assert (
        asked(plain, [ran], engine={"speculative": longer}).predicted.latency_s["mean"].extrapolated
    )


@pytest.mark.slow
def test_what_no_recording_verifies_is_refused_with_the_run_that_would_teach_it(counted):
    plain, _ = counted
    window = dataclasses.replace(NGRAM, prompt_lookup_min=2, prompt_lookup_max=4)
    with pytest.raises(UsageError, match="verifies ngram drafts was never recorded") as e:
        asked(plain, engine={"speculative": window})
    assert re.search(
        r"ttscope record --model small --speculative '\{\"method\": \"ngram\", "
        r"\"num_speculative_tokens\": 3, \"prompt_lookup_min\": 2, \"prompt_lookup_max\": 4\}'",
        str(e.value),
    )


def test_equal_parts_sum_to_the_whole():
    assert spread(10, 4).tolist() == [2, 3, 2, 3]
    assert spread(0, 0).tolist() == []
