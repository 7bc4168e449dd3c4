"""A real Slurm cluster on one machine, for trying out jobs and for the tests."""
