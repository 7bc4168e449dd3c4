"""Who starts a run, and where: command line, local processes, worlds started by others.

cli.py is the program `ptm`; each file of commands/ is a group of its commands. elastic/ keeps a run alive on nodes
that come and go; local.py starts one on this machine, hosts.py on machines that ssh reaches, slurm/ as a job;
worker.py is one rank. environment.py finds the world that torchrun, srun or mpirun made. doctor/ examines nodes,
report/ tells what became of a run.
"""
