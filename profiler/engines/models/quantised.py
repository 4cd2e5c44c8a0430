"""In which form each matrix of a checkpoint is stored, as its config says.

Read are the forms of FP8 (per tensor or block), MXFP8, NVFP4, MXFP4, AWQ, GPTQ, compressed-tensors,
ModelOpt (`hf_quant_config.json` too), FBGEMM, Quark, AutoRound and torchao. What a config names
that no model here has is in `unknown`; the forms of such a checkpoint are not known.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from profiler.engines.models.config_fields import LONGEST, Fields, field_of, shown
from traces.errors import UsageError

DTYPE_BYTES: Final = {
    "float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float8": 1, "fp8": 1, "int8": 1,
}  # fmt: skip
_BLOCK: Final = 128  # rows and columns that share a scale
_GROUP: Final = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32, "int4": 128}
_SCALE_BYTES: Final = {"nvfp4": 1, "mxfp4": 1, "mxfp8": 1}  # of integers float16
# ModelOpt's algorithms by the form of their weights, by what the name has.
_ALGORITHMS: Final = (
    ("MXFP8", "mxfp8"), ("NVFP4", "nvfp4"), ("MXFP4", "mxfp4"), ("FP8_PB", "fp8_block"),
    ("FP8_BLOCK", "fp8_block"), ("W4A8_AWQ", "int4"), ("W4A16_AWQ", "int4"), ("INT4", "int4"),
    ("INT8", "int8"), ("FP8", "fp8"), ("W8A8", "int8"),
)  # fmt: skip
_QUARK: Final = {"fp4": "mxfp4", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "int8": "int8",
                 "int4": "int4", "uint4": "int4"}  # fmt: skip
_SKIPPED: Final = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules",
                   "exclude", "llm_int8_skip_modules")  # fmt: skip
# torchao's kinds of quantisation by the form of their weights, by what the name has.
_TORCHAO: Final = (
    ("Int4Weight", "int4"), ("Int8Weight", "int8"), ("Float8WeightOnly", "fp8"),
    ("Float8DynamicActivationFloat8Weight", "fp8"),
)  # fmt: skip
# Targets of compressed-tensors that are classes: all linear layers, experts among them, or experts.
_LINEAR: Final = "Linear"
_CLASSES: Final = {"FusedMoE": r"re:.*\.experts\..*"}
_WHOLE_BITS: Final = 16  # from which a module is as it was
_OUTER: Final = frozenset({"model", "language_model", "backbone", "text_model", "transformer"})
# Words of modules that are no matrix of a layer, or of a part that is not counted by module.
_ELSEWHERE: Final = re.compile(
    r"mtp|eagle|vis(ion|ual)|audio|image|multi_modal|mm_proj|patch|embed|norm|layers|weight|bias"
)
# More than any model needs, and few enough that matching ends at once.
_MOST_GLOBS: Final = 4_096
_MOST_RULES: Final = 64
_MOST_MATCHES: Final = 60_000  # of globs, times layers
_MOST_STARS: Final = 8
_ALTERNATIVES: Final = re.compile(r"\(\??:?([\w|]+)\)")
_WILD: Final = re.compile(r"\.\*|\\d\+|\[0-9\]\+|\.\+")
_MARKS: Final = re.compile(r"\\\w|[][(){}?+*|^$]")  # of an expression that no glob says


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a matrix is stored: the name of the form, and bytes of a parameter with its scales."""

    name: str
    parameter_bytes: float | None


def bytes_of(name: str | None) -> int | None:
    """Return the bytes of a value of a dtype, None of one that is not known."""
    plain = (name or "").removeprefix("torch.")
    return next((size for kind, size in DTYPE_BYTES.items() if plain.startswith(kind)), None)


def form(name: str, group: Any = None) -> Form:
    """Return a form of quantised weights, of groups with one scale each."""
    if name not in ("nvfp4", "mxfp4", "mxfp8", "int4", "int8", "fp8", "fp8_block"):
        return Form(name=name, parameter_bytes=None)
    if name == "fp8_block":
        return Form(name=name, parameter_bytes=1 + 4 / _BLOCK**2)
    size = 0.5 if name.endswith("4") else 1.0
    is_given = isinstance(group, int) and not isinstance(group, bool) and 0 < group <= 1 << 20
    group = group if is_given else _GROUP.get(name)
    scale = 0.0 if group is None else _SCALE_BYTES.get(name, 2) / group
    return Form(name=name, parameter_bytes=size + scale)


