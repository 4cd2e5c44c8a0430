"""What a recording holds, as text: runs and their comparison, kernels, and watched servers."""
