import gc

import numpy as np
import pytest
from numba.core.compiler import Compiler
from numba.core.errors import TypingError

from advisor import compiled as module
from advisor.compiled import compiled, inner, inner_compiler


@inner
def halved(values, place):
    values[place] /= 2
    return values[place]


@inner
def halved_twice(values, place):
    return halved(values, place) + halved(values, place)


@compiled
def all_halved(values):
    total = 0.0
    for place in range(len(values)):
        total += halved_twice(values, place) if place else halved(values, place)
    return total


@compiled
def without_a_type(values):
    return values.nothing_that_arrays_have


def test_what_a_compiled_function_calls_is_a_part_of_it():
    values = np.array([8.0, 8.0])
    assert all_halved(values) == 4 + 4 + 2
    assert values.tolist() == [4, 2]
    all_halved.recompile()  # what was kept on disk has no parts
    for part in (halved, halved_twice):
        (made,) = part.overloads.values()
        assert made.library.get_pointer_to_function(made.fndesc.llvm_func_name) == 0
    assert all_halved(np.array([8.0, 8.0])) == 10


def test_the_search_for_garbage_goes_on_when_a_function_cannot_be_compiled():
    assert gc.isenabled()
    with pytest.raises(TypingError):
        without_a_type(np.zeros(2))
    assert gc.isenabled()


def test_a_numba_that_was_not_tried_compiles_in_its_own_way(monkeypatch):
    assert inner_compiler((0, 65, 1)) is inner_compiler((0, 61)) is not Compiler
    assert inner_compiler((0, 66)) is inner_compiler((1, 0)) is inner_compiler((0, 60)) is Compiler
    monkeypatch.setattr(module, "inner_compiler", lambda version: Compiler)

    @inner
    def third(values):
        return values[0] / 3

    @module.compiled
    def third_and_one(values):
        return third(values) + 1

    assert third_and_one(np.array([6.0])) == 3
    (made,) = third.overloads.values()
    assert made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
