"""`ttscope report`: its numbers are those of show and advise, and the page stands by itself."""

import dataclasses
import json
import re
import shlex
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from advisor.what_if.left_out import Foretold
from benchmarks.made.kineto_files import device_events, document, write
from benchmarks.servers.metrics_server import metrics_server
from tests.profiler.attach.test_attach import attach
from tests.traces.synthetic import simulate, write_recording
from tests.tui.report.report_page import Page, looked_up
from tests.tui.verbs.test_import_export import FOREIGN
from traces.foreign.profiler_traces import import_traces
from traces.live.verdict import Finding, Verdict
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import AS_SENT
from traces.summary.run import Run
from tui.cli import loaded
from tui.report.charts import PixelAxis, money
from tui.report.markup import join, tag
from tui.report.material import Material, gather_material
from tui.report.measured import predicted_against_measured, speculation, time_breakdown
from tui.report.page import page
from tui.verbs.demo import SHIPPED
from tui.verbs.open_all import open_all
from tui.verbs.report import headline

BUDGET = {"min_accuracy": "0.75", "price": 2.5}
HOSTILE = "<script>alert(1)</script>'\"&<img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def material():
    return gather_material(open_all([SHIPPED]), BUDGET, seed=0)


@pytest.fixture(scope="module")
def source(material):
    return page(material)


@pytest.mark.slow
def test_the_page_names_the_percentile_that_is_lowest(material):
    found = under(material, latency_percentile=95)
    assert "It has the lowest p95 latency with " in found.text
    assert "front by p95 latency" in found.text
    assert "with the lowest p95 latency for each accuracy" in found.text
    assert "mean latency for each" not in found.text


def under(material, **budget):
    """The page of the same answer, were its budget another."""
    asked = dataclasses.replace(material.advice.budget, **budget)
    advice = dataclasses.replace(material.advice, budget=asked)
    return Page(page(dataclasses.replace(material, advice=advice)))


def of(recordings, **given):
    return Page(page(gather_material(recordings, given, seed=0)))


@pytest.mark.slow
def test_the_numbers_are_those_of_advise(run, source):
    budget = ["--min-accuracy", "0.75", "--price", "2.5"]
    out = run.ok("advise", SHIPPED, *budget, "--json")
    advice, found = json.loads(out), Page(source)
    told = {k: v for k, v in found.values.items() if not k.startswith("runs.")}
    assert len(told) > 100
    for key, value in told.items():
        assert value == looked_up(advice, key), key
    for who in ("system_optimal", "compute_optimal"):
        for name, estimate in advice[who]["estimates"].items():
            if estimate is not None:
                assert found.values[f"{who}.estimates.{name}"] == estimate["value"]
    assert {f"regret.{n}" for n, e in advice["regret"].items() if e} <= set(told)
    fronts = len(advice["pareto"]) + len(advice["compute_pareto"])
    assert source.count('class="mark measured') > 12
    assert fronts > 10


@pytest.mark.slow
def test_the_numbers_are_those_of_show(run, material, source):
    found = Page(source)
    assert len(material.runs) == 12
    for index, each in enumerate(material.runs):
        out = run.ok("show", SHIPPED / each.recording, "--price", "2.5", "--json")
        shown = {"runs": {str(index): json.loads(out)["runs"][0]}}
        own = {k: v for k, v in found.values.items() if k.startswith(f"runs.{index}.")}
        assert f"runs.{index}.accuracy" in own
        for key, value in own.items():
            assert value == looked_up(shown, key), key
    assert found.values["runs.0.acceptance.accepted_per_position.0"] > 0.9


@pytest.mark.slow
def test_each_run_is_held_against_the_others_word(material, source):
    assert [each.why_not for each in material.foretold] == [None] * 12
    text = Page(source).text
    inside = 0
    for each, run in zip(material.foretold, material.runs, strict=True):
        predicted = each.predicted.latency_s["mean"]
        off = predicted.value / run.latency_s["mean"].value - 1
        assert f"{off * 100:+.1f} %" in text
        if not predicted.extrapolated:
            inside += 1
            assert abs(off) < 0.15
    assert inside >= 8


@pytest.mark.slow
def test_the_page_stands_by_itself(source):
    found = Page(source)
    assert len(source.encode()) < 500_000
    assert "http:" not in source and "https:" not in source
    assert "@import" not in source and "url(" not in source
    outside = {"src", "srcset", "action", "xlink:href"}
    assert not [each for each in found.attributes if each[1] in outside]
    links = [value for _, name, value in found.attributes if name == "href"]
    assert links and all(link.startswith("#") and link[1:] in found.ids for link in links)
    assert not found.tags & {"link", "iframe", "img", "object", "form"}
    assert "default-src 'none'" in source
    assert len(found.ids) == len(set(found.ids))
    assert "$" not in source.split("<title>")[0]


