"""What a step costs a rank: measured as it runs, simulated without a machine to run it, and by formula.

watch.py counts what a process does; simulate.py does the same for one rank of any world on fake tensors;
closed_form.py has the exchanges by formula, :mod:`ptm_dist.training.memory` the memory.
"""
