"""Runs as Slurm jobs.

profile.py is what a cluster is like, script.py the text of a job, submit.py hands it in, task.py is one process of
it, queue.py asks Slurm about it and stops it.
"""
