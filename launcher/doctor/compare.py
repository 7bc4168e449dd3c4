"""Which nodes may train together: a judgement over the reports of all of them. No node is asked anything here."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.doctor.findings import NodeReport
from launcher.doctor.versions import CODE, DRIVER

CLOCK_WARNING_SECONDS = 1.0
CLOCK_ERROR_SECONDS = 30.0
SLOW_DEVICE = 0.8
"""Share of the usual speed below which a GPU is slow."""
_ENOUGH_TO_VOTE = 3


@dataclass(frozen=True)
class Verdict:
    """What is to be done with the nodes.

    Attributes:
        good: nodes that may train together, in the order given.
        bad: the others, each with the reason and what to do.
        warnings: what to look at, though a run works.
    """

    good: tuple[str, ...]
    bad: Mapping[str, str]
    warnings: tuple[str, ...]

    def without(self, bad: Mapping[str, str], warnings: Sequence[str] = ()) -> Verdict:
        """The same, with more nodes found bad."""
        joined = dict(self.bad)
        for node, reason in bad.items():
            joined[node] = f"{joined[node]}; {reason}" if node in joined else reason
        good = tuple(node for node in self.good if node not in joined)
        return Verdict(good, joined, (*self.warnings, *warnings))


def compare(
    reports: Sequence[NodeReport],
    received: Mapping[str, float] | None = None,
    missing: Mapping[str, Collection[str]] | None = None,
) -> Verdict:
    """Find the nodes that differ from the rest, or are unfit by themselves.

    Where nodes differ, those that are fewer are bad; of two equal parties, the one without the first node.

    Args:
        reports: one for each node.
        received: by node, when its report was received (seconds since 1970, clock of who received them), which must
            be soon after the time in the report. None: clocks are not compared.
        missing: by node, the nodes whose tokens it does not see: :func:`launcher.doctor.tokens.missing_tokens`.
            None: directories are not compared.
    """
    nodes = tuple(report.node for report in reports)
    verdict = Verdict(nodes, {}, ())
    for report in reports:
        if report.errors:
            verdict = verdict.without({report.node: "; ".join(map(str, report.errors))})
    verdict = verdict.without(
        _odd_versions(reports), [*_different_drivers(reports), *_different_gpus(reports), *_slow_devices(reports)]
    )
    if received is not None:
        offsets = {report.node: report.time - received[report.node] for report in reports}
        verdict = verdict.without(*_clocks(offsets))
    if missing is not None:
        verdict = verdict.without(_apart(nodes, missing))
    return verdict


def _odd_versions(reports: Sequence[NodeReport]) -> dict[str, str]:
    """Nodes whose software is not that of most, with what differs."""
    kinds = [tuple(sorted((name, text) for name, text in r.versions.items() if name != DRIVER)) for r in reports]
    common = dict(_most_common(kinds))
    return {
        report.node: _difference(report, common)
        for report, kind in zip(reports, kinds, strict=True)
        if dict(kind) != common
    }


def _difference(report: NodeReport, common: Mapping[str, str]) -> str:
    names = sorted((report.versions.keys() | common.keys()) - {DRIVER})
    texts = [
        f"{_called(name)} {report.versions.get(name, 'missing')} instead of {common.get(name, 'none')}"
        for name in names
        if report.versions.get(name) != common.get(name)
    ]
    return f"has {', '.join(texts)}: install the same as on the other nodes"


def _called(name: str) -> str:
    return "this program's code" if name == CODE else name


def _different_drivers(reports: Sequence[NodeReport]) -> Iterator[str]:
    yield from _differing("driver", {r.node: r.versions[DRIVER] for r in reports if DRIVER in r.versions})


def _different_gpus(reports: Sequence[NodeReport]) -> Iterator[str]:
    yield from _differing("GPUs", {report.node: describe_gpus(report) for report in reports})


def describe_gpus(report: NodeReport) -> str:
    """`8 x NVIDIA H100 80GB HBM3`, or `none`."""
    names = Counter(gpu.name for gpu in report.gpus)
    return ", ".join(f"{count} x {name}" for name, count in sorted(names.items())) or "none"


def _differing(what: str, values: Mapping[str, str]) -> Iterator[str]:
    """One warning that names the nodes of each value, if there is more than one value."""
    parties: dict[str, list[str]] = {}
    for node, value in values.items():
        parties.setdefault(value, []).append(node)
    if len(parties) > 1:
        texts = (f"{value} on {listed(nodes)}" for value, nodes in parties.items())
        yield f"nodes have different {what}: {'; '.join(texts)}"


def _slow_devices(reports: Sequence[NodeReport]) -> Iterator[str]:
    """GPUs that compute slower than most; what else a CPU does would say more of it than its health."""
    speeds = {
        (report.node, device): speed
        for report in reports
        for device, speed in report.speeds.items()
        if report.device == "cuda"
    }
    usual = statistics.median(speeds.values()) if len(speeds) >= _ENOUGH_TO_VOTE else 0.0
    for (node, device), speed in speeds.items():
        if speed < SLOW_DEVICE * usual:
            yield f"{node}: {device} computes {speed / 1e12:.0f} TFLOP/s, the usual is {usual / 1e12:.0f}"


def _clocks(offsets: Mapping[str, float]) -> tuple[dict[str, str], list[str]]:
    """Nodes whose clock is far off, and warnings for those that are a little off.

    From three nodes on the middle clock is right, whoever received the reports; of two, the receiver's.
    """
    right = statistics.median(offsets.values()) if len(offsets) >= _ENOUGH_TO_VOTE else 0.0
    bad, warnings = {}, []
    for node, offset in offsets.items():
        off = offset - right
        text = f"clock is {abs(off):.1f} s {'ahead' if off > 0 else 'behind'}"
        if abs(off) > CLOCK_ERROR_SECONDS:
            bad[node] = f"{text}: set it (chrony, ntp)"
        elif abs(off) > CLOCK_WARNING_SECONDS:
            warnings.append(f"{node}: {text}; times in logs and events will be off, too")
    return bad, warnings


def _apart(nodes: Sequence[str], missing: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Nodes that do not share their run directory with most."""
    parties = _parties(nodes, missing)
    main = max(parties, key=len)
    return {
        node: f"does not see the run directory of {listed(main)}: mount the same file system there"
        for party in parties
        if party is not main
        for node in party
    }


def _parties(nodes: Sequence[str], missing: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Nodes that see each other's tokens; the party of the first node first. A node sees at least itself."""
    parties: list[list[str]] = []
    for node in nodes:
        for party in parties:
            if all(node not in missing.get(other, ()) and other not in missing.get(node, ()) for other in party):
                party.append(node)
                break
        else:
            parties.append([node])
    return parties


def _most_common(kinds: Sequence[tuple[tuple[str, str], ...]]) -> tuple[tuple[str, str], ...]:
    counts = Counter(kinds)  # equal counts keep the order of nodes
    return counts.most_common(1)[0][0]


def listed(nodes: Sequence[str], most: int = 4) -> str:
    """`n1, n2 and 14 more`."""
    shown = ", ".join(nodes[:most])
    return shown if len(nodes) <= most else f"{shown} and {len(nodes) - most} more"
