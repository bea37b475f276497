"""Whose process a lock names."""

import json
import pathlib
import subprocess
import sys

from fmjax.run import lock


def test_a_process_that_has_ended_but_is_still_listed_holds_no_lock(tmp_path):
    code = "import json; from fmjax.run import lock; print(json.dumps(lock.own()))"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; import sys; sys.stdout.flush(); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        owner = json.loads(process.stdout.readline())
        (tmp_path / lock.FILE).write_text(json.dumps(owner))
        assert lock.is_alive(tmp_path) is True
        process.kill()
        process.stdout.read()  # Until it has ended; nobody has waited for it yet.
        while ") Z " not in pathlib.Path(f"/proc/{process.pid}/stat").read_text():
            pass
        assert lock.is_alive(tmp_path) is False
