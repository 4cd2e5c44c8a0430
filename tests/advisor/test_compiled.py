import gc
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numba.core.errors import TypingError

from advisor import compiled as module
from advisor.compiled import compiled, inner


@inner
def halved(values, place):
    values[place] /= 2
    return values[place]


@inner
def halved_twice(values, place):
    return halved(values, place) + halved(values, place)


@compiled
def all_halved(values):
    total = values[:0].sum()  # a function of numba's, whose module is not loaded to read this
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


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder of caches, nobody else's."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tmp_path.chmod(0o700)
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path


@pytest.fixture
def untried(home, monkeypatch):
    """A numba that was not tried yet, with a cache of its own."""
    monkeypatch.setattr(module, "CACHE", module.cache_folder())
    monkeypatch.setattr(module.config, "CACHE_DIR", str(module.CACHE))
    monkeypatch.setattr(module._Trial, "passed", None)
    monkeypatch.setattr(module, "_one_more", inner(module._one_more.py_func))
    return module.CACHE


def test_the_numba_that_is_installed_passes_and_is_tried_once(untried, monkeypatch):
    assert module.is_as_taken()
    monkeypatch.setattr(module._Trial, "passed", None)
    monkeypatch.setattr(module, "_passes", lambda: pytest.fail("tried again"))
    assert module.is_as_taken()


@pytest.mark.parametrize(
    "changed", [(module._Part, "add_llvm_module"), (module._OwnCode, "reduce")]
)
def test_a_numba_of_another_inside_compiles_and_loads_in_its_own_way(untried, monkeypatch, changed):
    def another(*_):
        raise AttributeError("of another version")

    monkeypatch.setattr(*changed, another)
    assert not module.is_as_taken()

    @inner
    def third(values):
        return values[0] / 3

    @compiled
    def third_and_one(values):
        return third(values) + 1

    assert third_and_one(np.array([6.0])) == 3
    (made,) = third.overloads.values()
    assert made.library.get_pointer_to_function(made.fndesc.llvm_func_name)


def test_of_two_that_find_nothing_one_compiles(monkeypatch):
    if module.CACHE is None:
        pytest.skip("no folder for compiled code that is this user's alone")
    all_halved(np.array([8.0, 8.0]))
    (sig,), target = all_halved.signatures, all_halved.targetctx
    first, second = (module._QuickCache(all_halved.py_func, all_halved._cache) for _ in range(2))
    made, kept = first.load_overload(sig, target), {}
    monkeypatch.setattr(module._QuickCache, "_load_overload", lambda *_: kept.get("code"))
    monkeypatch.setattr(module._QuickCache, "_save_overload", lambda *_: None)
    assert first.load_overload(sig, target) is None  # and compiles from now on
    waiting = threading.Thread(target=lambda: kept.update(got=second.load_overload(sig, target)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    kept["code"] = made
    first.save_overload(sig, made)
    waiting.join(60)
    assert kept["got"] is made


def test_code_that_is_kept_is_read_without_what_only_a_compiler_needs():
    if module.CACHE is None:
        pytest.skip("no folder for compiled code that is this user's alone")
    assert all_halved(np.array([8.0, 8.0])) == 10  # and keeps it
    code = (
        "import sys, numpy as np; from tests.advisor.test_compiled import all_halved\n"
        "print(all_halved(np.array([8.0, 8.0])), sum(all_halved.stats.cache_hits.values()),\n"
        "      'numba.np.arraymath' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["10.0", "1", "False"]


def test_the_cache_is_a_folder_of_the_users_own(home):
    folder = module.cache_folder()
    assert folder.parent == home / "cache" / "ttscope" / "compiled"
    assert [each.stat().st_mode & 0o777 for each in (folder, *list(folder.parents)[:2])] == [
        0o700
    ] * 3


def test_the_cache_is_named_after_all_compiled_code_and_what_it_takes_from():
    advisor = Path(module.__file__).parent
    named = set(module.sources())
    compiled_in = [
        path for path in advisor.rglob("*.py") if "from advisor.compiled import" in path.read_text()
    ]
    assert len(compiled_in) > 9 and named >= set(compiled_in)
    for path in compiled_in:
        for taken in re.findall(r"^from (advisor[\w.]*) import", path.read_text(), re.M):
            found = advisor.parent / taken.replace(".", "/")
            assert {found.with_suffix(".py"), *found.glob("*.py")} & named, f"{path}: {taken}"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_cache_that_others_can_write_to_is_not_loaded(home, mode, above):
    folder = module.cache_folder()
    (folder, *folder.parents)[above].chmod(mode)
    sticky_above = mode == 0o1777 and above  # as /tmp: what is in it stays
    assert module.cache_folder() == (folder if sticky_above else None)


def test_a_cache_of_another_user_is_not_loaded(home, monkeypatch):
    assert module.cache_folder() is not None
    monkeypatch.setattr(module.os, "geteuid", lambda: 12_345)
    if home.stat().st_uid == 0:  # root's folders are trusted
        with_owner = module.cache_folder()
        assert with_owner is not None
        module.os.chown(with_owner.parent, 54_321, -1)
    assert module.cache_folder() is None


def test_a_cache_behind_a_link_is_judged_where_it_lies(home, monkeypatch):
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    (home / "link").symlink_to(elsewhere)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(home / "link"))
    assert module.cache_folder() is None
    elsewhere.chmod(0o700)
    assert module.cache_folder() == home / "link"


def test_without_a_cache_functions_are_compiled_in_memory(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert module.cache_folder() is None
    monkeypatch.setattr(module, "CACHE", None)

    @module.compiled
    def twice(value):
        return value * 2

    assert twice(2) == 4
    assert twice.stats.cache_path is None
