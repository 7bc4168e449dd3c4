"""The small process beside each rank that brings its state elsewhere while the steps go on: to the disk, to a peer.

Nothing in this package imports torch: the process is there at once, and takes a few megabytes and no lock of the rank.
archive.py writes tensors as torch reads them; snapshots.py are copies in memory that outlive a process, peers.py brings
them to another node; messages.py is what the two processes tell each other.
"""