class Quantised:
    """What a config says of the form of each matrix, or the hf_quant_config.json `beside` it.

    `kind` is the form in short, None where nothing is quantised. `unread` is True where a target is
    an expression that cannot be read. Raises UsageError for what is no object, lists that are none,
    and more patterns than can be matched with so many layers.
    """

    def __init__(
        self, fields: Fields, layers: int, beside: Mapping[str, Any] | None = None
    ) -> None:
        self._fields, self._told = fields, _told(fields, beside)
        self.kind = self._kind()
        self._skipped = _Patterns(
            itertools.chain(
                (each for name in _SKIPPED for each in self._list(self._told.get(name), name)),
                itertools.chain.from_iterable(n for own, n in self._own_forms() if own is None),
            )
        )
        # What is left out of a second quantisation is as the first one left it.
        self._over_blocks = bool(
            self._told.get("quantized_layers") and self._told.get("weight_block_size")
        )
        self._targets: list[str] = []  # of compressed-tensors, but those of all linear layers
        self.unread = False
        self._met = False  # whether any layer has what is quantised by name
        most = _MOST_RULES + _MOST_GLOBS
        self._rules = list(itertools.islice(self._read_rules(), most + 1))
        globs = sum(each.globs for each, _ in [*self._rules, (self._skipped, None)] if each)
        slow = sum(each is None or each.slow for each, _ in self._rules)
        if slow > _MOST_RULES or globs > min(_MOST_GLOBS, _MOST_MATCHES // layers):
            raise UsageError(
                f"{fields.where}: quantization_config has {globs:,} patterns of modules in "
                f"{len(self._rules):,} forms for {layers:,} layers, more than ttscope matches"
            )
        self._experts = self._of_experts()
        self.unknown: str | None = None

    @property
    def cache(self) -> str | None:
        """The form of the KV cache that the checkpoint asks for, None where it asks for none."""
        asked = self._told.get("kv_cache_quant_algo") or self._told.get("kv_cache_scheme")
        if not asked:
            return None
        bits = asked.get("num_bits") if isinstance(asked, Mapping) else asked
        return "fp8" if bits == 8 or str(bits).upper() == "FP8" else shown(bits)

    def of(self, names: Sequence[str], plain: Form, *, linear: bool = True) -> Form:
        """Return the form of a matrix that goes by any of some names, `plain` where it is as it is.

        `linear` is False of a matrix that is left as it is unless it is named: a router, a
        convolution, an embedding.
        """
        if self.kind is None:
            return plain
        skipped = any(self._skipped.match(name) for name in names)
        for patterns, found in self._rules:
            if patterns is not None and any(patterns.match(name) for name in names):
                self._met = True
                return plain if self._targets and skipped else found or plain
        if not linear or (skipped and not self._over_blocks):
            return plain
        routed = any(".experts." in name for name in names)
        if self._experts is not None and routed:
            return self._experts
        return next((found for patterns, found in self._rules if patterns is None), None) or plain

    def check(self, words: Iterable[str], layers: int) -> None:
        """Note in `unknown` the first module that is quantised by name and that no layer has."""
        allowed = set(words)
        for patterns, form in self._rules:
            for name in () if patterns is None or form is None else patterns.plain:
                parts = [part for part in name.split(".") if part]
                numbers = [int(part) for part in parts if part.isdigit() and len(part) < 10]
                strange = {part for part in parts if not part.isdigit()} - allowed
                far = numbers[:1] > [2 * layers + 16]  # layers that draft come after the others
                if far or any(not _ELSEWHERE.search(part) for part in strange):
                    self.unknown = shown(name)
                    return
        if self._targets and not (self._met or self.unread) and all(p for p, _ in self._rules):
            self.unknown = shown(self._targets[0])

    def _kind(self) -> str | None:
        config = self._told
        if not config:
            dtype = self._fields.dtype()
            return dtype if bytes_of(dtype) == 1 else None
        algorithm, method, kind = (config.get(n) for n in ("quant_algo", "quant_method", "format"))
        if isinstance(algorithm, str) and algorithm:
            return algorithm.lower()[:LONGEST]
        if not isinstance(method, str) or not method:
            bits = config.get("load_in_4bit") or config.get("load_in_8bit")
            return "bitsandbytes" if bits else "an unknown form"
        if method == "fp8" and config.get("weight_block_size"):
            return "fp8_block"
        return (f"{method} {kind}" if isinstance(kind, str) and kind else method)[:LONGEST]

    def _read_rules(self) -> Iterator[tuple[_Patterns | None, Form | None]]:
        """Yield modules and their form, None for modules that nothing else is said of.

        A form of None is that of modules left as they are.
        """
        config = self._told
        ordered = self._dynamic()
        own_forms = ((own, names) for own, names in self._own_forms() if own)
        yield from ((_Patterns(names), own) for own, names in [*ordered, *own_forms])
        groups = config.get("config_groups")
        named = config.get("quantized_layers")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = _at(group, "weights")
            if isinstance(weights, Mapping) and not named:
                targets = self._list(group.get("targets"), "targets")
                if _LINEAR in targets or not targets:
                    yield None, _of_group(weights)
                else:
                    self.unread |= any(map(_unreadable, targets))
                if others := [each for each in targets if each != _LINEAR]:
                    self._targets += others
                    modules = (_CLASSES.get(each, each) for each in others)
                    yield _Patterns(modules), _of_group(weights)
        by_form: dict[Form, list[str]] = {}
        for name, each in _pairs(named):
            if isinstance(each, Mapping):
                form_of = _of_algorithm(each.get("quant_algo"), each.get("group_size"))
                by_form.setdefault(form_of, []).append(name)
        yield from ((_Patterns(names), form_of) for form_of, names in by_form.items())
        if not groups and not named and (rest := self._rest()) is not None:
            yield None, rest
        elif self._over_blocks:
            yield None, form("fp8_block")

    def _dynamic(self) -> list[tuple[Form | None, list[str]]]:
        """Return the forms of GPTQModel's `dynamic` in its order, in which the first match counts.

        It has regular expressions that match from the beginning of a name, "-:" before those of
        modules left as they are (None). Neighbours of one form go together.
        """
        forms: list[tuple[Form | None, list[str]]] = []
        for name, changes in _pairs(self._told.get("dynamic")):
            expression = name.removeprefix("-:").removeprefix("+:").removesuffix("$")
            form_of = (None,) if name.startswith("-:") else self._own_bits(changes)
            for each in form_of:
                if not forms or forms[-1][0] != each:
                    forms.append((each, []))
                forms[-1][1].append(f"re:{expression.removesuffix('.*')}.*")
        return forms

    def _own_forms(self) -> Iterable[tuple[Form | None, list[str]]]:
        """Return modules by the form of their own that they have; None for those left as they are.

        AutoRound's `extra_config` has names or expressions, Quark's `layer_quant_config` has globs.
        """
        by_form: dict[Form | None, list[str]] = {}
        for name, changes in _pairs(self._told.get("layer_quant_config")):
            by_form.setdefault(_of_quark(changes), []).append(name)
        for name, changes in _pairs(self._told.get("extra_config")):
            pattern = f"re:{name}" if any(mark in name for mark in "*^$\\[(") else name
            for each in self._own_bits(changes):
                by_form.setdefault(each, []).append(pattern)
        return by_form.items()

    def _own_bits(self, own: Any) -> tuple[Form | None, ...]:
        """Return the form by bits and group of a module's own, none where it has no bits."""
        bits, group = (
            own.get(each, self._told.get(each)) if isinstance(own, Mapping) else None
            for each in ("bits", "group_size")
        )
        if not isinstance(bits, int):
            return ()
        return (None if bits >= _WHOLE_BITS else form(f"int{bits}", group),)

    def _rest(self) -> Form | None:
        """Return the form of all that is not left out, of a config that names one."""
        config, method = self._told, str(self._told.get("quant_method") or "").lower()
        bits, group = config.get("bits"), config.get("group_size")
        if isinstance(config.get("quant_algo"), str):
            return _of_algorithm(config["quant_algo"], group)
        if method in ("fp8", "fbgemm_fp8", "modelopt"):
            return form("fp8_block" if config.get("weight_block_size") else "fp8")
        if method in ("awq", "gptq", "auto-round", "auto_round", "gptq_marlin", "awq_marlin"):
            return form(f"int{4 if bits is None else bits}", group)
        if method in ("mxfp4", "torchao"):  # the former of experts alone
            return None if method == "mxfp4" else _of_torchao(config.get("quant_type"))
        if (quark := _of_quark(config.get("global_quant_config"))) is not None:
            return quark
        return None if self.kind is None else Form(name="unknown", parameter_bytes=None)

    def _of_experts(self) -> Form | None:
        """Return the form of experts where it is not that of the rest (gpt-oss, DeepSeek V4)."""
        method = str(self._told.get("quant_method") or "").lower()
        four = self._fields.get("expert_dtype") == "fp4"
        return form("mxfp4") if method == "mxfp4" or (four and method == "fp8") else None

    def _list(self, value: Any, name: str) -> list[str]:
        if value is None or isinstance(value, str):
            return [] if value is None else [value]
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise self._fields.wrong((name,), value, "a list of words")
        return list(value)


def _told(fields: Fields, beside: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a config says of quantisation, in one object; empty where it says nothing."""
    names = ("quantization_config", "compression_config")
    config = fields.get(*names, around=True) or beside
    to_dict = None if isinstance(config, Mapping) else field_of(config, "to_dict")
    config = to_dict() if callable(to_dict) else config  # an object of transformers'
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise fields.wrong(names, config, "an object")
    inner = config.get("quantization")
    return {**config, **inner} if isinstance(inner, Mapping) else dict(config)


def _at(told: Any, *names: str) -> Any:
    """Return what lies under names in objects within each other, None where it is not there."""
    for name in names:
        told = told.get(name) if isinstance(told, Mapping) else None
    return told


def _pairs(told: Any) -> Iterator[tuple[str, Any]]:
    """Yield names of modules and what is told of each; nothing of what is no object."""
    if isinstance(told, Mapping):
        yield from ((str(name), own) for name, own in told.items())


def _of_algorithm(name: Any, group: Any) -> Form:
    """Return the form of ModelOpt's algorithm."""
    upper = name.upper() if isinstance(name, str) else ""
    return form(next((kind for part, kind in _ALGORITHMS if part in upper), "unknown"), group)


def _of_quark(told: Any) -> Form | None:
    """Return the form of a layer's weights by Quark's config of it, None where they are as is."""
    weight = _at(told, "weight")
    if not isinstance(weight, Mapping):
        return None
    return form(_QUARK.get(str(weight.get("dtype")), "unknown"), weight.get("group_size"))


def _of_torchao(told: Any) -> Form | None:
    """Return the form of all linear layers by torchao's kind of quantisation."""
    kind, group = str(_at(told, "default", "_type")), _at(told, "default", "_data", "group_size")
    return form(next((name for word, name in _TORCHAO if word in kind), "unknown"), group)


def _of_group(weights: Mapping[str, Any]) -> Form:
    """Return the form of a group of compressed-tensors."""
    bits, group = weights.get("num_bits"), weights.get("group_size")
    if weights.get("type") == "int":
        return form(f"int{bits}", group)
    if bits == 4:
        return form("nvfp4" if group in (None, 16) else "mxfp4", group)
    if bits == 8:
        blocks = weights.get("strategy") == "block" or weights.get("block_structure")
        return form("mxfp8", group) if group == 32 else form("fp8_block" if blocks else "fp8")
    return form("unknown")


class _Patterns:
    """Names of modules: whole ones, parts of them, globs, and `re:` with simple expressions."""

    def __init__(self, names: Iterable[str]) -> None:
        self.plain: set[str] = set()
        globs: set[str] = set()
        for name in names:
            regular = name.startswith("re:")
            for each in _globs(name[3:]) if regular else [name]:
                inner = inside(each)
                if "*" not in inner:
                    self.plain.add(inner)
                elif len(inner) <= 300 and inner.count("*") <= _MOST_STARS:
                    globs.add(inner)
            if len(globs) > _MOST_GLOBS:  # the error is the reader's
                break
        self.globs = len(globs)
        self.slow = bool(self.plain) or not globs
        patterns = [each for glob in sorted(globs) for each in (glob, f"{glob}.*")]
        few = 0 < len(globs) <= _MOST_GLOBS
        self._globs = re.compile("|".join(map(fnmatch.translate, patterns))) if few else None

    def match(self, name: str) -> bool:
        """Whether a module is named, itself or one that it lies in."""
        parts = name.split(".")
        runs = itertools.combinations(range(len(parts) + 1), 2)
        if self.plain and any(".".join(parts[first:last]) in self.plain for first, last in runs):
            return True
        return self._globs is not None and self._globs.match(name) is not None


def inside(name: str) -> str:
    """Return a module's name within the language model."""
    parts = name.strip(".").split(".")
    while len(parts) > 1 and parts[0] in _OUTER:
        parts = parts[1:]
    return ".".join(parts)


def _globs(expression: str) -> list[str]:
    """Return globs of a regular expression of words, wildcards and alternatives, as configs have.

    Matching the expression itself could take forever.
    """
    globs = [expression.removeprefix("^").removesuffix("$")]
    for _ in range(3):
        more: list[str] = []
        for each in globs:
            at = _ALTERNATIVES.search(each)
            words = [None] if at is None else at[1].split("|")[:32]
            more += [
                each if word is None or at is None else each[: at.start()] + word + each[at.end() :]
                for word in words
            ]
        globs = more[:1024]
    return [_WILD.sub("*", each).replace("\\", "") for each in globs]


def _unreadable(target: str) -> bool:
    """Whether a regular expression has more than words, wildcards and alternatives."""
    words = _ALTERNATIVES.sub("", target.removeprefix("re:^").removesuffix("$"))
    return target.startswith("re:") and _MARKS.search(_WILD.sub("", words)) is not None
