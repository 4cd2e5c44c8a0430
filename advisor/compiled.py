"""Compilation of the functions that a replay spends its time in, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function by numba at its first call; the machine code is cached on disk."""
    return cast(Function, njit(cache=True, error_model="numpy")(function))
