"""Folders of installed packages whose files are read, and which are never imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

PRIOR: Final = "aiconfigurator_core"  # of the extra prior: operator tables, models' configs


def package_folder(package: str, name: str) -> Path | None:
    """Return a folder of an installed package, None where it is not there."""
    spec = find_spec(package)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((Path(each) / name for each in places if (Path(each) / name).is_dir()), None)
