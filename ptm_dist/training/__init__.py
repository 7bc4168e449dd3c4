"""The training run: preflight checks, the loop, and what is written beside it.

run.py is the whole run; trainer.py the loop; callbacks.py everything beside the step; metrics.py the rows;
run_directory.py where they go; preflight.py what is checked before any process starts.
"""
