"""Kernels in Triton: code for the device and what launches it, imported only where a kernel is chosen."""
