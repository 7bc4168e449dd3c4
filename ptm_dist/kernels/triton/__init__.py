"""Kernels in Triton; imported where one is chosen, since the core works without triton."""
