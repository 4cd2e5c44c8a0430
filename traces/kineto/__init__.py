"""Profiler traces of PyTorch (Kineto): from the stream of events to rows of kernels."""
