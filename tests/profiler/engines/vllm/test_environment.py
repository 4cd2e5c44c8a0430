"""What surrounds the import sys
import subprocess
import of vLLM."""

import gc
import subprocess
import sys

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


def test_the_end_of_the_process_frees_what_was_kept_from_searches():
    """Without it nanobind prints what nobody frees, on the screen of a recording."""
    code = (
        "import atexit, gc\n"
        "from profiler.engines.vllm.environment import without_garbage_search\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "atexit.register(gc.freeze)\n"  # as the command line does
        "with without_garbage_search():\n"
        "    pass\n"
        "assert gc.get_freeze_count() > 0\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "0\n"
