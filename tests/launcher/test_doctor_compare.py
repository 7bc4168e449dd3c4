"""The judgement over all nodes, a pure function: the reports are made up, as second installations are too heavy."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.doctor.compare import compare
from launcher.doctor.findings import Finding, Gpu, Level, NodeReport, merge
from launcher.doctor.pairs import Connection, best_of, cut_off, rounds, slow, speeds

SOUND = {"python": "3.11.7", "torch": "2.13.0", "code": "abc"}


def report(node: str, time: float = 1000.0, gpus: int = 0, findings: tuple = (), **versions: str) -> NodeReport:
    devices = tuple(Gpu(index, f"GPU-{node}-{index}", "H100", 80, 80) for index in range(gpus))
    return NodeReport(node, node, "cpu", SOUND | versions, 8, 1 << 34, 1 << 30, 1 << 40, devices, findings, time=time)


def test_equal_nodes_are_all_good():
    verdict = compare([report("n1"), report("n2"), report("n3")])
    assert (verdict.good, dict(verdict.bad), verdict.warnings) == (("n1", "n2", "n3"), {}, ())


def test_the_node_with_another_version_is_named_with_what_differs():
    verdict = compare([report("n1"), report("n2", torch="2.12.0"), report("n3")])
    assert verdict.good == ("n1", "n3")
    assert dict(verdict.bad) == {"n2": "has torch 2.12.0 instead of 2.13.0: install the same as on the other nodes"}


def test_of_two_equal_parties_the_first_nodes_party_stays():
    verdict = compare([report("n1", code="old"), report("n2")])
    assert verdict.good == ("n1",)
    assert "this program's code abc instead of old" in verdict.bad["n2"]


def test_a_missing_package_is_a_difference_and_another_driver_only_a_warning():
    odd = report("n3", driver="570")
    odd = dataclasses.replace(odd, versions={name: text for name, text in odd.versions.items() if name != "torch"})
    verdict = compare([report("n1", driver="550"), report("n2", driver="550"), odd])
    assert "torch missing instead of 2.13.0" in verdict.bad["n3"]
    assert verdict.warnings == ("nodes have different driver: 550 on n1, n2; 570 on n3",)


def test_different_gpus_are_a_warning():
    verdict = compare([report("n1", gpus=8), report("n2", gpus=7)])
    assert not verdict.bad
    assert verdict.warnings == ("nodes have different GPUs: 8 x H100 on n1; 7 x H100 on n2",)


def test_a_node_with_an_error_is_bad_and_one_with_a_warning_is_not():
    broken = report("n1", findings=(Finding(Level.ERROR, "GPU 3", "2 errors", "replace it"),))
    warm = report("n2", findings=(Finding(Level.WARNING, "GPU 0", "91 degrees"),))
    verdict = compare([broken, warm])
    assert (verdict.good, dict(verdict.bad)) == (("n2",), {"n1": "GPU 3: 2 errors; replace it"})


@pytest.mark.parametrize(("offset", "bad", "warned"), [(0.5, False, False), (-2.0, False, True), (31.0, True, False)])
def test_a_clock_that_is_off_is_found(offset, bad, warned):
    reports = [report("n1"), report("n2", 1000 + offset), report("n3")]
    verdict = compare(reports, dict.fromkeys(("n1", "n2", "n3"), 1000.0))
    assert ("n2" in verdict.bad) is bad
    assert len(verdict.warnings) == warned
    assert all("n2" in text for text in verdict.warnings)


def test_where_the_receivers_clock_is_off_no_node_is_blamed_for_it():
    reports = [report("n1"), report("n2", 1000.1), report("n3", 999.9)]
    verdict = compare(reports, dict.fromkeys(("n1", "n2", "n3"), 5000.0))
    assert not verdict.bad
    assert not verdict.warnings
    alone = compare(reports[:1], {"n1": 5000.0})
    assert alone.bad["n1"].startswith("clock is 4000.0 s behind")


def test_nodes_that_do_not_see_the_folder_of_most_are_bad():
    missing = {"n1": ["n3"], "n2": ["n3"], "n3": ["n1", "n2"]}
    verdict = compare([report("n3"), report("n1"), report("n2")], missing=missing)
    assert verdict.good == ("n1", "n2")
    assert verdict.bad["n3"].startswith("does not see the run directory of n1, n2")


def test_nodes_that_all_have_folders_of_their_own_leave_the_first():
    nodes = ["n1", "n2", "n3"]
    missing = {node: [other for other in nodes if other != node] for node in nodes}
    assert compare([report(node) for node in nodes], missing=missing).good == ("n1",)


def test_a_gpu_that_computes_slower_than_most_is_a_warning():
    speeds = {"n1": {"cuda:0": 700e12, "cuda:1": 690e12}, "n2": {"cuda:0": 400e12, "cuda:1": 705e12}}
    reports = [dataclasses.replace(report(node), device="cuda", speeds=found) for node, found in speeds.items()]
    assert compare(reports).warnings == ("n2: cuda:0 computes 400 TFLOP/s, the usual is 695",)
    assert not compare([dataclasses.replace(each, device="cpu") for each in reports]).warnings


def test_several_reasons_of_one_node_are_all_told():
    verdict = compare([report("n1"), report("n2"), report("n3", torch="1")], missing={"n1": ["n3"], "n3": ["n1"]})
    assert "has torch 1" in verdict.bad["n3"]
    assert "does not see" in verdict.bad["n3"]


def test_processes_of_a_node_that_see_a_device_each_make_one_report():
    first, second = report("n1", gpus=1), report("n1", gpus=2)
    first = first.with_findings(Finding(Level.OK, "memory", "9 GiB"), Finding(Level.OK, "GPU 0", "fine"))
    second = second.with_findings(Finding(Level.OK, "memory", "8 GiB"), Finding(Level.ERROR, "GPU 1", "broken"))
    merged = merge((first, second))
    assert [gpu.index for gpu in merged.gpus] == [0, 1]
    assert [str(finding) for finding in merged.findings] == ["memory: 9 GiB", "GPU 0: fine", "GPU 1: broken"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=11))
def test_every_two_groups_meet_once_and_nobody_talks_to_two_at_a_time(sizes):
    ranks = itertools.count()
    groups = [[next(ranks) for _ in range(size)] for size in sizes]
    group_of = {rank: number for number, group in enumerate(groups) for rank in group}
    met = []
    for pairs in rounds(groups, most=99):
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))
        met += [tuple(sorted((group_of[a], group_of[b]))) for a, b in pairs]
    for pair in itertools.combinations(range(len(groups)), 2):
        assert met.count(pair) == min(len(groups[pair[0]]), len(groups[pair[1]]))
    assert sum(len(pairs) for pairs in rounds(groups, most=2)) <= 2 * max(sizes) * (len(sizes) + 1)


def connections(speed_of_pair: dict) -> list[Connection]:
    return [
        Connection(*pair, speed, None if speed is None else 1e-5, "broken" if speed is None else None)
        for pair, speed in speed_of_pair.items()
    ]


def test_the_process_with_slow_connections_is_found_and_not_its_partners():
    found = connections({(0, 1): 9.0, (0, 2): 1.0, (1, 2): 1.2})
    assert slow(speeds(found)) == {2: pytest.approx(1.2 / 9)}
    assert slow(speeds(connections({(0, 1): 1.0}))) == {}, "of two, neither can be called slow"


def test_the_process_that_nobody_reaches_is_cut_off_and_a_broken_line_blames_both_ends():
    many = connections({(0, 1): 9.0, (0, 2): None, (1, 2): None, (2, 3): None, (0, 3): 8.0, (1, 3): 8.0})
    assert cut_off(many) == {2: [0, 1, 3]}
    assert cut_off(connections({(0, 1): None, (0, 2): 9.0, (1, 2): 9.0})) == {0: [1], 1: [0]}


def test_the_better_of_two_measurements_counts():
    twice = [*connections({(0, 1): 5.0, (0, 2): None}), *connections({(0, 1): 7.0, (0, 2): 6.0})]
    assert [(each.second, each.speed) for each in best_of(twice)] == [(1, 7.0), (2, 6.0)]
