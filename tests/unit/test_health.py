"""Health: what the numbers of a machine mean, and that they are read from NVML and from the kernel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from spotrun.launcher.health import HealthMonitor, classify, lasting
from spotrun.launcher.notices.notice import Grade
from spotrun.launcher.vitals import Gpu, Gpus, Space, Vitals, cgroup_memory, memory, space, visible
from tests.fakes.nvml import FakeGpu, FakeNvml
from tests.notice_sources import Heard
from tests.waiting import DEADLINE_S

GIB = 1 << 30


def verdict(vitals: Vitals) -> dict[str, Grade]:
    return {finding.id: finding.grade for finding in classify(vitals)}


def of_gpu(**values: object) -> dict[str, Grade]:
    return verdict(Vitals(gpus=(Gpu(0, "GPU-1", **values),)))  # type: ignore[arg-type]


def test_a_machine_in_good_health_has_no_findings() -> None:
    gpu = Gpu(0, "GPU-1", temperature_c=80, slowdown_c=92, shutdown_c=95)
    half = Space("x", 100 * GIB, 50 * GIB)
    assert verdict(Vitals((gpu,), half, half, (half,))) == {}
    assert verdict(Vitals()) == {}


def test_a_broken_gpu_drains_its_node() -> None:
    assert of_gpu(lost="GPU is lost") == {"gpu0-lost": Grade.WILL}
    assert of_gpu(uncorrectable=1) == {"gpu0-ecc": Grade.WILL}
    assert of_gpu(remap_failed=True) == {"gpu0-remap-failed": Grade.WILL}
    assert of_gpu(temperature_c=93, shutdown_c=95, slowdown_c=90) == {"gpu0-shutdown": Grade.WILL}


def test_a_gpu_that_is_getting_there_is_a_reason_to_save() -> None:
    assert of_gpu(remap_pending=True) == {"gpu0-remap-pending": Grade.MAY}
    assert of_gpu(temperature_c=90, shutdown_c=95, slowdown_c=90) == {"gpu0-hot": Grade.MAY}


@pytest.mark.parametrize(
    ("xid", "grade"),
    [
        (79, Grade.WILL), (48, Grade.WILL), (95, Grade.WILL), (119, Grade.WILL), (64, Grade.WILL),
        (74, Grade.MAY), (94, Grade.MAY), (63, Grade.MAY), (9999, Grade.MAY),
        (13, None), (31, None), (43, None), (45, None), (109, None),
    ],
)  # fmt: skip
def test_an_xid_is_the_programs_the_gpus_or_the_end(xid: int, grade: Grade | None) -> None:
    assert of_gpu(xids=frozenset({xid})) == ({f"gpu0-xid{xid}": grade} if grade else {})


def test_memory_and_shm_drain_only_when_there_is_none_left_for_a_while() -> None:
    low, out = Space("x", 100 * GIB, 4 * GIB), Space("x", 100 * GIB, GIB // 2)
    assert verdict(Vitals(memory=low, shm=low)) == {"memory-low": Grade.MAY, "shm-low": Grade.MAY}
    findings = classify(Vitals(memory=out))
    assert [(it.id, it.grade) for it in findings] == [("memory-low", Grade.MAY), ("memory-out", Grade.WILL)]
    now, since_s = lasting(findings, {}, 100.0)
    assert [it.id for it in now] == ["memory-low"]
    now, since_s = lasting(findings, since_s, 120.0)
    assert [it.id for it in now] == ["memory-low"]
    now, since_s = lasting(findings, since_s, 131.0)
    assert [it.id for it in now] == ["memory-low", "memory-out"]
    _, since_s = lasting([], since_s, 132.0)
    now, _ = lasting(findings, since_s, 133.0)
    assert [it.id for it in now] == ["memory-low"]  # it begins anew


def test_a_full_disk_is_said_and_drains_nobody() -> None:
    disk = Space("/tmp", 100 * GIB, 0)
    assert verdict(Vitals(disks=(disk,))) == {"disk-/tmp": Grade.MAY}


def test_only_the_gpus_of_the_workers_count() -> None:
    gpus = [Gpu(0, "GPU-aaaa-1"), Gpu(1, "GPU-bbbb-2"), Gpu(2, "")]

    def seen(text: str) -> list[int]:
        return [gpu.index for gpu in visible(gpus, {"CUDA_VISIBLE_DEVICES": text})]

    assert seen("1") == [1] and seen("2, 0") == [0, 2] and seen("GPU-bbbb") == [1]
    assert seen("") == [] and seen("-1") == []
    assert seen("MIG-1234") == [0, 1, 2]
    assert [gpu.index for gpu in visible(gpus, {})] == [0, 1, 2]


# Reading


@contextmanager
def opened() -> Iterator[Gpus]:
    gpus = Gpus()
    try:
        yield gpus
    finally:
        gpus.close()


def test_nvml_is_read_and_given_back() -> None:
    with FakeNvml([FakeGpu(uncorrectable=7), FakeGpu(has_ecc=False)]) as nvml:
        with opened() as gpus:
            one, two = gpus.read()
            assert (one.temperature_c, one.slowdown_c, one.shutdown_c, one.lost) == (50, 92, 95, "")
            assert (one.uncorrectable, two.uncorrectable) == (0, 0)  # what was there before is not news
            assert (
                one.uuid.startswith("GPU-00000000") and nvml.gpus[0].registered == pynvml.nvmlEventTypeXidCriticalError
            )
            nvml.gpus[0].uncorrectable = 9
            nvml.gpus[1].remap = (1, 1, 1, 1)
            nvml.xid(1, 79)
            nvml.xid(1, 13)
            nvml.xid(0, 31)
            one, two = gpus.read()
            assert (one.uncorrectable, one.xids) == (2, frozenset({31}))
            assert (two.remap_pending, two.remap_failed, two.xids) == (True, True, frozenset({79, 13}))
            nvml.gpus[0].lost = True
            assert gpus.read()[0].lost == "GPU is lost"
            assert gpus.read()[1].xids == frozenset({79, 13})  # stays
        assert (nvml.initialized, nvml.event_sets) == (0, 0)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNKNOWN])
def test_a_gpu_that_was_lost_before_us_is_lost(code: int) -> None:
    with FakeNvml([FakeGpu(missing=code), FakeGpu()]), opened() as gpus:
        one, two = gpus.read()
    assert one.lost and not two.lost


def test_a_gpu_that_we_may_not_see_is_not_lost() -> None:
    with FakeNvml([FakeGpu(missing=pynvml.NVML_ERROR_NO_PERMISSION)]), opened() as gpus:
        assert not gpus.read()[0].lost


def test_without_a_driver_there_are_no_gpus() -> None:
    with FakeNvml(init_fails=pynvml.NVML_ERROR_DRIVER_NOT_LOADED) as nvml, opened() as gpus:
        assert gpus.read() == () and nvml.initialized == 0


def test_a_limit_on_memory_counts_where_it_is_tighter(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/job\n")
    folder = tmp_path / "job"
    folder.mkdir()
    assert cgroup_memory(tmp_path, own) is None
    (folder / "memory.max").write_text("1000000\n")
    (folder / "memory.current").write_text("900000\n")
    (folder / "memory.stat").write_text("anon 700000\ninactive_file 150000\nactive_file 50000\n")
    assert cgroup_memory(tmp_path, own) == Space("memory of this cgroup", 1000000, 300000)
    assert memory(tmp_path, own).free_bytes == 300000
    (folder / "memory.max").write_text("max\n")
    assert memory(tmp_path, own).path == "host memory"


def test_a_path_that_is_not_there_has_no_space(tmp_path: Path) -> None:
    assert space(str(tmp_path / "missing")) is None
    found = space(str(tmp_path))
    assert found is not None and 0 < found.free_bytes <= found.total_bytes


# The source


def test_the_monitor_says_each_finding_once_and_stays_with_a_broken_gpu() -> None:
    heard, stop = Heard(), threading.Event()
    with FakeNvml([FakeGpu(), FakeGpu()]) as nvml:
        monitor = HealthMonitor(0.01, disks=(), environ={})
        assert monitor.detect()
        thread = threading.Thread(target=monitor.run, args=(heard, stop))
        thread.start()
        nvml.gpus[1].remap = (0, 0, 1, 0)
        nvml.xid(0, 79)
        notices = {it.id: it for it in heard.wait(2) if it.id.startswith("gpu")}
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive() and nvml.initialized == 0
    assert notices["gpu0-xid79"].grade is Grade.WILL and notices["gpu1-remap-pending"].grade is Grade.MAY
    assert all(it.source == "health" and it.kind == "health" for it in notices.values())
    assert "Xid 79" in notices["gpu0-xid79"].detail


def test_the_monitor_works_on_a_machine_without_gpus() -> None:
    heard, stop = Heard(), threading.Event()
    monitor = HealthMonitor(0.01)
    thread = threading.Thread(target=monitor.run, args=(heard, stop))
    thread.start()
    stop.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
