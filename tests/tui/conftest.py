"""What the tests of the command line share."""

import sys

import pytest

from advisor.advice.advisor import Advisor
from tests.learned import LearnedIfShipped
from tui import cli


class Run:
    """Runs a command; exit code, stdout, stderr."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments):
        self.monkeypatch.setattr(sys, "argv", ["ttscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = self.capsys.readouterr()
        return left.value.code or 0, out.out, out.err

    def ok(self, *arguments):
        """Its stdout, where it succeeds."""
        code, out, err = self(*arguments)
        assert code == 0, out + err
        return out

    def clean(self, *arguments):
        """Its stdout, where it succeeds and says nothing else."""
        code, out, err = self(*arguments)
        assert (code, err) == (0, ""), out + err
        return out

    def refused(self, *arguments, code=None):
        """The one line with which it is refused."""
        left, out, err = self(*arguments)
        assert left == code or (code is None and left in (1, 2)), out + err
        assert out == "" and len(err.strip().splitlines()) == 1, out + err
        return err


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
    """Commands that run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # `main` sets it; it ends with the test
    return Run(monkeypatch, capsys)
