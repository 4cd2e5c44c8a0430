"""YAML as others wrote it: plain values, or one error."""

from __future__ import annotations

from typing import Any

# What PyYAML raises for scalars that are none (a 13th month, `!!int x`) and for deep nesting.
_WRONG = (ValueError, TypeError, AttributeError, LookupError, RecursionError)


def plain_yaml(text: str, loader: Any = None) -> Any:
    """Return what YAML holds (safe loader, or another). Raises ValueError in one line."""
    import yaml

    try:
        return yaml.load(text, Loader=loader or yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    except _WRONG as error:
        raise ValueError(f"a value that cannot be read ({type(error).__name__})") from None
