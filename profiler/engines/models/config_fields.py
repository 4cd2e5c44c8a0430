"""The fields of a Hugging Face config: a wrong one is one line with the file and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from traces.errors import UsageError

LONGEST: Final = 40  # letters of a field's value that are shown
_MOST: Final = 2**31 - 1  # of any count in a config
# What transformers takes for fields that published configs leave out, by model type.
_GEMMA_3: Final = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
    "tie_word_embeddings": True, "sliding_window": 4096,
}  # fmt: skip
_TIED: Final = {"tie_word_embeddings": True}
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma3_text": _GEMMA_3, "gemma3": _GEMMA_3, "gemma": _TIED, "gemma2": _TIED,
    "gemma4_text": _TIED, "cohere": _TIED, "cohere2": _TIED, "starcoder2": _TIED,
    "smollm3": _TIED, "ernie4_5": _TIED, "ernie4_5_moe": _TIED, "cohere2_moe": _TIED,
    "gemma3n_text": _TIED, "gemma4_unified_text": _TIED, "granite_swa": _TIED, "jetmoe": _TIED,
    "lfm2": _TIED, "lfm2_moe": _TIED, "minicpm3": {**_TIED, "v_head_dim": 64},
    "vaultgemma": _TIED, "youtu": _TIED,
    "zamba": _TIED, "zamba2": _TIED, "zaya": _TIED, "falcon": _TIED, "opt": _TIED,
}  # fmt: skip


class ListedError(UsageError):
    """A config lists several numbers where a layer has one, in the field `name`."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


class Fields:
    """The fields of a config, and of the one around it where a model has several, checked.

    What is asked for and is of another kind raises UsageError with the file and the field.
    """

    _defaults: Mapping[str, Any] = {}

    def __init__(self, config: Any, where: str, around: Sequence[Any] = ()) -> None:
        self._own, self._all, self.where = (config,), (config, *around), where
        self._plain = [_as_mapping(each) for each in self._all]
        kind = self.get("model_type")
        self._defaults = _DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}

    def get(self, *names: str, around: bool = False) -> Any:
        """Return the first of the fields that is there and not null, or what is taken for it."""
        for config, plain in zip(self._all if around else self._own, self._plain, strict=False):
            for name in names:
                value = None if config is plain else field_of(config, name)
                value = plain.get(name) if value is None else value
                if value is not None:
                    return value
        return next((self._defaults[name] for name in names if name in self._defaults), None)

    def count(self, *names: str, least: int = 1) -> int | None:
        """Return a whole number, None where no such field is there.

        A list of the same number for every layer is that number.
        """
        value = self.get(*names)
        if value is None:
            return None
        if isinstance(value, list | tuple) and all(type(each) is int for each in value):
            if len(value) != self._plain[0].get("num_hidden_layers") or len(set(value)) != 1:
                error = self.wrong(names, value, f"a whole number from {least} up")
                raise ListedError(str(error), next(n for n in names if self.get(n) is not None))
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            raise self.wrong(names, value, f"a whole number from {least} up")
        return value

    def need(self, *names: str) -> int:
        """Return a whole number that every config has."""
        number = self.count(*names)
        if number is None:
            kind = self.get("model_type")
            of = "Give a model's config.json"
            if isinstance(kind, str) and kind:
                of = f"Models of the type {kind[:LONGEST]} that name it otherwise are not counted"
            raise UsageError(f"{self.where}: no field {names[0]}. {of}")
        return number

    def flag(self, *names: str) -> bool | None:
        """Return whether something is so, None where it is not said."""
        value = self.get(*names)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(names, value, "true or false")
        return value

    def tied(self) -> bool | None:
        """Return whether logits are made with the embedding, None where it is not said.

        The outermost config decides.
        """
        for config in reversed(self._all):
            value = Fields(config, self.where).flag("tie_word_embeddings", "tie_embedding")
            if value is not None:
                return value
        return None

    def dtype(self) -> str | None:
        """Return the dtype of the weights as the config has it."""
        names = ("dtype", "torch_dtype")
        value = self.get(*names, around=True)
        if isinstance(value, bool | int | float | list | tuple | Mapping):
            raise self.wrong(names, value, "the name of a dtype")
        return None if value is None else str(value).removeprefix("torch.")

    def words(self, *names: str, around: bool = False) -> list[str]:
        """Return a list of words, empty where there is none."""
        value = self.get(*names, around=around)
        if value is None:
            return []
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise self.wrong(names, value, "a list of words")
        return list(value)

    def numbers(self, *names: str) -> list[int] | None:
        """Return a list of whole numbers from 0 up, None where there is none."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(
            type(each) is int and 0 <= each <= _MOST for each in value
        ):
            raise self.wrong(names, value, "a list of whole numbers")
        return list(value)

    def inner(self, name: str) -> Fields | None:
        """Return the fields of an object in a field, None where there is none."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong((name,), value, "an object")
        return Fields(value, f"{self.where}: {name}")

    def plain(self) -> Mapping[str, Any]:
        return self._plain[0]

    def wrong(self, names: Sequence[str], value: Any, wanted: str) -> UsageError:
        """Return the error of a field that is of another kind."""
        there = [name for name in names if self.get(name, around=True) is not None]
        return UsageError(f"{self.where}: {(there or names)[0]} is {shown(value)}, not {wanted}")


def shown(value: Any) -> str:
    """Return a value in few words; of long ones the kind."""
    if isinstance(value, list | tuple | Mapping):
        return "a list" if isinstance(value, list | tuple) else "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MOST:
        return "a number with too many digits"
    text = json.dumps(value) if isinstance(value, str | float | bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def field_of(config: Any, name: str) -> Any:
    """Return an attribute of a config, None where it has none or cannot give it."""
    try:
        return getattr(config, name, None)
    except Exception:  # a property of a config whose code came with the model
        return None


def _as_mapping(config: Any) -> Mapping[str, Any]:
    """Return a config as a mapping: itself, what it makes of itself, or its attributes."""
    plain = config
    if not isinstance(config, Mapping):
        to_dict = field_of(config, "to_dict")
        with suppress(Exception):  # code that came with the model
            plain = to_dict() if callable(to_dict) else None
        if not isinstance(plain, Mapping):
            plain = getattr(config, "__dict__", {})
    return plain if plain is config else dict(plain)
