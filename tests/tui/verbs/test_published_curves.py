"""A published curve as a user gives it: import, show, policies, advice, and what is refused."""

import json

import pytest

from tests.tui.model_config import llama_config
from tests.tui.verbs.test_outcomes_alone import GPU
from traces.recording.reader import Recording

pytestmark = pytest.mark.slow

CSV = "n,accuracy,tokens\n1,0.5,1500\n2,0.5,3000\n4,0.6,6000\n8,0.7,12000\n"


def imported(run, folder, name="curve", text=CSV, layers=8, *more):
    (folder / f"{name}.csv").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(llama_config(layers, 1024)))
    out = run.clean(
        "import", "--curve", f"{name}.csv", "--problems", "40", "--model", f"org/{name}",
        "--model-config", f"{name}.json", "--prompt-tokens", "100", "--benchmark", "made",
        *more, "-o", f"runs/{name}",
    )  # fmt: skip
    return " ".join(out.split())


def test_a_curve_is_shown_with_what_it_assumes(run, tmp_path):
    out = imported(run, tmp_path)
    assert "spread of their logarithm 0.6 (assumed)" in out
    recording = Recording.open(tmp_path / "runs" / "curve")
    assert not recording.rows("samples") and not recording.rows("problems")
    code, out, _ = run("show", "runs/curve")
    assert code == 0 and "40 behind a published curve, made" in out
    out = run.ok("show", "runs/curve", "--policies", "--json")
    (plain,) = json.loads(out)["runs"]
    found = {each["n"]: each for each in plain["policies"]}
    assert {each["method"] for each in plain["policies"]} == {"majority"}
    published, beyond = found[8], found[32]
    assert published["basis"] == "published" and published["accuracy"]["value"] == 0.7
    assert published["tokens_per_problem"]["value"] == 12000
    assert not published["accuracy"]["extrapolated"] and beyond["accuracy"]["extrapolated"]
    # As wide as 40 problems allow, whose votes lie between 0 and 1.
    for each in (published, beyond):
        low, high = each["accuracy"]["low"], each["accuracy"]["high"]
        assert 0.1 < high - low < 2 * 1.64 * (0.25 / 40) ** 0.5 + 0.1
    assert any("assumed" in note for note in plain["policy_notes"])


def test_what_a_curve_cannot_tell_is_refused(run, tmp_path):
    imported(run, tmp_path)
    imported(run, tmp_path, "other", CSV.replace("0.7", "0.8"))
    code, out, _ = run("show", "runs/curve", "runs/other")
    assert code == 0 and "knows no problem by itself, so nothing is paired" in out
    assert "has no lengths of samples" in run.refused(
        "show", "runs/curve", "--policies", "--max-tokens", "100", code=2
    )
    assert "something of 1 to 32" in run.refused(
        "show", "runs/curve", "--policies", "--k", "33", code=2
    )


def test_advice_from_two_curves(run, tmp_path, prior):
    head = "n,accuracy,tokens\n"
    imported(run, tmp_path, "small", f"{head}1,0.5,1500\n2,0.5,3000\n", 4)
    imported(run, tmp_path, "large", f"{head}1,0.7,1500\n2,0.7,3000\n", 16)
    asked = ("advise", "runs/small", "runs/large", *GPU, "--min-accuracy", "0.6")
    code, out, err = run(*asked, "--optimise", "cost", "--json")
    assert code == 0, err
    assert "from a published curve of 40 problems" in err
    pick = json.loads(out)["system_optimal"]
    accuracy = pick["estimates"]["accuracy"]
    assert pick["engine"]["model"] == "org/large" and accuracy["extrapolated"]
    assert accuracy["value"] == 0.7 and accuracy["low"] < accuracy["value"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n,accuracy,tokens\n1,53,900\n", "line 2: accuracy wants a share from 0 to 1"),
        ("n,accuracy,tokens\n1,.5,900\n8,.6,1800\n", "225 tokens each at n 8, and 900 at n 1"),
        ("n,accuracy,tokens\n1,.5,900\n1,.6,900\n", "n 1 is there more than once"),
        ("n,accuracy\n1,.5\n", "tokens lack"),
        ("n,accuracy,tokens\n0,.5,900\n", "line 2: n wants a whole number"),
        ("n,accuracy,tokens\n1,.5,900,3\n", "line 2 has 4 columns of 3"),
        ('{"n": 1, "accuracy": 0.5, "tokens": 9}\nnot\n', "is no column names"),
        ('{"n": 1, "accuracy": NaN, "tokens": 9}\n', "line 1"),
        ("n,accuracy,tokens\n", "holds no point"),
        ('[{"n": 1, "accuracy": 0.5, "tokens": 9}]', "is a JSON array. A curve is lines of n"),
        ("n,accuracy,tokens\r1,53,900\r", "line 2: accuracy wants a share from 0 to 1"),
        ("n" * 140_000, "line 1 is no CSV"),
        pytest.param("11\r" * 400_000, "line 1 has more than 1,048,576 bytes", id="one line"),
        ("n,accuracy,tokens\n1,.5,900\n", "Give --problems N"),
    ],
)
def test_a_bad_curve_is_refused_in_one_line(run, tmp_path, text, said):
    (tmp_path / "bad.csv").write_bytes(text.encode())
    assert said in run.refused("import", "--curve", "bad.csv", "-o", "REC")
    assert not (tmp_path / "REC").exists()


def test_problems_come_from_the_published_interval(run, tmp_path):
    (tmp_path / "c.csv").write_text("n,accuracy,tokens,ci\n1,.5,900,.1\n")
    code, out, _ = run("import", "--curve", "c.csv", "-o", "REC")
    assert code == 0 and "over 96 problems (as the published intervals have it)" in " ".join(
        out.split()
    )


def test_samples_are_no_longer_than_their_limit(run, tmp_path):
    (tmp_path / "c.csv").write_bytes(CSV.replace("\n", "\r").encode())
    asked = ("import", "--curve", "c.csv", "--problems", "40", "-o", "REC", "--max-tokens")
    said = run.refused(*asked, "1000", code=2)
    assert "--max-tokens 1,000: samples have 1,500 tokens each at n 1" in said
    run.clean(*asked, "1500")
