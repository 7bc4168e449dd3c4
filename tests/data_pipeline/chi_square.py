"""Pearson's chi-square test at 99.9%, for draws at a fixed seed: a true claim fails at one seed in a thousand."""

from __future__ import annotations

from math import sqrt

import numpy as np

_Z = 3.0902
"""The 99.9% quantile of the normal distribution."""


def limit(degrees: int) -> float:
    """The 99.9% quantile of chi-square by Wilson and Hilferty (1931): cube roots of it are nearly normal.

    At 1, 2, 10 and 100 degrees of freedom the tables say 10.83, 13.82, 29.59 and 149.45; this says 11.16, 14.13,
    29.76 and 149.50.
    """
    return degrees * (1 - 2 / (9 * degrees) + _Z * sqrt(2 / (9 * degrees))) ** 3


def distance(counts, shares) -> float:
    """How far counts lie from what the shares of their sum would be, in units of their variance."""
    counts, shares = np.asarray(counts, dtype=float), np.asarray(shares, dtype=float)
    expected = counts.sum() * shares / shares.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def fits(counts, shares) -> bool:
    """Whether counts are what draws with these shares give."""
    return distance(counts, shares) < limit(len(counts) - 1)


def subset_fits(counts, draws: int) -> bool:
    """Whether `draws` subsets, all of one size, were drawn uniformly, by how often each element was in one.

    With n elements, each in a share p of the subsets, the counts have the covariance N p (1 - p) n / (n - 1) (I - 1/n):
    that of a multinomial, made smaller by drawing without replacement.
    """
    counts = np.asarray(counts, dtype=float)
    size, share = counts.size, counts.sum() / draws / counts.size
    value = ((counts - counts.mean()) ** 2).sum() / (draws * share * (1 - share)) * (size - 1) / size
    return bool(value < limit(size - 1))
