"""ttscope with kernel windows that may cost a third of a run, so that a short one has some."""

from profiler.engines.vllm.probes import kernel_windows
from tui.cli import main

if __name__ == "__main__":
    kernel_windows.BUDGET = 0.3
    main()
