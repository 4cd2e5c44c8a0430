"""From a recording to numbers: problems, energy, kernels, votes, comparison."""
