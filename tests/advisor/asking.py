"""What a replay predicts of a recording, as the command asks for it."""

from advisor.evidence.live.servers import replayable
from advisor.what_if.predict import predict
from advisor.what_if.question import Question, changed


def predicted(recording, *changes, others=(), **more):
    """Return the prediction of a recording's first run, with `--set` changes and what is `more`."""
    run, *_ = replayable(recording)
    engine, policy, _ = changed(run, changes)
    return predict(recording, run, Question(engine=engine, policy=policy, **more), others)
