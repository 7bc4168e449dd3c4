from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules as torch_schedules
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping

from ptm_dist.errors import LayoutError
from ptm_dist.parallel.schedules import Action, Kind, Schedule, build_schedule, schedule_problems
from ptm_dist.recipe.schema import PipelineSchedule

NAMES = {
    PipelineSchedule.GPIPE: "GPipe",
    PipelineSchedule.ONE_F_ONE_B: "1F1B",
    PipelineSchedule.LOOPED_BFS: "LoopedBFS",
    PipelineSchedule.INTERLEAVED_1F1B: "Interleaved1F1B",
    PipelineSchedule.INTERLEAVED_ZERO_BUBBLE: "InterleavedZeroBubble",
    PipelineSchedule.ZBV_ZERO_BUBBLE: "ZBVZeroBubble",
    PipelineSchedule.DUALPIPEV: "DualPipeV",
}
SINGLE = (PipelineSchedule.GPIPE, PipelineSchedule.ONE_F_ONE_B)
V_SHAPED = (PipelineSchedule.ZBV_ZERO_BUBBLE, PipelineSchedule.DUALPIPEV)
LOOPED = tuple(kind for kind in NAMES if kind not in SINGLE + V_SHAPED)
SPLIT = (PipelineSchedule.INTERLEAVED_ZERO_BUBBLE, *V_SHAPED)
Cells = dict[int, list[str]]


def stages_per_rank_of(kind: PipelineSchedule) -> tuple[int, ...]:
    return (1,) if kind in SINGLE else (2,) if kind in V_SHAPED else (1, 2, 3)


def torch_schedule(kind: PipelineSchedule, ranks: int, stages_per_rank: int, micro_batches: int) -> Any:
    stages = [
        SimpleNamespace(group_rank=0, group_size=ranks, num_stages=ranks * stages_per_rank, submod=None)
        for _ in range(stages_per_rank)
    ]
    return torch_schedules.get_schedule_class(NAMES[kind])(stages[0] if kind in SINGLE else stages, micro_batches)


def torch_cells(kind: PipelineSchedule, ranks: int, stages_per_rank: int, micro_batches: int) -> Cells:
    """What torch's schedule computes, as it prints its actions."""
    order = torch_schedule(kind, ranks, stages_per_rank, micro_batches).pipeline_order
    printed, last = printed_actions(order), ranks - 1
    if kind is PipelineSchedule.ONE_F_ONE_B and f"{last}F{micro_batches}" in printed[last]:
        # In this table, which torch's runner does not use, the last rank counts its forward passes from 1.
        printed[last] = [f"{last}F{micro_of(cell) - 1}" if "F" in cell else cell for cell in printed[last]]
    return printed


def printed_actions(order: dict[int, Any]) -> Cells:
    """Computations only, the two of an overlapped pair one by one."""
    computed = {rank: [action for action in row if action and action.is_compute_op] for rank, row in order.items()}
    return {
        rank: [str(single) for action in row for single in action.sub_actions or (action,)]
        for rank, row in computed.items()
    }


def micro_of(cell: str) -> int:
    return torch_schedules._Action.from_str(cell).microbatch_index


def cells(schedule: Schedule) -> Cells:
    return {rank: [str(action) for action in actions] for rank, actions in enumerate(schedule.actions)}


def write_table(path: Path, rows: Cells | list[list[str]]) -> Path:
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows(rows.values() if isinstance(rows, dict) else rows)
    return path


@st.composite
def sizes(draw: st.DrawFn) -> tuple[PipelineSchedule, int, int, int]:
    kind = draw(st.sampled_from(list(NAMES)))
    return (
        kind,
        draw(st.integers(1, 6)),
        draw(st.sampled_from(stages_per_rank_of(kind))),
        draw(st.integers(1, 15)),
    )


@pytest.mark.parametrize("kind", NAMES)
def test_ranks_act_in_torchs_order_wherever_torch_has_one(kind):
    compared = 0
    for ranks in (1, 2, 3, 4, 6):
        for per_rank in stages_per_rank_of(kind):
            for micro_batches in (1, 2, 3, 4, 6, 7, 8, 12):
                try:
                    expected = torch_cells(kind, ranks, per_rank, micro_batches)
                except ValueError:
                    continue
                assert cells(build_schedule(kind, ranks, per_rank, micro_batches)) == expected
                compared += 1
    assert compared >= 15


