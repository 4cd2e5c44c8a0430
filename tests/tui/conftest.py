"""What the tests of the command line share."""

import sys

import pytest

from advisor.advice.advisor import Advisor
from tests.learned import LearnedIfShipped
from tui import cli


@pytest.fixture(scope="session")
def shipped() -> LearnedIfShipped:
    """What is learned of the shipped recordings."""
    return LearnedIfShipped()


@pytest.fixture(scope="module", autouse=True)
def shipped_learned_once(shipped):
    """What is learned of the shipped recordings, which takes seconds, is learned once.

    The fixtures of a module learn too. The tests of other folders learn as users do.
    """

    def fit(_, recordings, **options):
        return shipped(recordings, **options)

    def refined(advisor):
        return shipped.refined(advisor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Advisor, "fit", classmethod(fit))
        patch.setattr(Advisor, "refined", refined)
        yield


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # `main` sets it; it ends with the test

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ttscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = capsys.readouterr()
        return left.value.code or 0, out.out, out.err

    return call
