"""Which cloud the firmware says this machine is in, so that detection is instant where it can be."""

from __future__ import annotations

from pathlib import Path

SYS_VENDOR = Path("/sys/class/dmi/id/sys_vendor")
# Microsoft is missing: Hyper-V outside Azure has the same vendor. So are Xen and QEMU, which say nothing.
CLOUD_BY_VENDOR = {"Amazon EC2": "aws", "Google": "gcp", "Alibaba Cloud": "alibaba"}


def cloud_by_firmware(sys_vendor: Path = SYS_VENDOR) -> str:
    """The name of the source, or "" where the firmware does not settle it."""
    try:
        return CLOUD_BY_VENDOR.get(sys_vendor.read_text("utf-8", "replace").strip(), "")
    except OSError:  # a container without /sys, or no such firmware
        return ""
