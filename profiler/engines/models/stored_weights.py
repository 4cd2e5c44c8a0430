"""What the safetensors files of a model hold, by their headers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from traces.files import LINE_VALUES, check_values

_MAX_HEADER_BYTES: Final = 100 << 20
_TOWERS_WEIGHTS: Final = re.compile(r"vis(ion|ual)|audio|image|multi_modal|mm_proj|patch_merge")
_DRAFTS: Final = re.compile(r"(?:^|\.)mtp[._]")
_OUTPUT: Final = re.compile(r"(\w*model\.)*(lm_head|embed_out|output)\.weight")
_PACKED: Final = ("I32", "I16", "U8", "I8")  # several weights in an element, or beside scales


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the headers of a folder's files say, without layers that only draft.

    `parameters` and `experts` are None where they are packed; `towers` are those that look at
    images, and `output` makes logits; `quantized` says in which form the weights are, None where
    it is none.
    """

    parameters: int | None
    experts: int
    towers: int
    size_bytes: int
    output: int
    quantized: str | None


def stored_weights(folder: Path | None, layers: int) -> Stored | None:
    """Count what a folder's safetensors hold; None where they cannot be counted."""
    if folder is None or not folder.is_dir():
        return None
    parameters = experts = towers = output = size = 0
    kinds: set[str] = set()
    try:
        entries = [item for path in _files(folder) for item in _header(path)]
        for key, entry in entries:
            at, tower = re.search(r"(?:^|\.)layers\.(\d+)\.", key), _TOWERS_WEIGHTS.search(key)
            beyond = at is not None and int(at[1]) >= layers and tower is None
            if beyond or _DRAFTS.search(key):
                continue  # drafts with them alone
            count = math.prod(entry["shape"])
            parameters += count
            experts += count if ".experts." in key else 0
            towers += count if tower else 0
            size += entry["data_offsets"][1] - entry["data_offsets"][0]
            kinds.add(str(entry["dtype"]))
            output += count if _OUTPUT.fullmatch(key) else 0
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    if not entries:
        return None
    packed = any(kind in _PACKED for kind in kinds)
    narrow = sorted(kind for kind in kinds if kind in _PACKED or kind.startswith("F8"))
    return Stored(
        parameters=None if packed else parameters,
        experts=experts,
        towers=towers,
        size_bytes=size,
        output=output,
        quantized=f"weights in {', '.join(narrow)}" if narrow else None,
    )


def _files(folder: Path) -> list[Path]:
    """Return the files that make up the model, none where one is missing.

    Repositories of Mistral hold all weights twice, in consolidated files too.
    """
    files = {path.name: path for path in sorted(folder.glob("*.safetensors"))}
    if not all(each.is_file() for each in files.values()):  # a pipe would be waited for
        raise ValueError("no files")
    for kind, second in (("model", False), ("consolidated", True)):
        names = [each for each in files if each.startswith("consolidated") == second]
        index = folder / f"{kind}.safetensors.index.json"
        if index.is_file():
            if index.stat().st_size > _MAX_HEADER_BYTES:
                raise ValueError("not an index")
            named = set(_loaded(index.read_bytes())["weight_map"].values())
            names = sorted(named) if named <= files.keys() else []
        if names:
            return [files[each] for each in names]
    return []


def _header(path: Path) -> list[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header = _loaded(file.read(length))
    return [(key, entry) for key, entry in header.items() if key != "__metadata__"]


def _loaded(text: bytes) -> Any:
    check_values(text, LINE_VALUES)
    return json.loads(text)
