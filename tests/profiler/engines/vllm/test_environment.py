"""What surrounds the import of vLLM."""

import gc

from profiler.engines.vllm.environment import without_garbage_search


def test_what_was_imported_is_in_no_search_for_garbage():
    before = gc.get_freeze_count()
    with without_garbage_search():
        assert not gc.isenabled()
        imported = [[] for _ in range(1000)]
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(imported)


def test_a_search_that_was_off_stays_off():
    gc.disable()
    try:
        with without_garbage_search():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