@pytest.mark.slow
def test_every_number_tells_its_meaning(source):
    for line in source.split("data-value=")[:-1]:
        element = line[line.rindex("<") :]
        assert 'tabindex="0"' in element
        assert "data-tip=" in element
    for word in ("system-optimal", "compute-optimal", "regret", "front", "interval"):
        assert f"<dt>{word}</dt>" in source


@pytest.mark.slow
def test_the_page_says_where_it_comes_from(material):
    at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    made = dataclasses.replace(material, command="ttscope report a -o b.html", written=at)
    text = Page(page(made)).text
    assert "On AMD EPYC, 2 cores. Recorded from 2026-11-25 01:04 UTC on." in text
    assert "written at 2026-01-02 03:04 UTC by ttscope report a -o b.html." in text


@pytest.mark.slow
def test_a_command_is_lines_that_can_be_pasted(material, source):
    text = Page(source).text
    assert "\\n" not in text
    command = text.partition("Start it with")[2].partition("and send ")[0]
    assert command.count("\n") > 2
    pasted = shlex.split(command.replace("\\\n", ""))
    assert pasted == shlex.split(material.advice.system_optimal.command)


@pytest.mark.slow
def test_names_are_escaped(tmp_path):
    folder = tmp_path / "a<b>&'\"x"
    write_recording(folder, simulate(problems=12, n=4))
    manifest = folder / "recording.json"
    (folder / "checksums.sha256").unlink()
    plain = json.loads(manifest.read_text())
    plain["models"][HOSTILE] = plain["models"].pop("toy") | {"name": HOSTILE}
    for engine in plain["engines"].values():
        engine.update(model=HOSTILE, vllm_version=HOSTILE, gpu=HOSTILE)
    plain["workload"]["name"] = HOSTILE
    plain["provenance"]["imported"] = {"format": HOSTILE}
    manifest.write_text(json.dumps(plain))
    source = page(gather_material([Recording.open(folder)], {}, seed=0))
    found = Page(source)
    assert source.count("<script>") == 1
    assert "img" not in found.tags
    assert not [each for each in found.attributes if each[1].startswith("on")]
    assert "<script>alert(1)</script>" in found.text
    assert "a<b>&'\"x" in found.text


def test_tags_escape_what_is_not_markup():
    assert tag("b", "<i>", title='"&') == '<b title="&quot;&amp;">&lt;i&gt;</b>'
    assert join([tag("i", "a"), "<", None]) == "<i>a</i>&lt;"
    assert tag("p", hidden=True, title=None, lang=False) == "<p hidden></p>"


@pytest.mark.slow
def test_a_single_recording_and_no_budget():
    found = of([Recording.open(next(SHIPPED.glob("demo-s-*-maj@16-*")))])
    assert "No limit was given, so that no configuration is recommended" in found.text
    assert "Run " not in found.text.split("Accuracy against what it takes")[0]
    assert "vllm serve" not in found.text
    assert "The fastest is demo/s with" in found.text
    assert "The most accurate is demo/s with" in found.text
    assert found.values["pareto.0.estimates.accuracy"] > 0
    assert "at least two complete recordings" in found.text
    assert "no run was profiled" in found.text
    assert "no run used speculative decoding" in found.text
    assert found.values["runs.0.energy_j.per_problem"] is None


@pytest.mark.slow
def test_nothing_fits():
    few = [Recording.open(path) for path in sorted(SHIPPED.glob("demo-s-*"))]
    found = of(few, min_accuracy="0.99", max_latency="20ms", price=2.5, max_cost="$0.00001")
    assert "Nothing fits the budget" in found.text
    assert "mean latency of at most 20 ms" in found.text
    assert found.values["near_misses.0.nearest"] < 0.99
    assert "system_optimal.estimates.accuracy" not in found.values


@pytest.mark.slow
def test_imported_outcomes_have_no_times_and_say_so(run, tmp_path):
    outcomes = FOREIGN / "samples_toy_sums_self.jsonl"
    assert run("import", outcomes, "-o", "r", "--verifier", "numeric")[0] == 0
    out = run.ok("report", "r", "-o", "r.html")
    assert "no recording holds engine steps" in out
    found = Page((tmp_path / "r.html").read_text())
    assert "No advice can be given." in found.text
    assert "Imported outcomes and servers watched from outside do not" in found.text
    assert found.values["runs.0.accuracy"] == 0.6
    assert found.values["runs.0.latency_s.mean"] is None


