"""Acceptance and n-gram lookup in plain lines."""

from traces.schema.estimate import Estimate
from traces.summary.speculation.acceptance import Acceptance, BatchAcceptance, PhaseAcceptance
from traces.summary.speculation.lookup import NgramWhatIf
from tui.text.recordings.kernels import acceptance_lines, what_if_lines


def share(value, unit="1"):
    return Estimate(value=value, low=value - 0.021, high=value + 0.034, unit=unit)


def kept(k):
    return {
        "drafted": 1234 * k,
        "accepted_per_position": tuple(share(0.987 / (place + 1)) for place in range(k)),
        "length": share(1.234, "tokens"),
    }


def test_lines_of_what_was_accepted():
    batch = BatchAcceptance(
        batch_low=129, batch_high=256, steps=12_345, **kept(9), draft_s=share(0.1, "s")
    )
    one = BatchAcceptance(batch_low=1, batch_high=1, steps=1, **kept(9), draft_s=None)
    found = Acceptance(
        method="eagle",
        **kept(9),
        tokens_per_step=share(1.1, "tokens"),
        draft_s=share(0.0123, "s"),
        by_phase=(PhaseAcceptance(phase="thinking", **kept(9), tokens_per_step=None),),
        by_batch=(one, batch),
    )
    lines = acceptance_lines(found)
    assert lines[0] == "eagle: length 1.23 [1.21, 1.27] tokens, kept by position"
    assert any(line.startswith("  129-256  12,345") for line in lines)
    assert any(line.startswith("  thinking") and ".987 .493" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert not acceptance_lines(None)
    assert max(map(len, acceptance_lines(found, 59))) <= 59


def test_bare_counts_have_no_tables():
    lines = acceptance_lines(Acceptance(method="ngram", **kept(2)))
    assert len(lines) == 3 and not any("batch" in line or "phase" in line for line in lines)


def looked_up(k):
    return NgramWhatIf(
        num_speculative_tokens=k, prompt_lookup_min=2, prompt_lookup_max=4, **kept(k),
        drafted_steps=share(0.5), tokens_per_step=share(1.234, "tokens"), by_phase=(),
    )  # fmt: skip


def test_lines_of_prompt_lookup():
    lines = what_if_lines([looked_up(5)])
    assert "without running it" in lines[0] and lines[2].startswith(
        "  5  2-4     1.23 [1.21, 1.27]"
    )
    assert max(map(len, lines)) <= 80
    assert not what_if_lines(None)
    narrow = what_if_lines([looked_up(5)], 59)
    assert max(map(len, narrow)) <= 59 and " ".join(narrow).count("kept by position") == 1
    long = [line for k in (6, 7, 8, 16) for line in what_if_lines([looked_up(k)])]
    assert max(map(len, long)) <= 80 and long[-1].endswith(" ...")
