"""Parallelism, applied to a plain model from outside; it never changes a parameter's name or value.

mesh.py arranges ranks, shards.py says which box of a tensor a rank holds, tensor.py splits matrices,
loss.py the loss over a split vocabulary, data.py shards state over data-parallel ranks (ZeRO), recompute.py
trades memory for compute; parallelize.py applies them in their one order. control.py is what ranks tell each other
beside tensors.
"""
