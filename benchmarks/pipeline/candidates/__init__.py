"""One module for each project: functions that do one task and return figures, each called in a process of its own.

The functions' names are the tasks: ``prepare`` writes a project's own format from plain tokens, ``build`` tokenises and
writes, ``read`` reads random samples, ``mask`` makes masked batches, ``resume`` finds a step in the middle of very many
samples, ``stream`` reads over HTTP. Peers are set up as their own documentation does it, with the faster way where
there are several; what differs in the work done is said in the tables' notes.
"""
