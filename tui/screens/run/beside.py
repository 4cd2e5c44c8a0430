"""A replay of a run to be shown beside it: the same rows, from the same tables."""

from __future__ import annotations

from dataclasses import dataclass

from traces.recording.reader import Recording, measured
from traces.summary.run import Run, summarise
from tui.screens.library import words_of


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Another run of the same problems, what it is in a word, and the numbers of both in lines."""

    run: Run
    word: str
    asked: str
    lines: tuple[str, ...] = ()


def told_here(text: str) -> str:
    """Return an error of `ttscope replay` for the screen, which has none of its options."""
    return text.replace("--set ", "").replace("with --with", "with ttscope replay --with")


def replay_beside(recording: Recording, run: Run, changes: str, *, width: int) -> Beside:
    """Replay a run, with changes as `engine.max_num_seqs=8 policy.n=4` or none.

    The first replay after an installation compiles for some seconds. Raises UsageError for what
    cannot be asked, and RecordingError for a recording that cannot be replayed.
    """
    from advisor.evidence.live.servers import deployed, run_with_length
    from advisor.what_if.predict import predict
    from advisor.what_if.question import Question, changed
    from tui.text.replay import replay_lines

    measured([recording])
    recording, run = run_with_length(recording, run)
    run = deployed(recording, run)
    engine, policy, _ = changed(run, words_of(changes))
    question = Question(engine=engine, policy=policy)
    prediction = predict(recording, run, question)
    return Beside(
        run=summarise(prediction.kept)[0],
        word="replay",
        asked=changes.strip() or "as recorded",
        lines=tuple(replay_lines(prediction, question, width=width)),
    )
