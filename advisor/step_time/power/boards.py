"""What a GPU's board may draw, and draws without a step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from traces.schema.engine import EngineConfig

# Watts by the driver's name: the limit, and what nvidia-smi read of an idle board, None where
# nobody published it. Limits: `power` in systems/*.yaml of aiconfigurator_core 0.12, those of NVL,
# A100 40GB and RTX 6000 Ada the maker's sheets. Idle: Fadel Argerich and others 2026
# (github.com/maufadel/wattgpu), A100 80GB and RTX 6000 Ada github.com/chuyishang/inference-energy.
_BOARDS_W: Final = (
    (r"H100 80GB HBM3", 700, None), (r"H100 PCIe", 350, None), (r"H100 NVL", 400, 59),
    (r"H200", 700, None), (r"H200 NVL", 600, 76), (r"B200", 1000, None),
    (r"B300 SXM6 AC", 1100, None), (r"GB200", 1200, None), (r"GB300", 1400, None),
    (r"A100-SXM4-80GB", 400, 62), (r"A100-SXM4-40GB", 400, 56),
    (r"A100 80GB PCIe|A100-PCIE-80GB", 300, None), (r"A30", 165, 27), (r"L40S", 350, 36),
    (r"L4", 72, 17), (r"RTX 6000 Ada Generation", 300, 25),
    (r"RTX PRO 6000 Blackwell Server Edition", 600, None),
)  # fmt: skip
_GDDR: Final = r"L40S|L4|RTX"  # boards without HBM
USUAL_IDLE: Final = 0.14  # of the limit: the median of the boards above, 0.09 to 0.24 of it


@dataclass(frozen=True, kw_only=True)
class Board:
    """Watts that a board draws at the most and idle, and whether its memory is GDDR, not HBM."""

    limit_w: float
    idle_w: float
    gddr: bool = False


def board_of(name: str | None, stated_w: float | None = None) -> Board | None:
    """Return the board of a GPU's name. None where its limit is not known.

    `stated_w` is the limit of a board that is not among those known.
    """
    for pattern, limit, idle in _BOARDS_W:
        if re.fullmatch(rf"(?:NVIDIA )?(?:{pattern})", name or ""):
            return Board(
                limit_w=limit,
                idle_w=USUAL_IDLE * limit if idle is None else idle,
                gddr=bool(re.search(_GDDR, name or "")),
            )
    if stated_w is None:
        return None
    return Board(limit_w=stated_w, idle_w=USUAL_IDLE * stated_w)


def limit_of(engine: EngineConfig) -> float | None:
    """Return what the GPUs of one replica may draw together, None where it is not known."""
    board = board_of(engine.gpu)
    return None if board is None else board.limit_w * engine.one_replica().num_devices