@pytest.mark.parametrize(
    ("kind", "ranks", "micro_batches", "published"),
    [
        (PipelineSchedule.ONE_F_ONE_B, 4, 2, 4),
        (PipelineSchedule.ONE_F_ONE_B, 4, 1, 9),
        (PipelineSchedule.INTERLEAVED_1F1B, 3, 7, 8),
        (PipelineSchedule.INTERLEAVED_ZERO_BUBBLE, 4, 13, 15),
        (PipelineSchedule.DUALPIPEV, 4, 3, 8),
    ],
)
def test_a_number_of_micro_batches_that_torch_refuses_keeps_the_order_of_a_larger_step(
    kind, ranks, micro_batches, published
):
    per_rank = 1 if kind in SINGLE else 2
    with pytest.raises(ValueError, match="micro"):
        torch_schedule(kind, ranks, per_rank, micro_batches)
    larger = torch_cells(kind, ranks, per_rank, published)
    kept = {rank: [cell for cell in row if micro_of(cell) < micro_batches] for rank, row in larger.items()}
    assert cells(build_schedule(kind, ranks, per_rank, micro_batches)) == kept


@given(sizes())
@settings(max_examples=150, deadline=None)
def test_torch_finds_every_table_complete_and_free_of_deadlocks(size):
    _, ranks, _, micro_batches = size
    schedule = build_schedule(*size)
    order = {rank: [torch_schedules._Action.from_str(cell) for cell in row] for rank, row in cells(schedule).items()}
    rank_of = torch_schedules._validate_schedule(order, ranks, schedule.stages, micro_batches)
    assert tuple(rank_of[stage] for stage in range(schedule.stages)) == schedule.rank_of
    counted = Counter(action for row in schedule.actions for action in row)
    assert set(counted.values()) == {1}
    with_messages = torch_schedules._add_send_recv(order, rank_of.__getitem__, schedule.stages)
    torch_schedules._simulate_comms_compute(with_messages, rank_of.__getitem__, schedule.stages)


@given(sizes())
@settings(max_examples=60, deadline=None)
def test_stages_go_round_the_ranks_or_there_and_back(size):
    kind, ranks, per_rank, _ = size
    style = "v" if kind in V_SHAPED else "loop"
    expected = generate_stage_to_rank_mapping(ranks, ranks * per_rank, style)
    assert dict(enumerate(build_schedule(*size).rank_of)) == expected


@given(sizes())
@settings(max_examples=60, deadline=None)
def test_every_result_that_another_rank_waits_for_is_one_message_in_the_order_of_its_sender(size):
    schedule = build_schedule(*size)
    for kind, step in ((Kind.FORWARD, -1), (Kind.BACKWARD, 1)):
        sent = {
            (source, target): schedule.messages(source, target, kind)
            for source in range(schedule.ranks)
            for target in range(schedule.ranks)
        }
        waited_for: dict[tuple[int, int], list[tuple[int, int]]] = {pair: [] for pair in sent}
        for target, row in enumerate(schedule.actions):
            for action in row:
                read = action.stage + step
                reads = action.kind is Kind.FORWARD if step < 0 else action.kind in {Kind.BACKWARD, Kind.INPUT}
                if reads and 0 <= read < schedule.stages and schedule.rank_of[read] != target:
                    waited_for[schedule.rank_of[read], target].append((read, action.micro))
        for (source, target), actions in sent.items():
            assert sorted((action.stage, action.micro) for action in actions) == sorted(waited_for[source, target])
            places = [schedule.actions[source].index(action) for action in actions]
            assert all(earlier < later for earlier, later in pairwise(places))


@given(st.integers(1, 8), st.integers(1, 20), st.floats(0.25, 4.0))
@settings(max_examples=60, deadline=None)
def test_gpipe_and_1f1b_wait_as_long_as_their_papers_say(ranks, micro_batches, backward):
    for kind in SINGLE:
        bubble = build_schedule(kind, ranks, 1, micro_batches).bubble(1.0, backward)
        assert bubble == pytest.approx((ranks - 1) / (micro_batches + ranks - 1), abs=1e-12)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_interleaving_divides_the_wait_by_the_stages_per_rank(ranks, per_rank, rounds):
    bubble = build_schedule(PipelineSchedule.INTERLEAVED_1F1B, ranks, per_rank, rounds * ranks).bubble()
    assert bubble == pytest.approx((ranks - 1) / (per_rank * rounds * ranks + ranks - 1), abs=1e-12)


def test_putting_weights_off_shortens_the_wait():
    for ranks in (2, 4, 8):
        for micro_batches in (2 * ranks, 4 * ranks, 4 * ranks + 1):
            plain = build_schedule(PipelineSchedule.ONE_F_ONE_B, ranks, 1, micro_batches).bubble()
            interleaved = build_schedule(PipelineSchedule.INTERLEAVED_1F1B, ranks, 2, micro_batches).bubble()
            for kind in SPLIT:
                assert build_schedule(kind, ranks, 2, micro_batches).bubble() < min(plain, interleaved)


