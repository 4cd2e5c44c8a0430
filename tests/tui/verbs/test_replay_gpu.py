"""`ttscope replay --gpu`: what is said, and what is refused in one line."""

import json

import pytest

from advisor.step_time.host.spread import FirstTokens
from advisor.step_time.prior import recalibration
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.tables import tables_folder
from benchmarks.made.foreign_files import vllm_bench
from tests.advisor.step_time.prior.prior_files import DEVICE, write_prior
from tests.tui.model_config import llama_config
from tui.verbs.demo import SHIPPED

pytestmark = pytest.mark.slow

VOTES = SHIPPED / "demo-s-tp1-seqs64-maj@16-t0.8-a1b9005e"
CONFIG = llama_config()


@pytest.fixture
def model(tmp_path, prior):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "model"


def test_the_steps_of_a_gpu_that_was_not_measured(run, model):
    out = run.ok("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--explain")
    paths = str(model), str(VOTES)
    assert max(len(line) for line in out.splitlines() if not any(p in line for p in paths)) <= 80
    assert "steps of the prior of test_gpu, model" in " ".join(out.split())
    assert "no run of this GPU has checked it: the interval is that of" in " ".join(out.split())
    assert "*" not in out  # nothing lies outside the tables


def test_what_nobody_set_is_said_to_be_assumed(run, model):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--explain")
    out = run.ok(*asked)
    told = " ".join(out.split())
    # Recorded with max_num_seqs 64, and vLLM's default of max_num_batched_tokens on a CPU.
    assert "engine.max_num_batched_tokens 4096 -> 8192, engine.block_size 128 -> 16" in told
    assert "enforce_eager false, max_num_batched_tokens 8,192. --set says others" in told
    assert "max_num_seqs 64," not in told
    assert "KV blocks without limit, as the GPU's memory is not known" in told
    _, out, _ = run(*asked, "--set", "engine.max_num_batched_tokens=4096")
    told = " ".join(out.split())
    assert "engine.max_num_batched_tokens" not in told
    assert "enforce_eager false. --set says others" in told


def test_a_config_of_any_name_is_read(run, model, tmp_path):
    whole = tmp_path / "l8.json"
    whole.write_text(json.dumps(CONFIG))
    arguments = ("replay", VOTES, "--gpu", "test_gpu", "--json", "--model-config")
    documents = [json.loads(run(*arguments, path)[1]) for path in (whole, model)]
    one, two = (each["predicted"]["latency_s"] for each in documents)
    assert one == two
    (note,) = [note for note in documents[0]["notes"] if note.startswith("prior: ")]
    assert "step times of l8 on" in note
    assert any("recorded in float32. The steps are priced" in n for n in documents[0]["notes"])
    for text, reason in (
        (json.dumps({k: v for k, v in CONFIG.items() if k != "hidden_size"}), "no field hidden_si"),
        ("[1]", "holds no JSON object"),
        ("{", "is no JSON"),
    ):
        whole.write_text(text)
        assert reason in run.refused(*arguments, whole, code=2)


def test_the_document_marks_what_is_prior(run, model):
    out = run.ok(
        "replay", VOTES, "--gpu", "test_gpu", "--model-config", model / "config.json", "--json",
        "--set", "engine.tensor_parallel_size=2",
    )  # fmt: skip
    found = json.loads(out)
    latency = found["predicted"]["latency_s"]["mean"]
    assert latency["low"] < latency["value"] < latency["high"]
    engine = found["predicted"]["config"]["engine"]
    assert (engine["gpu"], engine["tensor_parallel_size"]) == (DEVICE, 2)
    assert engine["block_size"] == 16  # what a CPU's engine was given is vLLM's default
    assert any(note.startswith("prior: ") for note in found["notes"])


