"""The small process beside each rank that brings its state to the disk while the steps go on.

Nothing in this package imports torch: the process is there at once, and takes a few megabytes and no lock of the rank.
archive.py writes tensors as torch reads them; messages.py is what the two processes tell each other.
"""
