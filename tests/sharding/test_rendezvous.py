"""Processes that join a run find each other, or name who is missing or differs."""

import concurrent.futures
import json
import socket
import time

import pytest
from local_processes import free_port

from fmjax.errors import UserError
from fmjax.sharding import rendezvous
from fmjax.sharding.rendezvous import CannotJoin, Place, meet

FACTS = {"version of jax": "0.10.2", "train.steps": "400"}


def outcomes(count, facts, seconds=20.0, absent=(), hosts=(), meanwhile=None):
    """What `meet` did in each process that is there: None, or the exception."""
    coordinator = f"127.0.0.1:{free_port()}"
    there = [index for index in range(count) if index not in absent]

    def join(index):
        try:
            place = Place(coordinator, count, index, hosts)
            return meet(place, facts.get(index, FACTS), seconds)
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(there) + 1) as pool:
        if meanwhile:
            pool.submit(meanwhile, coordinator)
        return dict(zip(there, pool.map(join, there)))


def test_processes_that_are_alike_join():
    assert outcomes(9, {}) == dict.fromkeys(range(9))


def test_the_port_is_free_for_jax_afterwards():
    port = free_port()
    place = Place(f"127.0.0.1:{port}", 1, 0)
    meet(place, FACTS, 5.0)
    with socket.create_server(("", port)):
        pass


def test_a_process_that_does_not_come_is_named_by_its_host_to_all():
    found = outcomes(4, {}, 2.0, absent=[2], hosts=["a1", "a2", "a3", "a4"])
    assert len(found) == 3
    for error in found.values():
        assert isinstance(error, CannotJoin)
        assert "process 2 (a3) did not arrive" in str(error)
        assert "3 of 4 processes are here" in str(error)


def test_a_port_that_is_free_only_at_the_last_moment_is_too_late():
    place = Place(f"127.0.0.1:{free_port()}", 2, 0, ["a1", "a2"])
    with pytest.raises(CannotJoin, match=r"process 1 \(a2\) did not arrive"):
        meet(place, FACTS, 0.0)


def test_who_is_waited_for_is_printed_meanwhile(capfd, monkeypatch):
    monkeypatch.setattr(rendezvous, "REPORT_SECONDS", 0.5)
    outcomes(2, {}, 3.0, absent=[1], hosts=["a1", "a2"])
    assert "waiting for process 1 (a2)\n" in capfd.readouterr().err


def test_without_process_0_the_others_name_its_host_and_address(monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 0.5)
    found = outcomes(3, {}, 1.0, absent=[0], hosts=["a1", "a2", "a3"])
    for index, error in found.items():
        assert isinstance(error, CannotJoin)
        assert f"process {index} (a{index + 1})" in str(error)
        assert "could not reach process 0 (a1) at 127.0.0.1:" in str(error)
        assert "refused" in str(error)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 1.0)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"version of jax": "0.10.1", "train.steps": "400"},
            "version of jax = 0.10.1 there, 0.10.2 in process 0",
        ),
        (
            {"version of jax": "0.10.2", "train.steps": "500"},
            "train.steps = 500 there, 400 in process 0",
        ),
        ({"version of jax": "0.10.2"}, "train.steps = (absent) there, 400"),
    ],
)
def test_a_process_with_another_config_or_library_is_named_to_all(other, said):
    found = outcomes(3, {2: other})
    assert len(found) == 3
    for error in found.values():
        assert isinstance(error, UserError)
        assert f"process 2 on {socket.gethostname()}" in str(error)
        assert said in str(error)


@pytest.mark.usefixtures("impatient")
def test_a_process_of_a_run_of_another_size_is_named():
    def stray(coordinator):
        with pytest.raises(UserError):
            meet(Place(coordinator, 5, 1), FACTS, 10.0)

    found = outcomes(2, {}, absent=[1], meanwhile=stray)
    assert "process 1" in str(found[0])
    assert "a run of 5 processes" in str(found[0])


@pytest.mark.usefixtures("impatient")
def test_two_hosts_that_are_the_same_process_are_named():
    def second(coordinator):
        host, port = coordinator.split(":")
        time.sleep(0.5)
        told = {"index": 1, "count": 3, "host": "other", "facts": FACTS}
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(json.dumps(told).encode() + b"\n")
            connection.recv(1000)

    found = outcomes(3, {}, absent=[2], meanwhile=second)
    assert all(isinstance(error, UserError) for error in found.values())
    assert f"process 1 on other runs on {socket.gethostname()} too" in str(found[0])


def test_what_is_not_a_process_is_ignored():
    def scanner(coordinator):
        host, port = coordinator.split(":")
        for message in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": "x"}\n', b"\xff\xfe\n"):
            for _ in range(10):
                try:
                    with socket.create_connection((host, int(port))) as connection:
                        connection.sendall(message)
                    break
                except OSError:
                    time.sleep(0.05)

    assert outcomes(2, {}, meanwhile=scanner) == {0: None, 1: None}


def test_an_earlier_start_that_still_has_the_port_is_waited_for():
    def holder(server):
        time.sleep(1.5)
        server.close()

    with socket.create_server(("", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            pool.submit(holder, server)
            places = [Place(coordinator, 2, index) for index in (0, 1)]
            done = list(pool.map(lambda place: meet(place, FACTS, 20.0), places))
    assert done == [None, None]


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_seconds_that_are_none_are_refused(text, monkeypatch):
    monkeypatch.setenv("FMJAX_JOIN_SECONDS", text)
    with pytest.raises(UserError, match="FMJAX_JOIN_SECONDS"):
        rendezvous.seconds_to_join()