def test_a_first_token_comes_no_later_than_the_last(run, model, monkeypatch):
    far = FirstTokens(low=0.7, usual=1.0, high=9.0, points=12, alike=True)
    monkeypatch.setattr(recalibration, "first_tokens_of", lambda *_: far)
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--json")
    found = json.loads(run.ok(*asked, "--set", "engine.max_num_seqs=1"))["predicted"]
    for each in ("mean", "p50", "p95"):  # most of it is spent waiting for others
        assert found["ttft_s"][each]["high"] == found["latency_s"][each]["high"]


def test_a_cache_and_a_dtype_that_were_not_recorded_are_priced(run, model):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--explain")
    set_to = ("--set", "engine.kv_cache_dtype=fp8", "--set", "engine.dtype=bfloat16")
    found = json.loads(run.ok(*asked, *set_to, "--json"))
    assert (
        "the samples were recorded with dtype float32, kv_cache_dtype float32 and the steps are "
        "those of bfloat16, fp8: such a server may answer otherwise"
    ) in found["notes"]
    message = run.refused(*asked, "--set", "engine.dtype=float8")
    assert "engine.dtype=float8: the tables are bfloat16's. Set engine.dtype=bfloat16" in message


def test_sampling_within_top_p_is_priced_with_the_samples_that_there_are(run, model):
    """Lengths are the recorded ones: only sorting the logits is added."""
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--json", "--explain")
    old = ("--set", "engine.vllm_version=0.11.0")
    plain, within = (
        json.loads(run.ok(*asked, *old, *more)) for more in ((), ("--set", "policy.top_p=0.9"))
    )
    one, other = (each["predicted"]["tpot_s"]["mean"]["value"] for each in (plain, within))
    assert other > one
    tokens = [each["predicted"]["tokens_per_problem"]["value"] for each in (plain, within)]
    assert tokens[0] == tokens[1]
    said = "the samples were recorded with top_p 1 and the steps are those of 0.9"
    assert any(said in note for note in within["notes"])
    assert not any("top_p" in note for note in plain["notes"])


def test_a_model_that_is_not_known_says_what_can_still_be_done(run, model):
    config = CONFIG | {"layer_types": ["warp_attention"] * 4}
    (model / "config.json").write_text(json.dumps(config))
    asked = ("replay", VOTES, "--gpu", "test_gpu")
    message = run.refused(*asked, "--model-config", model)
    assert "has layers of the kind warp_attention, so that its layers are not known" in message
    assert "`ttscope show` says what was measured" in message
    message = run.refused(*asked, "--set", "engine.model=other")
    assert "--model-config (`ttscope show` says what was measured)" in message


def test_tables_may_lie_anywhere(run, model, tmp_path, monkeypatch):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--json")
    installed = json.loads(run(*asked)[1])
    other = write_prior(tmp_path / "other" / "systems", version="0.12.0")
    monkeypatch.setattr(prior_tables, "PRIOR", "no_such_package_of_tables")
    monkeypatch.setattr(prior_tables, "tables_folder", tables_folder)
    assert run(*asked)[0] == 1
    for folder in (other, other.parent):
        out = run.ok(*asked, "--tables", folder)
        found = json.loads(out)
        assert found["predicted"]["latency_s"] == installed["predicted"]["latency_s"]
        assert any("test_gpu, vLLM 0.12.0)" in note for note in found["notes"])
    text = " ".join(run(*asked[:-1], "--tables", other)[1].split())
    assert "steps of the prior of test_gpu, model" in text
    for more, message in (
        (("--tables", model), f"--tables {model}: has no folder data of systems"),
        (("--tables", other, "--gpu", "h100"), "a replay is of one"),
    ):
        assert message in run.refused(*asked, *more, code=2)
    assert "--tables goes with --gpu" in run.refused("replay", VOTES, "--tables", other, code=2)


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (("--gpu", "h100"), {},
         "--gpu h100: no operator tables. Did you mean h100_pcie? Choose one of test_gpu"),
        (("--gpu", "test_gpu", "--operators", "x"), {}, "--gpu excludes --operators"),
        (("--gpu", "test_gpu", "--num-hidden-layers", "2"), {}, "--gpu excludes"),
        (("--model-config", "model"), {}, "--model-config goes with --gpu"),
        (("--measured", "itl=2ms@4"), {}, "--measured goes with --gpu, whose prior it corrects"),
        (("--collectives", "x"), {}, "--collectives goes with --operators"),
        (("--gpu", "test_gpu", "--gpu", "h100"), {}, "a replay is of one. Give one at a time"),
        (("--gpu", "test_gpu", "--model-config", "nowhere"), {},
         "nowhere cannot be read (No such file or directory)"),
        (("--gpu", "test_gpu", "--model-config", "model"), {"num_hidden_layers": None},
         "config.json: no field num_hidden_layers. Give a model's config.json"),
        (("--gpu", "test_gpu", "--model-config", "model"), {"hidden_size": [512]},
         "config.json: hidden_size is a list, not a whole number from 1 up"),
        (("--gpu", "test_gpu", "--model-config", "model"),
         {"quantization_config": {"load_in_4bit": True}},
         "has weights quantised as bitsandbytes, in a form that is not known"),
        (
            ("--gpu", "test_gpu", "--model-config", "model", "--set", "engine.quantization=gguf"),
            {},
            "--gpu: engine.quantization=gguf, and model has plain weights",
        ),
        (("--gpu", "test_gpu", "--model-config", "model"),
         {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
         "no table of experts (moe/moe_perf.parquet)"),
    ],
)  # fmt: skip
def test_what_is_not_priced_is_one_line(run, model, arguments, change, message):
    (model / "config.json").write_text(json.dumps(CONFIG | change))
    assert message in run.refused("replay", VOTES, *arguments)


