"""The bundled reasoners' task: problems, verifier, tokenizer and weights."""

import json
import re
import subprocess
import sys

import pytest

from profiler.demo.task import (
    LEVELS,
    MODELS,
    PREAMBLE,
    TERMS,
    DemoProblem,
    answer_of,
    model_path,
    problems,
)
from profiler.demo.tokenizer import CHAT_TEMPLATE, VOCABULARY_SIZE, decode, encode


def terms_in(problem: DemoProblem) -> list[int]:
    """Read the terms back from the prompt, units digit first."""
    row = problem.prompt.removeprefix(PREAMBLE)
    return [int(tens + units) for units, tens in re.findall(r"[a-z](\d)(\d)", row)]


def test_a_seed_always_gives_the_same_problems() -> None:
    assert problems(40, seed=3) == problems(40, seed=3)
    assert problems(40, seed=3)[:10] == problems(10, seed=3)
    assert problems(40, seed=3) != problems(40, seed=4)


def test_problem_ids_differ_within_a_set() -> None:
    assert len({problem.problem_id for problem in problems(200, seed=1)}) == 200


def test_expected_answers_agree_with_plain_arithmetic() -> None:
    for problem in problems(200, seed=8):
        product = 1
        for term in terms_in(problem):
            product *= term
        assert problem.expected == f"{product % 97:02d}"[::-1]


def test_a_known_problem() -> None:
    known = problems(1, seed=1)[0]
    assert known.prompt == "a01b53c36."
    assert terms_in(known) == [10, 35, 63]
    assert known.expected == "13"  # 10 * 35 * 63 = 22050 = 227 * 97 + 31


def test_levels_are_taken_in_turn_and_are_the_number_of_terms() -> None:
    made = problems(25, seed=2, levels=(4, 9))
    assert [problem.level for problem in made[:3]] == [4, 9, 4]
    assert all(len(terms_in(problem)) == problem.level for problem in made)
    assert {problem.level for problem in problems(100, seed=2)} == set(LEVELS)


def test_every_term_is_a_product_of_one_digit_factors() -> None:
    for term in TERMS:
        rest = term
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
    assert max(TERMS) < 97


def test_effort_and_preamble_change_only_the_prompt() -> None:
    plain = problems(30, seed=6)
    long = problems(30, seed=6, effort="high")
    led = problems(30, seed=6, preamble=True)
    for a, b, c in zip(plain, long, led, strict=True):
        assert a.expected == b.expected == c.expected
        assert a.prompt.endswith(".") and b.prompt == a.prompt[:-1] + "!"
        assert c.prompt == PREAMBLE + a.prompt


@pytest.mark.parametrize(
    "arguments", [{"effort": "huge"}, {"levels": ()}, {"levels": (LEVELS[-1] + 1,)}]
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"effort|levels"):
        problems(3, seed=0, **arguments)  # type: ignore[arg-type]


def test_an_unknown_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="xl"):
        model_path("xl")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("b36c51=27a42=97.</think>97", "97"),
        ("</think>07", "07"),
        ("b36</think>11</think>12", "12"),
        ("</think>07<eos>", "07"),
        ("b36c51=27", None),
        ("</think>", None),
        ("</think>7", None),
        ("</think>073", None),
        ("</think>0a", None),
        ("</think>07 ", None),
        ("</think>٠٧", None),
        ("07", None),
        ("", None),
    ],
)
def test_answer_of(text: str, answer: str | None) -> None:
    assert answer_of(text) == answer


def test_the_preamble_is_256_tokens() -> None:
    assert len(encode(PREAMBLE)) == 256


def test_encode_and_decode_are_inverse() -> None:
    text = "<bos>" + problems(1, seed=0, effort="high")[0].prompt + "<think>a42*8=91</think>91<eos>"
    assert decode(encode(text)) == text


def test_a_character_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="no token for 'A'"):
        encode("A42")


@pytest.mark.parametrize("size", MODELS)
def test_the_saved_tokenizer_reads_text_as_ours_does(size: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    saved = tokenizers.Tokenizer.from_file(str(model_path(size) / "tokenizer.json"))
    assert saved.get_vocab_size() <= VOCABULARY_SIZE
    for problem in problems(20, seed=5, effort="high", preamble=True):
        text = f"<bos>{problem.prompt}<think>a42b36*7=11</think>11<eos>"
        ids = saved.encode(text, add_special_tokens=False).ids
        assert ids == encode(text)
        assert saved.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("size", MODELS)
def test_a_model_folder_is_complete(size: str) -> None:
    folder = model_path(size)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["max_position_embeddings"] == 1024
    assert config["num_hidden_layers"] == MODELS[size]["layers"]
    assert config["hidden_size"] == MODELS[size]["hidden"]
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    weights = (folder / "model.safetensors").stat().st_size
    assert weights == pytest.approx(2 * MODELS[size]["parameters"], rel=0.02)


def test_the_weights_are_under_7_mb_together() -> None:
    files = [path for size in MODELS for path in model_path(size).rglob("*")]
    assert sum(path.stat().st_size for path in files) < 7_000_000


def test_asking_for_problems_loads_no_heavy_library() -> None:
    code = "import sys, profiler.demo.task as t; t.problems(3, seed=0); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"numpy", "torch", "transformers", "vllm", "polars"}