@pytest.mark.slow
def test_an_incomplete_run_is_shown_and_not_used(tmp_path):
    rows = simulate(problems=10, n=4)
    del rows["problems"][-1]["end"], rows["problems"][-1]["decided_at"]
    cut = write_recording(tmp_path / "cut", rows, complete=False)
    found = of([cut])
    assert "no measured recording is complete and holds answered problems" in found.text
    assert "incomplete: ended early (problems in flight" in found.text
    whole = [Recording.open(path) for path in sorted(SHIPPED.glob("demo-s-*"))]
    provenance = {"replayed": {"recording": "other", "seed": 0}}
    guess = write_recording(tmp_path / "guess", simulate(problems=4, n=2), provenance=provenance)
    found = of([*whole, cut, guess], min_accuracy="0.6")
    assert "Not used, being incomplete, predicted or without problems: cut, guess" in found.text
    assert f"{len(whole) + 1} recorded runs and 1 predicted run of" in found.text
    assert "system_optimal.estimates.accuracy" in found.values


@pytest.mark.slow
def test_kernels_and_collectives(tmp_path):
    trace = write(tmp_path / "t.json", document(device_events()))
    import_traces([trace], tmp_path / "r")
    found = of([Recording.open(tmp_path / "r")])
    assert found.values["runs.0.time_by_family.0.share"] == pytest.approx(0.4)
    for word in ("gemm", "all_reduce", "60.0 us", "33 %"):
        assert word in found.text, word


@pytest.mark.slow
def test_times_without_accuracy_have_no_charts_and_are_not_called_unmeasured():
    found = of([Recording.open(Path(__file__).parents[3] / "scripts" / "watched")])
    assert "No charts: accuracy was not measured" in found.text
    assert "No mean latency" not in found.text


def test_a_server_that_was_watched(tmp_path):
    with metrics_server() as server:
        watched, _ = attach(
            server, folder=tmp_path / "live", change=lambda: setattr(server, "started", "1.8e+09")
        )
    found = of([watched])
    assert "! 1 restart" in found.text
    assert "Servers that were watched" in found.text
    assert watched.name in found.text
    lead = found.text.index("nothing stands out") if "nothing stands" in found.text else -1
    lead = max(lead, found.text.find("no verdict"), found.text.find("queueing"))
    assert 0 < lead < found.text.index("No advice on a configuration: ")
    assert "No advice can be given." not in found.text


def test_what_a_server_was_seen_to_do_is_not_denied():
    numbers = SimpleNamespace(acceptance_length=None)
    server = SimpleNamespace(columns={}, numbers=numbers)
    assert "do not hold what the engine did step by step" in str(time_breakdown((), (server,)))
    assert "no run used speculative decoding" in str(
        speculation(Material(runs=(), watched=(server,)))
    )
    server = SimpleNamespace(
        columns={"end": "measured"}, numbers=SimpleNamespace(acceptance_length=2.1)
    )
    seen = Material(runs=(), watched=(server,))
    for text in map(str, (time_breakdown((), (server,)), speculation(seen))):
        assert "stands under Servers that were watched" in text
        assert "did step by step" not in text and "no run used" not in text


def test_the_shares_of_the_time_are_of_all_that_the_whole_holds():
    seconds = {"prefill": 1.0, "decode": 2.0, "mixed": 0.0, "other": 7.0, "idle": 0.0}
    engine = EngineConfig(model="m")
    run = Run(recording="r", complete=True, engine=engine, policy=None, seconds=seconds)
    text = Page(str(time_breakdown((run,)))).text
    assert "70 %" in text and "other" in text
    run = dataclasses.replace(run, seconds=seconds | {"other": 0.0})
    assert "other" not in Page(str(time_breakdown((run,)))).text


@pytest.mark.slow
def test_the_regret_told_is_of_what_is_optimised(material):
    text = under(material, optimise="cost").text
    assert re.search(r"but has \$0\.0+\d{3} \(\+[\d.]+ %\) more cost\.", text)
    assert re.search(r"but has \S+ ms \(\+[\d.]+ %\) more mean", Page(page(material)).text)


@pytest.mark.slow
def test_a_thousand_runs_stay_under_two_megabytes(material):
    many = dataclasses.replace(material, runs=material.runs * 84)
    source = page(many)
    assert len(source.encode()) < 2_000_000
    assert "908 more runs are left out here" in source


@pytest.mark.slow
def test_what_lies_outside_is_marked(material):
    beyond = dataclasses.replace(
        material.advice.system_optimal,
        estimates={
            name: None if e is None else dataclasses.replace(e, extrapolated=True)
            for name, e in material.advice.system_optimal.estimates.items()
        },
    )
    advice = dataclasses.replace(material.advice, system_optimal=beyond, pareto=(beyond,))
    found = page(dataclasses.replace(material, advice=advice))
    assert "Its numbers marked * lie outside what was measured." in found
    assert 'class="mark pick beyond"' in found
    assert 'class="n beyond"' in found


