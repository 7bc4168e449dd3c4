from __future__ import annotations

import operator
import os

import pytest

from data_pipeline.errors import DataError
from data_pipeline.processes import map_in_order


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(map_in_order(operator.neg, range(9), workers)) == [-item for item in range(9)]


def test_items_are_read_only_as_results_are_taken():
    read = []

    def items():
        for item in range(100):
            read.append(item)
            yield item

    results = map_in_order(operator.neg, items(), 2)
    assert [next(results), next(results)] == [0, -1]
    assert len(read) == 4
    results.close()


def test_a_killed_worker_is_told_in_one_sentence():
    with pytest.raises(DataError, match="a worker process was killed"):
        list(map_in_order(os._exit, [3, 3, 3], 2))


def test_an_error_of_the_function_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order((1).__truediv__, [1, 0], 2))
