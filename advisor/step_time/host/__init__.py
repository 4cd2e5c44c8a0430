"""What a step takes beyond its kernels, learned from published runs."""
