"""Runs an fmjax verb in several processes of this machine, as a cluster would.

    python launch/local.py --processes 2 -- train quickstart.gin --run_dir runs/two

What they print is prefixed with the process's number. SIGTERM and Ctrl-C are passed on,
so that the run saves and stops; a second Ctrl-C ends it at once. Where one process
fails, or stops long before the others, those are ended too, within seconds. With
--restarts N a run that ended so is started again up to N times, and continues from its
newest checkpoint; one that was told to stop, that diverged, or that the user has to
correct is not. Exit codes: that of the first process that failed, else 75 if the run is
unfinished (start it again), else 0.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence

from fmjax.launch.exit_codes import FINAL, UNFINISHED

GRACE_SECONDS = 10  # for the others to say for themselves what is wrong
STOP_SECONDS = 20  # between the ends of processes that stop together
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def main(argv: Sequence[str] | None = None) -> int:
    """Parses a command line, and supervises; returns the exit code."""
    args = _parser().parse_args(argv)
    return supervise(
        args.command,
        args.processes,
        args.devices_per_process,
        restarts=args.restarts,
        port=args.port,
    )


def supervise(
    command: Sequence[str],
    processes: int,
    devices: int | None = None,
    *,
    environment: Mapping[str, str] = types.MappingProxyType({}),
    restarts: int = 0,
    port: int | None = None,
) -> int:
    """Runs a verb in several processes, as described above; returns the exit code.

    Args:
      command: a verb of fmjax and its arguments.
      processes: their number.
      devices: virtual CPU devices of each; None for the devices that JAX finds.
      environment: variables besides those of this process.
      restarts: of a run that failed.
      port: of the coordinator; None for a free one.
    """
    told = _Told()
    for left in reversed(range(restarts + 1)):
        where = f"localhost:{port or _free_port()}"
        own = [
            os.environ
            | dict(environment)
            | _environment(index, processes, devices, where)
            for index in range(processes)
        ]
        code = _run(command, own, told)
        if code in (0, *FINAL) or told.to_stop or not left:
            return code
        print(f"ended with {code}; starting again, {left - 1} left", file=sys.stderr)
    return code


class _Told:
    """Passes signals on to the processes of the moment."""

    def __init__(self):
        self.to_stop = False
        self.processes: list[subprocess.Popen] = []
        self._interrupts = 0
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.signal(signal.SIGINT, self._pass_on)

    def _pass_on(self, number, frame):
        self.to_stop = True
        self._interrupts += number == signal.SIGINT
        at_once = self._interrupts > 1
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)


def _run(
    command: Sequence[str], environments: Sequence[Mapping[str, str]], told: _Told
) -> int:
    """Starts a process with each environment and waits for all; the exit code."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fmjax", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Out of the terminal's group: Ctrl-C reaches them through us alone.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        for environment in environments
    ]
    told.processes = processes
    readers = [
        threading.Thread(target=_print_prefixed, args=(index, process), daemon=True)
        for index, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    code = _wait(processes)
    for reader in readers:
        reader.join(timeout=GRACE_SECONDS)
    return code


def _wait(processes: list[subprocess.Popen]) -> int:
    """Waits until all have ended, ending the others when one fails or is far ahead."""
    running = dict(enumerate(processes))
    failed, deadline, unfinished, killed = 0, None, False, set()
    while running:
        for index, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[index]
            unfinished = unfinished or code == UNFINISHED
            if code and not deadline:
                grace = STOP_SECONDS if code == UNFINISHED else GRACE_SECONDS
                deadline = time.monotonic() + grace
            if code not in (0, UNFINISHED) and not failed and index not in killed:
                failed = 128 - code if code < 0 else code
                print(f"[{index}] ended with exit code {failed}", file=sys.stderr)
        if deadline and time.monotonic() > deadline:
            # SIGTERM would ask them to agree on a step with one that is gone.
            for index, process in running.items():
                killed.add(index)
                process.kill()
        time.sleep(0.05)
    return failed or (UNFINISHED if unfinished else 0)


def _print_prefixed(index: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        text = f"[{index}] {line.decode(errors='replace')}"
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


def _environment(
    index: int, processes: int, devices: int | None, coordinator: str
) -> dict[str, str]:
    """What a process of the run is told."""
    variables = {
        "FMJAX_COORDINATOR": coordinator,
        "FMJAX_NUM_PROCESSES": str(processes),
        "FMJAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if devices:
        variables["JAX_PLATFORMS"] = "cpu"
        variables["JAX_NUM_CPU_DEVICES"] = str(devices)
        # Gloo's collectives hold a thread of XLA's pool each, which has one a core by
        # default: two devices on two cores then wait for each other for ever.
        threads = max(os.cpu_count() or 1, 4 * devices)
        variables["PJRT_NPROC"] = str(threads)
    return variables


def die_with_parent() -> None:
    """Lets the kernel end this process when the thread that started it ends.

    A launcher that is killed must not leave processes behind that write to the run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument(
        "--devices_per_process",
        type=int,
        metavar="K",
        help="virtual CPU devices of each; without it, the devices that JAX finds",
    )
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="N", help="of a run that failed"
    )
    parser.add_argument("--port", type=int, help="of the coordinator; else a free one")
    parser.add_argument("command", nargs="+", metavar="-- VERB ARGS")
    return parser
