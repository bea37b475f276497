"""Rendezvous: the processes of a run find each other and compare what they will run.

It comes before JAX's own, on the same port, because JAX waits five minutes for a
process that never comes, names it by number alone, and starts with hosts that run other
code.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Mapping, Sequence

from fmjax.errors import UserError

# What a process tells the others, such as {"jax": "0.10.2", "train.steps": "400"}.
Facts = Mapping[str, str]
RETRY_SECONDS = 0.2
REPORT_SECONDS = 15.0
GRACE_SECONDS = 5.0
_LONGEST_MESSAGE = 8 << 20


class CannotJoin(RuntimeError):
    """The processes of a run did not find each other in time."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process in a run.

    Attributes:
      coordinator: host:port of process 0.
      count: processes of the run.
      index: of this process, from 0.
      hosts: of the processes, by index; empty where they are not known.
    """

    coordinator: str
    count: int
    index: int
    hosts: Sequence[str] = ()

    def name(self, index: int) -> str:
        """A process for messages: "process 3 (node004)"."""
        host = self.hosts[index] if index < len(self.hosts) else ""
        return f"process {index}{f' ({host})' if host else ''}"


def meet(place: Place, facts: Facts, seconds: float) -> None:
    """Waits until all processes of a run are there and their facts are the same.

    Every process must call it. Process 0 listens at the coordinator's port, compares,
    and tells all of them; the port is free again afterwards.

    Args:
      place: of this process.
      facts: that must be equal in all processes.
      seconds: to wait for the others.

    Raises:
      CannotJoin: a process did not come; the message names it and its host.
      UserError: a process has other facts; the message names it, its host, and both
        values.
    """
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"coordinator {place.coordinator!r}: expected host:port.")
    own = {
        "index": place.index,
        "count": place.count,
        "host": socket.gethostname(),
        "facts": dict(facts),
    }
    deadline = time.monotonic() + seconds
    if place.index:
        verdict = _report(place, host, int(port), own, deadline, seconds)
    else:
        with _listen(place, int(port), deadline) as listener:
            verdict = _gather(place, listener, own, deadline, seconds)
    if verdict["missing"]:
        raise CannotJoin(verdict["missing"])
    if verdict["different"]:
        raise UserError(verdict["different"])


def _listen(place: Place, port: int, deadline: float) -> socket.socket:
    """Listens at a port, which an earlier start of the run may still hold."""
    while True:
        try:
            return socket.create_server(("", port), backlog=max(128, place.count))
        except OSError as error:
            if time.monotonic() > deadline:
                raise CannotJoin(
                    f"{place.name(0)} cannot listen at {place.coordinator}: "
                    f"{error.strerror}. Take another port."
                ) from error
            time.sleep(RETRY_SECONDS)


def _gather(
    place: Place, listener: socket.socket, own: dict, deadline: float, seconds: float
) -> dict[str, str]:
    """Process 0: collects what the others tell, and tells them whether it fits."""
    arrived, connections = {0: own}, []
    absent = list(range(1, place.count))
    different, give_up_at = "", deadline
    report_at = time.monotonic() + REPORT_SECONDS
    with contextlib.ExitStack() as stack:
        for told, connection in _messages(stack, listener, deadline):
            if told is not None:
                before = arrived.get(told["index"], told)
                different = different or _difference(place, own, told, before)
                arrived[told["index"]] = told
                connections.append(connection)
            absent = [n for n in range(place.count) if n not in arrived]
            if different:
                # The others may be on their way, and should hear of it.
                give_up_at = min(give_up_at, time.monotonic() + GRACE_SECONDS)
            if not absent or time.monotonic() > give_up_at:
                break
            if time.monotonic() > report_at:
                report_at += REPORT_SECONDS
                print(f"waiting for {_listed(place, absent)}", file=sys.stderr)
        missing = ""
        if absent:
            missing = (
                f"{_listed(place, absent)} did not arrive at {place.coordinator} "
                f"within {seconds:.0f} s; {len(arrived)} of {place.count} processes "
                f"are here. Look at what {'that host' if len(absent) == 1 else 'those'}"
                " printed. FMJAX_JOIN_SECONDS sets how long to wait."
            )
        verdict = {"missing": "" if different else missing, "different": different}
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(verdict).encode() + b"\n")
    return verdict


def _messages(stack: contextlib.ExitStack, listener: socket.socket, deadline: float):
    """Yields (what a process told, its connection), or (None, None) now and then.

    What is not such a message, as of a port scanner, is left out.
    """
    listener.setblocking(False)
    selector = stack.enter_context(selectors.DefaultSelector())
    selector.register(listener, selectors.EVENT_READ)
    read: dict[socket.socket, bytes] = {}
    while time.monotonic() < deadline:
        for key, _ in selector.select(timeout=1.0):
            if key.fileobj is listener:
                with contextlib.suppress(OSError):
                    connection = stack.enter_context(listener.accept()[0])
                    connection.settimeout(5.0)
                    selector.register(connection, selectors.EVENT_READ)
                    read[connection] = b""
                continue
            connection = key.fileobj
            try:
                piece = connection.recv(1 << 16)
            except OSError:
                piece = b""
            read[connection] += piece
            unfinished = piece and b"\n" not in piece
            if unfinished and len(read[connection]) < _LONGEST_MESSAGE:
                continue
            selector.unregister(connection)
            if (told := _parsed(read.pop(connection))) is not None:
                yield told, connection
        yield None, None


def _parsed(message: bytes) -> dict | None:
    try:
        told = json.loads(message)
        kinds = {"index": int, "count": int, "host": str, "facts": dict}
        known = all(isinstance(told[name], kind) for name, kind in kinds.items())
    except (ValueError, KeyError, TypeError):
        return None
    return told if known else None


def _difference(place: Place, own: dict, told: dict, before: dict) -> str:
    """A sentence on what is wrong with a process; "" if nothing.

    Args:
      place: of process 0.
      own: what process 0 tells.
      told: what the process tells.
      before: what a process of the same number told before, or `told`.
    """
    who = f"process {told['index']} on {told['host']}"
    first = f"process 0 on {own['host']}"
    if told["count"] != place.count or not 0 <= told["index"] < place.count:
        return (
            f"{who} is of a run of {told['count']} processes, {first} of one of "
            f"{place.count}; expected the same number, and a smaller index."
        )
    if told["host"] != before["host"]:
        return (
            f"{who} runs on {before['host']} too; expected a number of its own for "
            "each process."
        )
    names = own["facts"].keys() | told["facts"].keys()
    others = [
        f"{name} = {told['facts'].get(name, '(absent)')} there, "
        f"{own['facts'].get(name, '(absent)')} in {first}"
        for name in sorted(names)
        if own["facts"].get(name) != told["facts"].get(name)
    ]
    if not others:
        return ""
    more = f"; and {len(others) - 5} more" if len(others) > 5 else ""
    return (
        f"{who} would run something else: {'; '.join(others[:5])}{more}. Expected the "
        "same code, libraries and config on every host."
    )


def _report(
    place: Place, host: str, port: int, own: dict, deadline: float, seconds: float
) -> dict[str, str]:
    """Another process: tells process 0 its facts, and waits for the verdict."""
    why = "no answer"
    # Process 0 decides at its own deadline, and may have begun later.
    deadline += GRACE_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5.0) as connection:
                connection.sendall(json.dumps(own).encode() + b"\n")
                connection.settimeout(max(1.0, deadline - time.monotonic()))
                answer = connection.makefile("rb").readline()
                verdict = json.loads(answer)
                return {name: str(verdict[name]) for name in ("missing", "different")}
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, KeyError, TypeError):
            # Something else still has the port, such as an earlier start of the run.
            why = "what listens there is not this run"
        time.sleep(RETRY_SECONDS)
    return {
        "missing": f"{place.name(place.index)} on {socket.gethostname()} could not "
        f"reach {place.name(0)} at {place.coordinator} within {seconds:.0f} s: {why}. "
        "Look at what that process printed, and whether the port is open.",
        "different": "",
    }


def _listed(place: Place, absent: Sequence[int], most: int = 8) -> str:
    names = ", ".join(place.name(index) for index in absent[:most])
    return names + (f" and {len(absent) - most} more" if len(absent) > most else "")


def seconds_to_join() -> float:
    """How long to wait for other processes: $FMJAX_JOIN_SECONDS, or 60.

    Raises:
      UserError: the variable is not a positive number.
    """
    text = os.environ.get("FMJAX_JOIN_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"FMJAX_JOIN_SECONDS = {text!r}: expected seconds above 0.")
    return seconds
