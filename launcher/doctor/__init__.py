"""Is a node fit to train? What is looked at before a run, by `ptm doctor` and by the agents of a run.

node.py examines one node, with gpus.py, adapters.py, host.py, storage.py and versions.py; tokens.py finds out whether
nodes share a folder; compare.py judges all nodes together. So far nothing imports torch. together.py is an examination
by all processes of a world: roll.py calls them, fabric.py and pairs.py measure the network between them, arithmetic.py
has devices compute what is known, recipe.py adds what one recipe needs; diagnosis.py is the result, table.py shows it.
"""
