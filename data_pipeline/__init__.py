"""From raw text to the batches of a training step: what is read, and in which order.

Imports neither ptm_dist nor launcher; knows integers (`dp_rank`, `dp_size`), never process groups.
"""
