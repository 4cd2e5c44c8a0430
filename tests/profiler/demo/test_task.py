"""The bundled reasoners' task: problems, verifier, tokenizer and weights."""

import json
import subprocess
import sys

import pytest

from profiler.demo.task import (
    DIGITS,
    LEVELS,
    MODELS,
    MODULUS,
    PREAMBLE,
    PRIMES,
    TERMS,
    DemoProblem,
    answer_of,
    model_path,
    problems,
    written,
)
from scripts.reasoners.tokenizer import CHAT_TEMPLATE, VOCABULARY_SIZE, decode, encode


def terms_in(problem: DemoProblem) -> list[int]:
    """Read the terms back from the prompt: every second character is a number."""
    row = problem.prompt.removeprefix(PREAMBLE)
    return [DIGITS.index(digit) or 36 for digit in row[1::2]]


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
        assert (DIGITS.index(problem.expected) or 36) == product % MODULUS


def test_a_known_problem() -> None:
    known = problems(1, seed=1)[0]
    assert known.prompt == "aAb8cI"
    assert terms_in(known) == [10, 8, 18]
    assert known.expected == "Y"  # 10 * 8 * 18 = 1440 = 38 * 37 + 34


def test_every_number_has_its_own_character() -> None:
    assert [written(number) for number in (1, 9, 10, 35, 36)] == ["1", "9", "A", "Z", "0"]
    assert len({written(number) for number in range(1, MODULUS)}) == 36


def test_levels_are_taken_in_turn_and_are_the_number_of_terms() -> None:
    made = problems(25, seed=2, levels=(4, 9))
    assert [problem.level for problem in made[:3]] == [4, 9, 4]
    assert all(len(terms_in(problem)) == problem.level for problem in made)
    assert {problem.level for problem in problems(100, seed=2)} == set(LEVELS)


def test_every_term_is_a_product_of_two_or_three_primes() -> None:
    for term in TERMS:
        count, rest = 0, term
        for prime in PRIMES:
            while rest % prime == 0:
                count, rest = count + 1, rest // prime
        assert rest == 1 and 2 <= count <= 3
    assert max(TERMS) < MODULUS


def test_the_preamble_changes_only_the_prompt() -> None:
    plain, led = problems(30, seed=6), problems(30, seed=6, preamble=True)
    for a, b in zip(plain, led, strict=True):
        assert a.expected == b.expected
        assert b.prompt == PREAMBLE + a.prompt


@pytest.mark.parametrize("levels", [(), (LEVELS[-1] + 1,)])
def test_levels_out_of_range_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        problems(3, seed=0, levels=levels)


def test_an_unknown_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="xl"):
        model_path("xl")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("+b6c9=HaC=J</think>J", "J"), ("</think>0", "0"), ("+b6</think>1</think>2", "2"),
        ("</think>7<eos>", "7"), ("+b6c9=H", None), ("</think>", None), ("</think>07", None),
        ("</think>a", None), ("</think>7 ", None), ("</think>٧", None), ("7", None), ("", None),
    ],
)  # fmt: skip
def test_answer_of(text: str, answer: str | None) -> None:
    assert answer_of(text) == answer


def test_the_preamble_is_256_tokens() -> None:
    assert len(encode(PREAMBLE)) == 256


def test_encode_and_decode_are_inverse() -> None:
    text = "<bos>" + problems(1, seed=0)[0].prompt + "!<think>+aC2=Y</think>Y<eos>"
    assert decode(encode(text)) == text


def test_a_character_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="no token for 'z'"):
        encode("z4")


@pytest.mark.parametrize("size", MODELS)
def test_the_saved_tokenizer_reads_text_as_ours_does(size: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    saved = tokenizers.Tokenizer.from_file(str(model_path(size) / "tokenizer.json"))
    assert saved.get_vocab_size() <= VOCABULARY_SIZE
    for problem in problems(20, seed=5, preamble=True):
        text = f"<bos>{problem.prompt}!<think>+aCb6=Z-c93=I</think>I<eos>"
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
