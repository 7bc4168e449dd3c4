"""The order of samples, by arithmetic: counter -> source and sample, with no list of indices anywhere.

Any part of an order is found without the rest, so the whole state of a data stream is one integer: how many samples
were consumed.
"""

from data_pipeline.order.mixture import Mixture, integer_weights
from data_pipeline.order.permutation import Permutation, derive_key, mix_words
from data_pipeline.order.samples import SampleOrder, Shuffle

__all__ = ["Mixture", "Permutation", "SampleOrder", "Shuffle", "derive_key", "integer_weights", "mix_words"]
