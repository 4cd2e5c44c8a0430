"""The Advice screen's budget fields, columns and marks."""

from __future__ import annotations

from typing import get_args

from advisor.limits import statistic_words
from traces.schema import Budget, Objective

STATISTICS = tuple((statistic_words(each), each) for each in (None, 50, 95, 99))
STATISTIC = statistic_words(Budget.latency_percentile)  # what the command line takes too
OBJECTIVES = get_args(Objective)
FIELDS = (  # option of parse_budget, label, example, least columns: one more than most values
    ("max_latency", "<=", "5s or 250ms", 8),
    ("max_cost", "cost <=", "$0.002, or 0.5s of a device", 9),
    ("max_energy", "energy <=", "800J", 7),
    ("min_accuracy", "acc >=", "0.75 or 75%", 6),
    ("gpus", "GPUs <=", "4", 5),
    ("rate", "rate", "2/s", 8),
    ("price", "$/h", "2.5, or by type H100=2.5", 14),
    ("confidence", "sure", "0.9", 5),
)
EMPTY = {"rate": "-", "confidence": f"{Budget.confidence:g}"}  # else it is not limited
NOT_LIMITED = "none"
FIRST_ROW = 4
STYLES = {
    "o": "#56B4E9",
    "@": "bold #2FBF96",
    "+": "bold #E69F00",
    "!": "#FF8A4C",
    "P": "bold #CC79A7",
}
MARKS = "@ system-optimal  + compute-optimal  o front  f by FLOPs  P present  ! misses"
WIDE = 110
EDGE = 2  # a scroll bar
TABLE_SHARE = 0.75  # of the width, at most; as in advice.tcss
NUMBERS = (  # header, estimate, whether only wide terminals show it
    ("acc", "accuracy", False),
    ("mean s", "latency_s", False),
    ("p95 s", "latency_p95_s", True),
    ("dev-s", "device_s", True),
    ("$/pb", "cost_usd", True),
    ("tok", "tokens", True),
)