def test_the_line_of_several_servers_names_the_first_with_a_bottleneck():
    found = Finding(kind="queueing", evidence="8 wait")
    verdicts = [Verdict(engine="", found=each) for each in ((), (found,))]
    calm, busy = (
        SimpleNamespace(
            verdict=verdict, engine=EngineConfig(model="m", other=(("url", f"http://{at}"),))
        )
        for at, verdict in zip("ab", verdicts, strict=True)
    )
    for watched, line in (
        ((calm, busy), "m at http://b: queueing: 8 wait"),
        ((calm, calm), "m at http://a: nothing stands out"),
        ((busy,), "queueing: 8 wait"),
    ):
        material = SimpleNamespace(advice=None, of_live=True, watched=watched)
        assert headline(material) == line


@pytest.mark.slow
def test_command_line(run, tmp_path):
    own = tmp_path / "one"
    shutil.copytree(next(SHIPPED.glob("demo-s-*-maj@16-*")), own)
    out = run.clean("report", own, "-o", "r.html", "--min-accuracy", "0.6", "--json")
    told = json.loads(out)
    written = (tmp_path / "r.html").read_bytes()
    assert told["report"] == "r.html"
    assert told["bytes"] == len(written)
    assert told["advice"]["budget"]["min_accuracy"] == 0.6
    assert len(told["runs"]) == 1
    code, out, _ = run("report", own, "-o", "r.html", "--min-accuracy", "0.6")
    assert code == 0
    assert out.startswith("wrote r.html (")
    assert "Run demo/s" in out
    again = (tmp_path / "r.html").read_bytes()
    # Sums of several threads may differ in their last digits.
    differs = re.compile(rb"(?<=\.\d{9})\d+|This page was written.*?</code>")
    assert differs.sub(b"", again) == differs.sub(b"", written)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "r.pdf"], 2, "-o r.pdf: name a .html file"),
        (["-o", "no/r.html"], 1, "no/r.html: cannot be written (No such file"),
        (["-o", "r.html", "--max-latency", "banana"], 2, "--max-latency banana"),
        (["-o", "r.html", "--max-cost", "$1"], 2, "needs --price"),
        (["-o", "r.html", "--max-energy", "5J"], 2, "no recording holds power"),
        ([], 2, "Missing option"),
    ],
)
def test_errors_are_one_line(run, arguments, code, message):
    one = next(SHIPPED.glob("demo-s-*-greedy-t0-*"))
    assert message in run.refused("report", one, *arguments, code=code)


def test_a_folder_that_is_absent_is_said_before_anything_is_read(run):
    refused = run.refused("report", "nothing", "-o", "no/r.html", code=1)
    assert "no/r.html: cannot be written (No such file" in refused


def test_report_takes_the_budget_of_advise():
    options = {
        verb: {option for parameter in loaded(verb).params for option in parameter.opts}
        for verb in ("advise", "report")
    }
    assert options["advise"] - options["report"] == {
        "--present", "--plan", "--verify", "--explain", "--with", "--interval",
        "--drafts", "--speculative", "--acceptance",
    }  # fmt: skip
    assert options["report"] <= options["advise"]


def test_axes():
    axis = PixelAxis(low=0.0, high=10.0, start=50.0, end=450.0)
    assert (axis.at(5.0), axis.at(-1.0), axis.at(99.0)) == (250.0, 50.0, 450.0)
    log = PixelAxis(low=1.0, high=100.0, start=0.0, end=100.0, log=True)
    assert log.at(10.0) == pytest.approx(50.0)
    assert log.marks() == [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
    assert [money(most)[1] for most in (2.0, 1e-3, 1e-7)] == ["$", "$ per 1,000", "$ per million"]


def test_a_watched_run_is_held_against_what_was_foretold_of_it():
    """Whoever foretells it calls its policy `as sent`, and a watch tells of none."""
    told = Estimate(value=2.0, low=1.5, high=2.5, unit="s")
    engine = EngineConfig(model="m", mode="server")
    run = Run(recording="live", complete=True, engine=engine, policy=None, latency_s={"mean": told})
    predicted = dataclasses.replace(run, policy=AS_SENT)
    foretold = Foretold(recording="live", engine=engine, policy=AS_SENT, predicted=predicted)
    material = SimpleNamespace(runs=[run], foretold=[foretold], not_foretold=None)
    html = str(predicted_against_measured(material))
    assert "Not predicted" not in html and "yes" in html
