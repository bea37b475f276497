"""File systems that can be filled, and made read-only."""

import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path) -> Iterator[pathlib.Path | None]:
    """A file system of MEGABYTES; None where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", folder], check=True)
