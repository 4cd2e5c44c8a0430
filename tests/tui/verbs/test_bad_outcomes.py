"""Inputs of outcomes that cannot be read: one line, the right exit code, nothing kept."""

import gzip
import json
import zipfile
from io import BytesIO

import pytest

GOOD = {"problem_id": "p", "sample_index": 0, "correct": True, "answer": "4", "output_tokens": 9}
ROW = json.dumps(GOOD)
READ, USED = 1, 2  # exit codes: the file cannot be read, the command was not meant so
INSPECT = {
    "version": 2, "status": "success", "eval": {"task": "t", "model": "m"}, "samples": [],
}  # fmt: skip
LM_EVAL = {"doc_id": 0, "doc": {}, "target": "4", "arguments": {}, "resps": [["4"]],
           "filtered_resps": ["4"], "exact_match": 1.0}  # fmt: skip


def without(name):
    return json.dumps({key: value for key, value in GOOD.items() if key != name})


def changed(**values):
    return json.dumps(GOOD | values)


def zipped(name="header.json", text=b"{}"):
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, text)
    return held.getvalue()


# What is in the file, the exit code, and what the line says.
FILES = {
    "empty": ("", READ, "the file is empty"),
    "blank lines": ("\n\n  \n", READ, "o.jsonl"),
    "prose": ("accuracy was .75\n", READ, "in a format that ttscope knows"),
    "binary": (b"\0\1\2\3" * 400, READ, "o.jsonl"),
    "CSV": ("problem_id,sample_index,correct\np,0,true\n", READ, "one JSON object a line"),
    "TSV": ("problem_id\tanswer\tcorrect\np\t4\ttrue\n", READ, "one JSON object a line"),
    "array": (f"[{ROW}]", READ, "one JSON object a line"),
    "array over lines": (f"[\n{ROW},\n{ROW}\n]\n", READ, "one JSON object a line"),
    "pretty array": (json.dumps([GOOD], indent=2), READ, "one JSON object a line"),
    "array of other names": ('[{"id": 1, "answer": "4"}]', READ, "one JSON object a line"),
    "one object of many": (json.dumps({"results": [GOOD]}), READ, "one JSON object a line"),
    "pretty object": (json.dumps(GOOD, indent=2), READ, "one JSON object a line"),
    "text in quotes": (json.dumps(ROW) + "\n", READ, "o.jsonl"),
    "single quotes": (str(GOOD) + "\n", READ, "o.jsonl"),
    "utf-16": ((ROW + "\n").encode("utf-16"), READ, "UTF-16"),
    "cut in the first line": (ROW[:40], READ, "not JSON"),
    "gzip cut off": (gzip.compress(ROW.encode())[:12], READ, "o.jsonl"),
    "gzip of nothing": (gzip.compress(b""), READ, "empty"),
    "xz": (b"\xfd7zXZ\x00" + b"\0" * 60, READ, "o.jsonl"),
    "zip of something else": (zipped("notes.txt", b"x"), READ, "o.jsonl"),
    "zip cut off": (zipped()[:40], READ, "o.jsonl"),
    "no problem_id": (without("problem_id"), READ, "problem_id"),
    "other names": (
        '{"id": "p", "sample": 0, "tokens": 9}\n' * 2,
        READ,
        "without problem_id, sample_index, correct",
    ),
    "only the problem's name": (
        '{"problem_id": "p", "sample": 0}\n',
        READ,
        "without sample_index, correct",
    ),
    "no sample_index": (without("sample_index"), READ, "without sample_index"),
    "no correct": (without("correct"), READ, "without correct"),
    "problem_id null": (changed(problem_id=None), READ, "problem_id is neither"),
    "problem_id a list": (changed(problem_id=["p"]), READ, "problem_id is neither"),
    "problem_id a fraction": (changed(problem_id=1.5), READ, "problem_id is neither"),
    "sample_index below 0": (changed(sample_index=-1), READ, "no whole number"),
    "sample_index text": (changed(sample_index="a"), READ, "no whole number"),
    "correct text": (changed(correct="yes"), READ, "neither true, false nor null"),
    "correct a share": (changed(correct=0.5), READ, "neither true, false nor null"),
    "log without samples": (json.dumps(INSPECT), READ, "o.jsonl"),
    "log without a header": (json.dumps({"samples": [{"id": 1}]}), READ, "o.jsonl"),
    "document without responses": (
        json.dumps({**LM_EVAL, "resps": [], "filtered_resps": []}), READ, "o.jsonl",
    ),
}  # fmt: skip
# Options beside a sound file.
OPTIONS = {
    "verifier of plain outcomes": (("--verifier", "exact"), "JSONL has none. Leave it out"),
    "a file twice": (("o.jsonl",), "hold the same"),
    "a benchmark's number": (("--run", "1"), "--run is for requests"),
    "a score": (("--score", "nosuch"), "--score chooses a metric or scorer"),
    "an endless limit": (("--limit", "inf"), "--limit must be above 0 and finite"),
    "no limit": (("--limit", "nan"), "--limit must be above 0"),
    "no number": (("--temperature", "warm"), "temperature"),
    "a limit below a sample": (("--max-tokens", "8"), "8: a sample has 9 output tokens"),
    "no model": (("--model", " "), "--model: wants the model's name"),
    "a temperature below 0": (("--temperature", "-1"), "-1: wants a number from 0"),
    "a temperature that is none": (("--temperature", "nan"), "--temperature nan: wants"),
    "a nucleus of nothing": (("--top-p", "0"), "--top-p 0: wants a number above 0"),
    "a nucleus of more than all": (("--top-p", "1.5"), "--top-p 1.5: wants"),
    "no tokens": (("--max-tokens", "0"), "--max-tokens 0: wants"),
    "no prompt": (("--prompt-tokens", "0"), "--prompt-tokens 0: wants a whole number"),
    "half a token": (("--prompt-tokens", "1.5"), "--prompt-tokens 1.5: wants a whole number"),
    "lengths in no field": (("--prompt-tokens", "input"), "no line of o.jsonl has it"),
    "no config": (("--model-config", "nowhere.json"), "nowhere.json cannot be read"),
    "config of no model": (("--model-config", "o.jsonl"), "--model-config o.jsonl"),
    "a folder that is a file": (("-o", "o.jsonl"), "o.jsonl"),
}  # fmt: skip
CASES = [
    *(pytest.param(text, (), code, says, id=name) for name, (text, code, says) in FILES.items()),
    *(
        pytest.param(ROW + "\n", options, USED, says, id=name)
        for name, (options, says) in OPTIONS.items()
    ),
]


@pytest.mark.parametrize(("content", "options", "code", "says"), CASES)
def test_it_is_refused_in_a_line(run, tmp_path, content, options, code, says):
    file = tmp_path / "o.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = file.read_bytes()
    where = () if "-o" in options else ("-o", "r")
    err = run.refused("import", "o.jsonl", *options, *where, code=code)
    assert err.startswith("ttscope: ") and says in err and len(err) < 400, err
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["o.jsonl"]
