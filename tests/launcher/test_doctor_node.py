"""What is found on one node: on real disks that are full, read-only or frozen, and in what drivers say."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.doctor.adapters import adapter_findings
from launcher.doctor.arithmetic import WrongResultError, check_arithmetic
from launcher.doctor.findings import Level, Needs, NodeReport
from launcher.doctor.gpus import is_visible
from launcher.doctor.node import examine_node
from launcher.doctor.tokens import TokenError, missing_tokens, remove_token, write_token
from launcher.doctor.versions import versions

GPU_FIELDS = (
    "index,uuid,name,driver_version,memory.total,memory.used,memory.free,temperature.gpu,"
    "ecc.errors.uncorrected.volatile.total,retired_pages.pending,clocks_event_reasons.active"
)
HEALTHY = "0, GPU-aa, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 3, 81088, 31, 0, No, 0x0000000000000001"


def found(report: NodeReport, what: str) -> list:
    return [finding for finding in report.findings if finding.what == what]


def only(report: NodeReport, what: str):
    (finding,) = found(report, what)
    return finding


def test_a_node_is_examined_without_torch_threads_or_traces(tmp_path):
    code = """
import sys, threading
from pathlib import Path
from launcher.doctor.compare import compare
from launcher.doctor.node import examine_node
from launcher.doctor.tokens import missing_tokens, write_token
report = examine_node(Path(sys.argv[1]), "cpu", "n7")
assert compare([report]).good == ("n7",), report.errors
assert threading.active_count() == 1
assert not {"torch", "numpy", "pydantic"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_report_says_what_this_machine_says_of_itself_and_goes_through_json(tmp_path):
    report = examine_node(tmp_path / "a" / "run", "cpu", "n7")
    assert report.errors == ()
    assert report.versions["torch"] == torch.__version__
    assert report.versions["python"] == sys.version.split()[0]
    assert report.versions.get("cuda") == torch.version.cuda
    assert report.memory_free > 0
    assert "free in" in only(report, "run directory").detail
    assert not (tmp_path / "a").exists()
    assert NodeReport.of_json(json.loads(json.dumps(report.as_json()))) == report


def test_another_line_of_code_is_another_version(tmp_path):
    for package in ("launcher/doctor", "launcher", "ptm_dist", "data_pipeline"):
        folder = tmp_path / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("")
    name = "launcher/doctor/versions.py"
    (tmp_path / name).write_text((Path(__file__).resolve().parents[2] / name).read_text())

    def fingerprint() -> str:
        code = "from launcher.doctor.versions import code_fingerprint; print(code_fingerprint())"
        environ = {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environ, text=True, check=True, capture_output=True).stdout

    first = fingerprint()
    assert first == fingerprint()
    (tmp_path / "ptm_dist" / "model.py").write_text("WIDTH = 7\n")
    second = fingerprint()
    (tmp_path / "ptm_dist" / "model.py").write_text("WIDTH = 8\n")
    assert len({first, second, fingerprint(), versions()["code"] + "\n"}) == 4


def test_a_full_disk_is_an_error_that_says_so(small_disk):
    (small_disk / "filler").write_bytes(b"x" * (900 << 10))
    report = examine_node(small_disk / "run", "cpu")
    assert only(report, "run directory").level is Level.ERROR
    assert "its disk is full" in only(report, "run directory").detail
    assert report.disk_free is None
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_room_for_less_than_two_checkpoints_is_an_error(small_disk):
    report = examine_node(small_disk, "cpu", needs=Needs(disk=2 << 20))
    assert only(report, "run directory").level is Level.ERROR
    assert "two checkpoints need" in only(report, "run directory").detail
    assert report.disk_free == 1 << 20
    assert examine_node(small_disk, "cpu", needs=Needs(disk=1 << 20)).errors == ()


def test_a_read_only_folder_is_an_error(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    report = examine_node(small_disk, "cpu")
    assert "Read-only file system" in only(report, "run directory").detail
    with pytest.raises(TokenError, match=f"n1 cannot write to {small_disk}: Read-only file system"):
        write_token(small_disk, "n1")


@pytest.fixture
def frozen_disk(tmp_path):
    """A file system that lets nobody write and nobody go, as one whose server is gone."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as stream:
        stream.truncate(8 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", str(image)], capture_output=True, check=False).returncode
    if made or subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False).returncode:
        pytest.skip("mounting a file as a disk needs root and a loop device")
    frozen = subprocess.run(["fsfreeze", "-f", str(place)], check=False).returncode == 0
    yield place if frozen else None
    if frozen:
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)
    # What was held inside the kernel has to leave first.
    for _ in range(100):
        if subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0:
            return
        threading.Event().wait(0.1)
    raise AssertionError(f"{place} is still in use")


def test_a_file_system_that_does_not_answer_is_given_up(frozen_disk):
    if frozen_disk is None:
        pytest.skip("freezing a file system needs its permission")
    report = examine_node(frozen_disk, "cpu", patience=1.0)
    assert only(report, "run directory").level is Level.ERROR
    assert "does not answer" in only(report, "run directory").detail


def test_tokens_of_other_nodes_are_seen_in_the_same_folder_only(tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        folder.mkdir()
    nodes = ["n1", "n2", "rack/n3"]
    for node in nodes[:2]:
        write_token(shared, node, "e1")
    write_token(own, "rack/n3", "e1")
    assert missing_tokens(shared, nodes[:2], "e1", patience=0.0) == set()
    assert missing_tokens(shared, nodes, "e1", patience=0.0) == {"rack/n3"}
    assert missing_tokens(own, nodes, "e1", patience=0.0) == {"n1", "n2"}
    assert missing_tokens(shared, ["n1"], "e2", patience=0.0) == {"n1"}, "a token of an earlier examination counted"
    assert missing_tokens(tmp_path / "missing", ["n1"], "e1", patience=0.0) == {"n1"}
    for node in nodes:
        remove_token(shared, node, "e1")
    assert list(shared.iterdir()) == []


def test_a_token_that_shows_late_is_waited_for(tmp_path):
    late = threading.Timer(0.3, write_token, (tmp_path, "n2", "e"))
    late.start()
    write_token(tmp_path, "n1", "e")
    assert missing_tokens(tmp_path, ["n1", "n2"], "e", patience=20.0) == set()
    late.join()


def test_ports_of_network_adapters_that_are_down_are_named(tmp_path):
    """The folder has the form in which the kernel describes adapters; there are none where these tests run."""
    assert adapter_findings(tmp_path) == ()
    for adapter, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / adapter / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
    first = adapter_findings(tmp_path)[0]
    assert (first.level, first.detail) == (Level.WARNING, "mlx5_1 port 1 is DOWN")
    (tmp_path / "mlx5_1" / "ports" / "1" / "state").write_text("4: ACTIVE\n")
    assert adapter_findings(tmp_path)[0].detail == "2 ports are up"


class FlippedBit(TorchDispatchMode):
    """Real products, of which one in a while has one wrong bit: a device that is broken."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.good -= 1
            if self.good < 0:
                bits = result.view(torch.int16 if result.dtype is torch.bfloat16 else torch.int32)
                bits[7, 7] ^= 1
        return result


# Products one by one: the known one (float64), float32, bfloat16, and four times the same.
@pytest.mark.parametrize(
    ("good", "message"),
    [(1, "1 of 1048576 products of torch.float32"), (2, "1 of 1048576 products of torch.bfloat16"), (6, "differently")],
)
def test_a_device_that_gets_one_bit_wrong_is_found(good, message):
    with FlippedBit(good), pytest.raises(WrongResultError, match=f"cpu: .*{message}"):
        check_arithmetic(torch.device("cpu"))


def test_a_sound_device_passes():
    assert check_arithmetic(torch.device("cpu")) > 1e6


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A stand-in for `nvidia-smi`, for what is read from its output alone: there is no GPU where these tests run.

    The texts are in the form of `--format=csv,noheader,nounits` that NVIDIA documents; values are made up.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(gpus: str, remapped: str = "", processes: str = "", script: str = "") -> None:
        for name, text in (("gpu", gpus), ("remapped-rows", remapped), ("compute-apps", processes)):
            (folder / name).write_text(f"{text}\n" if text else "")
        program = folder / "nvidia-smi"
        program.write_text(
            f"""#!/bin/sh
{script}
case "$1" in
  --query-gpu={GPU_FIELDS}) cat {folder}/gpu ;;
  *clocks_throttle_reasons.active*) echo 'Field "clocks_throttle_reasons.active" is not a valid field to query.'
     exit 2 ;;
  --query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure) cat {folder}/remapped-rows ;;
  --query-compute-apps=gpu_uuid,pid,used_memory) cat {folder}/compute-apps ;;
  *) exit 9 ;;
esac
"""
        )
        program.chmod(0o755)

    return install


def test_healthy_gpus_are_counted_though_the_driver_has_forgotten_an_old_field(driver):
    driver(f"{HEALTHY}\n{HEALTHY.replace('0, GPU-aa', '1, GPU-bb')}", "GPU-aa, 0, 0\nGPU-bb, No, No")
    report = examine_node(None, "cuda")
    assert report.errors == ()
    assert [(gpu.index, gpu.uuid, gpu.name) for gpu in report.gpus] == [
        (0, "GPU-aa", "NVIDIA H100 80GB HBM3"),
        (1, "GPU-bb", "NVIDIA H100 80GB HBM3"),
    ]
    assert (report.device, report.versions["driver"]) == ("cuda", "550.54.15")
    assert report.gpus[0].memory_free == 81088 << 20
    assert "81088 of 81559 MiB free" in only(report, "GPU 1").detail


@pytest.mark.parametrize(
    ("gpu", "remapped", "processes", "level", "words"),
    [
        (HEALTHY.replace("31, 0,", "31, 2,"), "", "", Level.ERROR, "2 uncorrectable memory errors"),
        (HEALTHY.replace("No", "Yes"), "", "", Level.ERROR, "a reset would take out of use"),
        (HEALTHY, "GPU-aa, Yes, No", "", Level.ERROR, "a reset would take out of use"),
        (HEALTHY, "GPU-aa, 0, 1", "", Level.ERROR, "could not be replaced"),
        (HEALTHY.replace(", 31,", ", [Unknown Error],"), "", "", Level.ERROR, "cannot read temperature.gpu"),
        (HEALTHY.replace("0001", "0048"), "", "", Level.WARNING, "slowed down by hardware, heat"),
        (HEALTHY.replace(", 31,", ", 91,"), "", "", Level.WARNING, "91 degrees Celsius"),
        (HEALTHY.replace(" 3,", " 40000,"), "", "", Level.WARNING, "40000 of 81559 MiB in use"),
        (HEALTHY, "", "GPU-aa, 4711, 512\nGPU-bb, 1, 1", Level.WARNING, "in use by process 4711 (512 MiB)"),
    ],
)
def test_what_ails_a_gpu_is_found_in_what_its_driver_says(driver, gpu, remapped, processes, level, words):
    driver(gpu, remapped, processes)
    finding = only(examine_node(None, "auto"), "GPU 0")
    assert finding.level is level
    assert words in finding.detail
    assert finding.advice


def test_a_gpu_without_memory_figures_or_error_counters_is_no_broken_one(driver):
    driver("0, GPU-aa, NVIDIA GB10, 580.95, [N/A], [N/A], [N/A], 40, [N/A], [N/A], 0x0000000000000000")
    report = examine_node(None, "cuda", needs=Needs(device_memory=1 << 40))
    assert report.errors == ()
    assert report.gpus[0].memory_total is None


def test_a_gpu_too_small_for_the_run_is_an_error(driver):
    driver(HEALTHY)
    report = examine_node(None, "cuda", needs=Needs(device_memory=90 << 30))
    assert "79.2 GiB free, the run needs about 90.0 GiB" in str(report.errors)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9",
            "has failed because",
        ),
        ("echo 'Unable to determine the device handle for GPU1: 0000:3B:00.0: GPU is lost.'; exit 15", "GPU is lost"),
        ("exec sleep 30", "did not answer in 1 s: the driver hangs"),
    ],
)
def test_a_driver_that_fails_or_hangs_is_an_error(driver, script, words):
    driver(HEALTHY, script=script)
    report = examine_node(None, "auto", patience=1.0)
    assert words in only(report, "GPUs").detail
    assert only(report, "GPUs").level is Level.ERROR
    assert report.device == "cpu"


def test_a_machine_without_a_driver_is_fine_unless_gpus_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    assert examine_node(None, "auto").errors == ()
    assert found(examine_node(None, "cpu"), "GPUs") == []
    assert "no program nvidia-smi" in str(examine_node(None, "cuda").errors)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [0, 1, 2]), ("", []), ("2,0", [0, 2]), ("GPU-bb", [1]), (" 1 ", [1])],
)
def test_gpus_that_a_process_may_not_use_are_left_out(visible, expected):
    rows = [{"index": str(index), "uuid": uuid} for index, uuid in enumerate(("GPU-aa", "GPU-bb", "GPU-cc"))]
    assert [int(row["index"]) for row in rows if is_visible(row, visible)] == expected
