"""Parallelism, applied to a plain model from outside; it never changes a parameter's name or value.

mesh.py arranges ranks, shards.py and boxes.py say what a rank holds of a tensor. tensor.py splits matrices (overlap.py
hides its messages), loss.py the loss over a split vocabulary, context.py sequences, stages.py and schedules.py layers
(stage.py, messages.py and pipeline.py run them), data.py shards state over data-parallel ranks (ZeRO), recompute.py
trades memory for compute; parallelize.py applies them in their one order. control.py is what ranks tell each other
beside tensors.
"""
