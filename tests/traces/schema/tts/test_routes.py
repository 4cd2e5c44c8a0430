"""Tables of samples by difficulty: how they are written, and when their votes are decided."""

from collections import Counter

import numpy as np
import pytest

from traces.errors import UsageError
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.routes import packed, read_efforts, read_routes, table_for, write_routes
from traces.schema.tts.stop_rules import DECIDE, NO_ANSWER, Votes, begin, take


def routed(route, n, **more):
    return make_policy({"method": "routed", "n": n, "route": route, "temperature": 0.8, **more})


@pytest.mark.parametrize(
    "text",
    [
        *("16", "16,16,8,4,4", "easy=2 | level 3=8,8,8,4,4 | *=16", "a=" + "48," * 12 + "12 | *=1"),
        *("easy=2@low | *=8@high", "a@b=6,6,3,3@none | c=1 | *=4@max", "8@high"),
    ],
)
def test_tables_read_back_as_they_were_written(text):
    assert write_routes(read_routes(text), read_efforts(text)) == text


@pytest.mark.parametrize(
    ("text", "n", "why"),
    [
        ("", 8, "numbers of samples"),
        ("8,4", 8, "a table of 3 and more"),
        ("6,3,3,5", 6, "3, 6, 12, .. samples in all, not 5"),
        ("16,16,8,4,4", 8, "n = 8 must be the most samples that route gives, 16"),
        ("easy=4", 4, "for all other classes"),
        ("a=4 | a=2 | *=4", 4, "two tables for a"),
        ("a/b=4 | *=4", 4, "letters, digits"),
        (",".join(["13"] * 14), 13, "at most 12 first"),
        ("9999", 9999, "a number of samples"),
        ("easy=2@huge | *=8@high", 8,
         "no reasoning_effort 'huge' behind @ in route. Choose one of"),
        ("easy=2@ | *=8", 8, "no reasoning_effort ''"),
        ("easy=2@low@high | *=8", 8, "no reasoning_effort 'low@high'"),
        ("easy=@low | *=8", 8, "numbers of samples"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line(text, n, why):
    with pytest.raises(UsageError) as error:
        routed(text or " ", n)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_has_its_own_table_and_others_have_theirs():
    policy = routed("easy=2 | *=8", 8)
    assert policy.stop_for("easy").drawn_first == 2
    assert policy.stop_for("hard") == policy.stop_for(None) == policy.stop
    assert policy.stop.drawn_first == 8
    assert table_for(policy.routes, "easy") == (2,)


def test_each_class_may_have_its_own_effort():
    policy = routed("easy=2@low | hard=8,8,4,4,4 | *=8@high", 8)
    efforts = {name: policy.effort_for(name) for name in ("easy", "hard", "new", None)}
    assert efforts == {"easy": "low", "hard": None, "new": "high", None: "high"}
    assert policy.reasoning_effort is None
    assert policy.label() == "route@8 unset/low/high"
    assert policy.stop_for("hard").drawn_first == 4
    assert policy.words() == (
        "samples by class (easy: 2 samples at low effort, hard: 4 samples, 8 if no two agree with "
        "no effort set, others: 8 samples at high effort), temperature 0.8"
    )
    shared = routed("a=1@high | b=4@low | c=1@high | *=1@high", 4)
    assert shared.words().startswith(
        "samples by class (b: 4 samples at low effort, a and c and others: 1 sample at high effort)"
    )


def test_one_effort_for_all_classes_is_that_of_the_policy():
    plain = routed("easy=2 | *=8", 8, reasoning_effort="low")
    assert routed("easy=2@low | *=8@low", 8) == plain
    assert (plain.efforts, plain.effort_for("easy")) == (None, "low")
    with pytest.raises(UsageError, match="exclude each other"):
        routed("easy=2@low | *=8@high", 8, reasoning_effort="low")


def vote(answers, table, ends):
    """The leading answers at the decision, how many were drawn and how many had ended."""
    votes, tallies, ended = Votes(samples=len(answers)), Counter(), 0
    begin(votes, 0 if len(table) == 1 else len(table) - 1)
    votes.wanted = table[0] if len(table) == 1 else votes.wanted
    waiting = list(range(votes.wanted))
    while True:
        place = min(waiting, key=ends.__getitem__)
        waiting.remove(place)
        answer, drawn = answers[place], votes.wanted
        tallies[answer] += answer != NO_ANSWER
        ended += 1
        if take(votes, 6, packed(table), place, answer, tallies[answer]) == DECIDE:
            leads = {a for a, c in tallies.items() if c == max(tallies.values()) > 0}
            return leads, votes.wanted, ended
        waiting += range(drawn, votes.wanted)


def test_the_answer_is_that_of_all_the_samples_that_the_table_gives():
    """Whichever end first, and although a vote that cannot change any more ends at once."""
    rng = np.random.default_rng(1)
    early = 0
    for _ in range(400):
        first = int(rng.integers(2, 7))
        table = tuple(int(first << rng.integers(0, 3)) for _ in range(first + 1))
        answers = rng.integers(-1, 3, size=max(table)).tolist()
        leads, drawn, ended = vote(answers, table, rng.permutation(max(table)).tolist())
        agree = max(Counter(a for a in answers[:first] if a >= 0).values(), default=0)
        assert drawn == table[agree]
        counts = Counter(a for a in answers[:drawn] if a >= 0)
        whole = {a for a, c in counts.items() if c == max(counts.values())}
        assert leads == whole
        early += ended < drawn
    assert early > 40
