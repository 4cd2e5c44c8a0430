"""Traces of requests: Azure, Mooncake, vLLM bench, AIPerf, GuideLLM."""
