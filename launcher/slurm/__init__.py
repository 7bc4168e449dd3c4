"""Runs as Slurm jobs.

profile.py is what a cluster is like, script.py the text of a job, submit.py hands it in, coordinate.py is its
brain on its first node, queue.py asks Slurm about it and stops it.
"""
