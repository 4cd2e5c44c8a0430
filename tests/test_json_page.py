"""docs/json-fields.csv names every field that the kept JSON outputs have, and no other."""

import csv
import json
import re
from collections import defaultdict

from tests.golden_outputs import KEPT
from tests.test_docs import DOCS

ESTIMATE = {"value", "low", "high", "unit"}
TIMES = {"mean", "p50", "p95", "p99"}


def documented():
    """The objects of the page's file, whose rows name several, with their fields; and its maps."""
    lines = csv.reader((DOCS / "json-fields.csv").read_text().splitlines()[1:])
    objects = {tuple(names.split()): set(fields.split()) for names, _, fields in lines}
    maps = re.search(r"Names of (.*?) are data", (DOCS / "json.md").read_text(), re.DOTALL).group(1)
    return objects, set(re.findall(r"`([a-z0-9_]+)`", maps))


def printed(maps):
    """The fields of each object that a verb printed: by the field that holds it."""
    found = defaultdict(set)

    def walk(name, value):
        if isinstance(value, list):
            for each in value:
                walk(name, each)
        if not isinstance(value, dict):
            return
        if value.keys() >= ESTIMATE:
            name = "estimate"
        elif "mean" in value and value.keys() <= TIMES:
            name = "spread"
        for key, each in value.items():
            if name in maps:
                walk(f"{name} entry", each)
            else:
                found[name].add(key)
                walk(key, each)

    for path in sorted(KEPT.glob("*json*.txt")):
        command, _, output = path.read_text().split("\n", 2)
        if "{" in (text := output.partition("-- stderr")[0]):
            text = re.sub(r": N\b", ": 0", text[text.index("{") :])
            walk(command.split()[2], json.JSONDecoder().raw_decode(text)[0])
    return found


def test_every_field_that_is_printed_is_on_the_page_and_no_other():
    objects, maps = documented()
    found = printed(maps)
    left = dict(found)
    left.pop("config entry", None)  # two values of a setting
    for names, fields in objects.items():
        parents = [f"{name} entry" if name in maps else name for name in names]
        assert set().union(*(left.pop(each, set()) for each in parents)) == fields, names
    assert not left, "objects that are not in the file"