@pytest.fixture
def measured(run, tmp_path):
    """An import of requests that a client measured of the model `m`."""
    vllm_bench(tmp_path / "client.json", [(0.1 * i, 64, 20, 0.02, 0.039) for i in range(8)])
    run.ok("import", tmp_path / "client.json", "-o", tmp_path / "measured")
    return tmp_path / "measured"


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (("--gpu", "test_gpu"), "it is of m, and model is asked about"),
        ((), "it is of m, and demo/s is asked about"),
    ],
)
def test_an_import_that_teaches_nothing_is_refused(run, model, measured, gpu, why):
    asked = (*gpu, "--model-config", model) if gpu else ()
    message = run.refused("replay", VOTES, *asked, "--with", measured, code=2)
    assert f"--with {measured}: teaches no step times: {why}. Leave it out" in message
    named = ("--set", "engine.model=m", "--gpu", "test_gpu", "--model-config", model)
    out = run.ok("replay", measured, *named, "--with", measured, "--explain")
    assert "recalibrated by measured" in " ".join(out.split())


def test_a_replay_elsewhere_is_no_error_of_what_a_client_measured(run, model, measured):
    out = run.ok("replay", measured, "--gpu", "test_gpu", "--model-config", model)
    client = out[out.index("client ") : out.index("measured: on the engine")]
    assert "TTFT mean 20.0 ms" in " ".join(client.split()) and "ITL mean" in client
    assert "%" not in client and "off" not in client


def test_three_notes_are_printed_the_weightiest_first(run, model):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model)
    notes = json.loads(run.ok(*asked, "--json"))["notes"]
    assert notes[0].startswith("the samples were recorded in float32")  # not what is asked about
    assert notes[1].startswith("KV blocks without limit")
    assert notes[2].startswith("accuracy 0.948 recorded and 0.915 replayed")  # of the same samples
    assert notes[3].startswith("recorded TTFT starts when")
    assert notes[4].startswith("beyond its kernels")  # the interval is as wide as that
    assert len(notes) > 8
    out, every = run.ok(*asked), " ".join(run.ok(*asked, "--explain").split())
    assert out.count("\nnote ") == 3
    assert f"--explain gives the rest ({len(notes) - 3} notes)" in out
    assert all(f"note {note}" in every for note in notes) and "--explain" not in every
    shown = " ".join(out.split())
    assert [f"note {note}" in shown for note in notes] == [True] * 3 + [False] * (len(notes) - 3)


