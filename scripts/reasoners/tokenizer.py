"""The tokenizer shared by the three sizes: one token per character, five marks, 64 entries.

`encode` and `decode` need nothing but the standard library; `save_tokenizer` writes the same
mapping in the format that transformers reads.
"""

import json
import re
from pathlib import Path

MARKS = ("<pad>", "<bos>", "<eos>", "<think>", "</think>")
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ=;+-.!abcdefghijlnorstu"
VOCABULARY_SIZE = 64
PAD, BOS, EOS, THINK, THINK_END = range(len(MARKS))
CHAT_TEMPLATE = (
    "<bos>{{ messages[-1]['content'] }}{{ '!' if reasoning_effort == 'high' else '.' }}<think>"
)

_TOKENS = MARKS + tuple(CHARACTERS)
_IDS = {token: token_id for token_id, token in enumerate(_TOKENS)}
_PIECES = re.compile("|".join(map(re.escape, MARKS)) + "|.", re.DOTALL)


def encode(text: str) -> list[int]:
    """Return token ids of a text; raises ValueError for a character outside the vocabulary."""
    try:
        return [_IDS[piece] for piece in _PIECES.findall(text)]
    except KeyError as missing:
        raise ValueError(f"no token for {missing.args[0]!r}") from None


def decode(token_ids: list[int]) -> str:
    """Return the text of token ids, marks included."""
    return "".join(
        _TOKENS[token_id] if token_id < len(_TOKENS) else f"<unused{token_id}>"
        for token_id in token_ids
    )


def save_tokenizer(folder: Path, *, context_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into ``folder``.

    ``<think>`` and ``</think>`` are ordinary added tokens, so that a decoder that skips special
    tokens keeps them in the text.
    """
    vocabulary = dict(_IDS)
    vocabulary.update({f"<unused{i}>": i for i in range(len(_IDS), VOCABULARY_SIZE)})
    added = [
        {
            "id": _IDS[mark],
            "content": mark,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": mark not in ("<think>", "</think>"),
        }
        for mark in MARKS
    ]
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "."},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"},
    }
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
