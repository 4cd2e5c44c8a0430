"""Test-time-scaling policies: which samples to draw, when to stop, which answer to give.

`interface` has what a policy sees and says, `registry` starts one by name. The others hold the
policies; their parameters are in traces/schema/tts/methods.py. None of them knows of engines.
"""
