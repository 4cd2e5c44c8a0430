"""Engines that a policy can run on: vLLM in this process, or a server over HTTP."""
