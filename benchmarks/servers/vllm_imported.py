"""Imports what a vLLM engine or server needs, in the process that `warm` forks."""

import atexit
import gc
import logging.config
import os
import time
import warnings

# What vLLM and torch read once, when they are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}

gc.disable()  # imports leave hardly any garbage

import vllm.engine.arg_utils
import vllm.entrypoints.openai.api_server
import vllm.model_executor.layers.quantization.online.base
import vllm.renderers.hf
import vllm.v1.attention.backends.cpu_attn
import vllm.v1.core.sched.scheduler
import vllm.v1.engine.llm_engine
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

# An engine and its workers spin while they wait for each other, which takes both cores of the tests
# from whoever has work. In tests they look 5,000 times a second. Benchmarks keep vLLM as it is.
if "PYTEST_CURRENT_TEST" in os.environ:
    shm_broadcast.sched_yield = lambda: time.sleep(0.0002)

# What follows took most of the time of a start, as vLLM expects few modules to be imported by then.
# Each process of a server clears the levels of its existing loggers. None of them has one.
logging.config._handle_existing_loggers = lambda *_: None
# Each worker looks through all modules for the kernels that a CPU has others for.
if current_platform.is_cpu():
    with warnings.catch_warnings(action="ignore"):
        current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = staticmethod(lambda: None)
# Starts and ends search for garbage. They find none among the million objects of these modules.
gc.freeze()
atexit.register(gc.unfreeze)  # else nanobind lists what nobody frees
gc.unfreeze = lambda: None
gc.enable()
