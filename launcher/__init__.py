"""Who starts a run, and where: command line, local processes, worlds started by others.

cli.py is the program `ptm`; each file of commands/ is a group of its commands. local.py starts processes on
this machine, worker.py is one of them, environment.py finds the world that torchrun, srun or mpirun made.
slurm/ runs recipes as Slurm jobs.
"""
