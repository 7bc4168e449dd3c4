"""What is learnt and on which ranks: recipe, models, parallelism, engines, optimizers, checkpoints, training.

Imports data_pipeline, is imported by launcher; knows nothing of Slurm or of the command line.
"""
