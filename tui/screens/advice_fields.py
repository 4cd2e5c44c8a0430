"""The Advice screen's budget fields, columns and marks."""

from __future__ import annotations

STATISTICS = (("mean", None), ("p50", 50), ("p95", 95), ("p99", 99))
OBJECTIVES = ("latency", "cost", "accuracy", "energy", "throughput")
FIELDS = (  # option of parse_budget, label, example, least columns: one more than most values
    ("max_latency", "<=", "5s", 8),
    ("max_cost", "cost <=", "0.5s or $.01", 13),
    ("max_energy", "energy <=", "800J", 8),
    ("min_accuracy", "acc >=", "0.8", 6),
    ("gpus", "GPUs <=", "4", 4),
    ("rate", "rate", "2/s", 8),
    ("price", "$/h", "2.5", 14),
    ("confidence", "sure", "0.9", 5),
)
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
    ("mean s", "latency_s", True),
    ("p95 s", "latency_p95_s", False),
    ("dev-s", "device_s", True),
    ("$/pb", "cost_usd", True),
    ("tok", "tokens", True),
)
