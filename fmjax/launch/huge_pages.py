"""Huge pages for the arrays of a process on a CPU.

XLA takes the memory of a step from malloc and gives it back after it. From pages of
4 KiB, which the kernel clears anew, that takes a twentieth of a large model's step and
a quarter of a small one's. glibc asks for pages of 2 MiB if an environment variable
says so when a process begins, and has no other way.
"""

import os
import pathlib
import sys

VARIABLE, VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Devices of NVIDIA's GPUs, and of TPUs by their two drivers.
_ACCELERATORS = ("nvidia0", "accel*", "vfio/[0-9]*")


def begin_with_huge_pages() -> None:
    """Begins this process anew with the variable, where it is of use.

    It is where the kernel gives huge pages to those who ask for them ("madvise"; with
    "always" all have them), and no accelerator holds the arrays. A process that has the
    variable, with any value, stays as it is; so it never begins twice. To be called
    before anything was done: process id, arguments and open files stay, memory and
    threads do not.
    """
    if VARIABLE not in os.environ and sys.gettrace() is None and _is_of_use():
        os.environ[VARIABLE] = VALUE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_of_use(dev: pathlib.Path = pathlib.Path("/dev")) -> bool:
    try:
        asked = "[madvise]" in _SETTING.read_text()
    except OSError:  # another system, or a kernel without them
        return False
    return asked and not any(any(dev.glob(pattern)) for pattern in _ACCELERATORS)
