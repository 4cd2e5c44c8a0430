"""The budget of the Advice screen's fields: what they hold read, and mistakes in their words."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.search.budget import parse_budget, parse_value
from traces.errors import UsageError
from traces.schema.advice import Budget

LABELS = {  # options of `ttscope advise` as the screen names them
    "--max-latency": "latency <=",
    "--max-cost": "cost <=",
    "--max-energy": "energy <=",
    "--min-accuracy": "acc >=",
    "--gpus": "GPUs <=",
    "--rate": "rate",
    "--price": "$/h",
    "--confidence": "sure",
    "--optimise": "for",
    "with --with": "with o on screen 1",
    "--set ": "",
    "--plan: ": "",
}


def in_fields(text: str) -> str:
    """Return an error with the names that things have on the screen in place of the options'."""
    for option, label in LABELS.items():
        text = text.replace(option, label)
    return text


def price_hint(price: float | None) -> str:
    """Return what stands in the empty field of prices: none, or the price of screen 1."""
    return "none" if price is None else f"{price:g} (screen 1)"


def budget_of(
    texts: Mapping[str, str], *, percentile: int | None, objective: str, price: float | None
) -> Budget:
    """Return the budget of what the fields hold by `parse_budget`'s names; empty is not limited.

    `price` is that of a device-hour where no field says one. Raises UsageError.
    """
    given: dict[str, object] = {name: text.strip() for name, text in texts.items() if text.strip()}
    if "gpus" in given:
        try:
            given["gpus"] = int(str(given["gpus"]))
        except ValueError:
            raise UsageError(f"--gpus {given['gpus']}: wants a whole number, such as 4") from None
    if "confidence" in given:
        given["confidence"] = parse_value(str(given["confidence"]), "--confidence")
    if price is not None:
        given.setdefault("price", price)
    if "max_latency" in given or objective == "latency":
        given["percentile"] = percentile
    if objective != Budget.optimise:  # what the field begins with is nothing that was asked for
        given["optimise"] = objective
    return parse_budget(given)
