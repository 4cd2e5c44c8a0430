"""Imports what a vLLM engine or server needs, in the process that `warm` forks."""

import os
import time

# What vLLM and torch read once, when they are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}

import vllm.engine.arg_utils
import vllm.entrypoints.openai.api_server
import vllm.v1.engine.llm_engine
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm.distributed.device_communicators import shm_broadcast

# An engine and its workers spin while they wait for each other, which takes both cores of the tests
# from whoever has work. In tests they look 5,000 times a second. Benchmarks keep vLLM as it is.
if "PYTEST_CURRENT_TEST" in os.environ:
    shm_broadcast.sched_yield = lambda: time.sleep(0.0002)