@given(st.integers(1, 8), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_1f1b_holds_as_many_micro_batches_as_stages_follow_and_gpipe_holds_all(ranks, micro_batches):
    one_f_one_b = build_schedule(PipelineSchedule.ONE_F_ONE_B, ranks, 1, micro_batches)
    gpipe = build_schedule(PipelineSchedule.GPIPE, ranks, 1, micro_batches)
    for rank in range(ranks):
        assert one_f_one_b.in_flight(rank) == {rank: min(ranks - rank, micro_batches)}
        assert gpipe.in_flight(rank) == {rank: micro_batches}


def test_activations_are_held_until_the_gradients_of_weights_are_there(tmp_path):
    late = write_table(tmp_path / "late.csv", [["0F0", "0I0", "0F1", "0I1", "0F2", "0W0", "0W1", "0B2"]])
    soon = write_table(tmp_path / "soon.csv", [["0F0", "0I0", "0W0", "0F1", "0I1", "0W1", "0F2", "0B2"]])
    assert build_schedule(PipelineSchedule.FILE, 1, 1, 3, late).in_flight(0) == {0: 3}
    assert build_schedule(PipelineSchedule.FILE, 1, 1, 3, soon).in_flight(0) == {0: 1}


@pytest.mark.parametrize("kind", NAMES)
def test_only_schedules_that_put_weights_off_split_the_backward_pass(kind):
    assert build_schedule(kind, 4, stages_per_rank_of(kind)[-1], 8).splits_backward == (kind in SPLIT)


@pytest.mark.parametrize("kind", [*LOOPED, *V_SHAPED])
def test_a_table_that_torch_wrote_is_the_schedule_it_was_written_from(kind, tmp_path):
    written = torch_schedule(kind, 4, 2, 8)
    written._dump_csv(tmp_path / "table.csv", format="compute_only")
    assert build_schedule(PipelineSchedule.FILE, 4, 2, 8, tmp_path / "table.csv") == build_schedule(kind, 4, 2, 8)


@pytest.mark.parametrize("kind", [*LOOPED, *V_SHAPED])
def test_a_table_with_torchs_messages_is_read_without_them(kind, tmp_path):
    written = torch_schedule(kind, 4, 2, 8)
    written._dump_csv(tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text()
    assert "SEND_F" in text
    assert "UNSHARD" in text
    read = build_schedule(PipelineSchedule.FILE, 4, 2, 8, tmp_path / "table.csv")
    assert cells(read) == printed_actions(written.pipeline_order_with_comms)


@pytest.mark.parametrize("kind", NAMES)
def test_torch_reads_a_table_of_our_actions(kind, tmp_path):
    schedule = build_schedule(kind, 4, stages_per_rank_of(kind)[-1], 8)
    path = write_table(tmp_path / "table.csv", cells(schedule))
    reader = torch_schedule(PipelineSchedule.LOOPED_BFS, 4, stages_per_rank_of(kind)[-1], 8)
    reader._load_csv(path)
    assert {rank: [str(action) for action in row] for rank, row in reader.pipeline_order.items()} == cells(schedule)


def test_a_table_for_more_micro_batches_serves_a_smaller_step(tmp_path):
    path = write_table(tmp_path / "table.csv", cells(build_schedule(PipelineSchedule.ONE_F_ONE_B, 3, 1, 8)))
    smaller = build_schedule(PipelineSchedule.FILE, 3, 1, 5, path)
    assert smaller == build_schedule(PipelineSchedule.ONE_F_ONE_B, 3, 1, 5)


def test_a_table_may_place_stages_anywhere_and_leave_gaps(tmp_path):
    rows = [["0F0", "2F0", "", "2B0", "", "0B0"], ["", " 1F0 ", "", "", "1I0", "1W0"]]
    path = tmp_path / "table.csv"
    path.write_text("\ufeff" + "\r\n".join(",".join(row) for row in rows) + "\r\n\r\n", encoding="utf-8")
    with pytest.raises(LayoutError, match="has stages 0 to 2"):
        build_schedule(PipelineSchedule.FILE, 2, 2, 1, path)
    rows[1][-1:] = ["1W0", "3F0", "3B0"]
    rows[0] = ["0F0", "2F0", "2B0", "0B0"]
    with pytest.raises(LayoutError, match="never ends"):
        build_schedule(PipelineSchedule.FILE, 2, 2, 1, write_table(path, rows))
    rows[1] = ["", " 1F0 ", "3F0", "3B0", "1I0", "1W0"]
    schedule = build_schedule(PipelineSchedule.FILE, 2, 2, 1, write_table(path, rows))
    assert schedule.rank_of == (0, 1, 0, 1)
    assert schedule.splits_backward
    assert schedule.messages(1, 0, Kind.BACKWARD) == (Action(Kind.BACKWARD, 3, 0), Action(Kind.INPUT, 1, 0))


GOOD = [["0F0", "0F1", "", "0B0", "0B1"], ["", "1F0", "1B0", "1F1", "1B1"]]


@pytest.mark.parametrize(
    ("row", "column", "cell", "message"),
    [
        (0, 1, "0G1", "table.csv, row 1, column 2: '0G1' is not an action; write stage, letter and micro-batch"),
        (1, 4, "1B", "table.csv, row 2, column 5: '1B' is not an action"),
        (1, 4, "(1B1;1X1)OVERLAP_F_B", "column 5: '(1B1;1X1)OVERLAP_F_B' is not an action"),
        (
            0,
            4,
            "0F1",
            "table.csv: stage 0 has F F for micro-batch 1; every micro-batch needs F and either B or I and W",
        ),
        (1, 4, "1I1", "table.csv: stage 1 has F I for micro-batch 1"),
        (1, 2, "0B0", "table.csv has stage 0 in rows 1 and 2; a stage belongs to one rank"),
        (0, 2, "0F99999999999999", "has nothing for micro-batch 2, stage 1 has nothing for micro-batch 2, stage 0 has"),
        (0, 2, "7F0", "table.csv has stages 0 to 7; layout.pipeline_parallel=2 and layout.pipeline_stages_per_rank=1"),
    ],
)
def test_a_wrong_cell_is_one_message_that_says_where(row, column, cell, message, tmp_path):
    rows = [list(cells) for cells in GOOD]
    rows[row][column] = cell
    path = write_table(tmp_path / "table.csv", rows)
    (problem,) = schedule_problems(PipelineSchedule.FILE, 2, 1, 2, path)
    assert message in problem
    with pytest.raises(LayoutError) as error:
        build_schedule(PipelineSchedule.FILE, 2, 1, 2, path)
    assert str(error.value) == problem


def test_a_table_that_never_ends_says_where_its_ranks_stop(tmp_path):
    rows = [GOOD[0], ["1F1", "1B1", "1F0", "1B0"]]
    rows[0] = ["0F0", "0B0", "0F1", "0B1"]
    (problem,) = schedule_problems(PipelineSchedule.FILE, 2, 1, 2, write_table(tmp_path / "table.csv", rows))
    assert "never ends: row 1 stops at 0B0, which needs 1B0, row 2 stops at 1F1, which needs 0F1" in problem


@pytest.mark.parametrize(
    ("kind", "ranks", "per_rank", "micro_batches", "message"),
    [
        (PipelineSchedule.FILE, 3, 1, 2, "has 2 rows, one for each pipeline rank, and layout.pipeline_parallel=3"),
        (PipelineSchedule.FILE, 2, 2, 2, "make 4: use layout.pipeline_stages_per_rank=1"),
        (PipelineSchedule.FILE, 2, 1, 3, "has 2 micro-batches, a step of this recipe 3; write a table for as many"),
        (PipelineSchedule.GPIPE, 2, 1, 2, "has no effect with layout.pipeline_schedule=gpipe; leave it out"),
    ],
)
def test_a_table_that_does_not_fit_the_layout_says_what_would(kind, ranks, per_rank, micro_batches, message, tmp_path):
    path = write_table(tmp_path / "table.csv", GOOD)
    (problem,) = schedule_problems(kind, ranks, per_rank, micro_batches, path)
    assert message in problem


@pytest.mark.parametrize(
    ("kind", "per_rank", "message"),
    [
        (PipelineSchedule.GPIPE, 2, "use 1 (or leave it out), or layout.pipeline_schedule=interleaved_1f1b"),
        (PipelineSchedule.DUALPIPEV, 3, "use 2 (or leave it out)"),
        (PipelineSchedule.FILE, 1, "layout.pipeline_schedule=file needs layout.pipeline_schedule_file"),
    ],
)
def test_keys_that_do_not_suit_the_schedule_say_what_would(kind, per_rank, message):
    (problem,) = schedule_problems(kind, 2, per_rank, 4)
    assert message in problem
    with pytest.raises(LayoutError, match="pipeline_schedule"):
        build_schedule(kind, 2, per_rank, 4)


@pytest.mark.parametrize("content", [None, b"", b"0F0\xff\xfe,0B0", b"\n\n"])
def test_a_file_that_is_no_table_is_one_message(content, tmp_path):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    (problem,) = schedule_problems(PipelineSchedule.FILE, 2, 1, 2, path)
    assert str(path) in problem
    assert "row" in problem


def test_checking_a_schedule_does_not_import_torch():
    program = (
        "import sys\n"
        "from ptm_dist.parallel.schedules import schedule_problems\n"
        "from ptm_dist.parallel.stages import split_problems\n"
        "from ptm_dist.recipe.schema import PipelineSchedule\n"
        "assert not list(schedule_problems(PipelineSchedule.DUALPIPEV, 2, 2, 4))\n"
        "assert not list(split_problems(8, 4, None))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