def test_what_makes_two_columns_differ_is_printed_where_they_do(run):
    """Of the same samples the replay has another accuracy and another TTFT."""
    shown = " ".join(run.ok("replay", VOTES, "--set", "policy.n=8").split())
    assert "note accuracy 0.948 recorded and 0.915 replayed are of the same samples" in shown
    assert "note recorded TTFT starts when a sample reached the engine" in shown
    assert "--explain gives the rest" in shown


def test_what_an_import_does_not_tell_is_not_known(run, model, measured):
    asked = ("--gpu", "test_gpu", "--model-config", model, "--set")
    told = " ".join(run.ok("replay", measured, *asked, "engine.tensor_parallel_size=2").split())
    assert "asked engine.tensor_parallel_size - -> 2, engine.max_num_seqs - -> 256" in told
    assert "1 -> 2" not in told


def test_without_the_package_the_extra_is_named(run, monkeypatch):
    monkeypatch.setattr(prior_tables, "PRIOR", "no_such_package_of_tables")
    assert "-m pip install 'aiconfigurator-core" in run.refused(
        "replay", VOTES, "--gpu", "h100_sxm", code=1
    )


def test_a_power_cap_saves_energy(run, model):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model)
    assert "boards capped at 200 W" in " ".join(run.ok(*asked, "--power-cap", "200").split())
    energy = [
        json.loads(run.ok(*asked, *cap, "--json"))["predicted"]["energy_j"]["per_token"]
        for cap in ((), ("--power-cap", "100"))
    ]
    assert energy[1]["value"] < energy[0]["value"]


def test_joules_a_token_and_electricity_are_told(run, model):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model)
    price = ("--kwh-price", "0.2", "--pue", "1.5")
    told = " ".join(run.ok(*asked, *price).split())
    assert "energy a token: 10.9 mJ [" in told
    assert "at $0.2 per kWh and a PUE of 1.5" in told
    found = json.loads(run.ok(*asked, *price, "--json"))
    joules = found["predicted"]["energy_j"]["per_problem"]["value"]
    usd = found["electricity_usd_per_thousand_problems"]["value"]
    assert usd == pytest.approx(joules * 1e3 * 1.5 * 0.2 / 3.6e6)
    assert "no recording holds power" in run.refused("replay", VOTES, *price, code=2)


def test_one_measured_wattage_narrows_the_energy(run, model):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model, "--json")
    energy = [
        json.loads(run.ok(*asked, *told))["predicted"]["energy_j"]["per_problem"]
        for told in ((), ("--measured", "watts=150@64"))
    ]
    assert energy[1]["value"] < energy[0]["value"]
    wide, narrow = (each["high"] / each["low"] for each in energy)
    assert narrow < wide


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--power-cap", "501"), f"--power-cap 501: above the 500 W that {DEVICE} may draw"),
        (("--power-cap", "-1"), f"--power-cap -1: not above the 70 W that {DEVICE} draws idle"),
        (("--power-cap", "nan"), "--power-cap nan: above the 500 W"),
        (("--measured", "watts=600@8"), "--measured watts 600: above the 500 W"),
        (("--measured", "watts=50@8"), "--measured watts 50: not above the 70 W"),
        (("--measured", "watts=@8"), "Write watts=520@32"),
        (("--measured", "watts=300@0"), "requests in flight are from 1 to 8,192"),
        (("--measured", "watts=300@8", "--measured", "watts=310@16"), "give one wattage"),
    ],
)
def test_watts_that_no_board_has_are_one_line(run, model, given, message):
    asked = ("replay", VOTES, "--gpu", "test_gpu", "--model-config", model)
    assert message in run.refused(*asked, *given, code=2)


def test_a_cap_without_a_gpu_is_one_line(run):
    assert "goes with --gpu" in run.refused("replay", VOTES, "--power-cap", "300", code=2)
    limits = ("--min-accuracy", "0.5", "--power-cap", "300")
    assert "goes with --gpu" in run.refused("advise", VOTES, *limits, code=2)
