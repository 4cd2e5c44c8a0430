"""Test-time-scaling policies: which samples to draw, when to stop, which answer to give.

`seam` has what a policy sees and says, `rules` its parameters, `methods` starts one by name; the
others hold the policies. None of them knows of engines.
"""
