"""Imports what a vLLM engine or server needs, in the process that `warm` forks."""

import os

# What vLLM and torch read once, when they are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}

import vllm.engine.arg_utils
import vllm.entrypoints.openai.api_server
import vllm.v1.engine.llm_engine
import vllm.v1.worker.cpu_worker  # noqa: F401
