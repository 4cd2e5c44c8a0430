"""An import that fails leaves nothing behind, whatever is imported."""

from pathlib import Path

import pytest

from traces.errors import RecordingError, UsageError
from traces.foreign import written
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.requests.importer import import_requests
from traces.foreign.steps.forward_passes import import_passes
from traces.recording.reader import Recording

DATA = Path(__file__).parents[2] / "data" / "foreign"
OUTCOMES = '{"problem_id": "1", "sample_index": %d, "answer": "7", "correct": true}\n'
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,100,20\n"


def importer(kind, folder):
    if kind == "passes":
        return lambda out: import_passes([DATA / "fpm_dynamo.4192.000000.jsonl.gz"], out)
    file = folder / kind
    file.write_text(AZURE if kind == "requests" else "".join(OUTCOMES % n for n in range(4)))
    if kind == "requests":
        return lambda out: import_requests(file, out)
    return lambda out: import_outcomes([file], out)


def full_after(room):
    """Write so many parts, then find the disk full."""
    real, parts = written.write_part, []

    def write(*arguments):
        if len(parts) == room:
            raise OSError(28, "No space left on device")
        parts.append(real(*arguments))
        return parts[-1]

    return write


@pytest.mark.parametrize("kind", ["outcomes", "requests", "passes"])
def test_a_full_disk_leaves_nothing_and_a_second_try_takes_the_folder(kind, tmp_path, monkeypatch):
    out, into = tmp_path / "rec", importer(kind, tmp_path)
    for room in range(2 if kind == "passes" else 3):
        with monkeypatch.context() as patched:
            patched.setattr(written, "write_part", full_after(room))
            with pytest.raises(RecordingError, match=r"cannot be written \(No space left"):
                into(out)
        assert list(out.iterdir()) == []
    into(out)
    assert Recording.open(out).complete
    with pytest.raises(UsageError, match="already holds a recording"):
        into(out)
