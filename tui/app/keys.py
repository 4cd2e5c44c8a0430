"""Keys of the terminal app that a user has put elsewhere, from a TOML file.

The keys themselves are bound in `BINDINGS` of app.py and of each screen.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection
from pathlib import Path

from traces.errors import UsageError


def default_file() -> Path:
    """Return where the file is looked for when none is named."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "ttscope" / "keys.toml"


def read_keys(path: Path, known: Collection[str]) -> dict[str, str]:
    """Return keys by the id of what they do, such as {"run.play": "p,space"}.

    Raises UsageError for a file that cannot be read, and for an id that there is not.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--keys {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--keys {path}: is not TOML ({error})") from None
    keys: dict[str, str] = {}
    for screen, table in found.items():
        if not isinstance(table, dict):
            raise UsageError(f"--keys {path}: write a table per screen, such as [run]")
        for name, value in table.items():
            if f"{screen}.{name}" not in known:
                ids = ", ".join(each for each in sorted(known) if each.startswith(f"{screen}."))
                raise UsageError(f"--keys {path}: no {screen}.{name}. There are {ids or 'others'}")
            if not isinstance(value, str) or not value:
                raise UsageError(f"--keys {path}: {screen}.{name}: give a key as text")
            keys[f"{screen}.{name}"] = value
    return keys
