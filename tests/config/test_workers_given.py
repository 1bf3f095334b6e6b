"""Workers and schedulers as users write them."""

import pytest

import one_line
from layer_redundancy.config import cluster
from layer_redundancy.core import doors


@pytest.fixture(autouse=True)
def by_make(monkeypatch):
    monkeypatch.setenv(doors.VARIABLE, doors.MAKE)


@pytest.mark.parametrize("workers", ["", "1", "2", "256"])
def test_a_number_of_processes_is_taken(workers):
    cluster.check_given(workers, "")


@pytest.mark.parametrize("workers", ["0", "257", "-1", "+2", "2.5", "two", " 2", "2 ", "1e2", "auto", "2,3"])
def test_another_is_one_line(workers):
    line = one_line.refusal(lambda: cluster.check_given(workers, ""))
    assert line == f"WORKERS={workers}: give the number of processes, from 1 to {cluster.MOST}"


def test_the_line_names_the_setting_by_the_users_door(monkeypatch):
    monkeypatch.setenv(doors.VARIABLE, doors.COMMAND)
    assert one_line.refusal(lambda: cluster.check_given("x", "")).startswith("--workers x: ")
    assert "or --trust-network if" in one_line.refusal(lambda: cluster.check_given("", "tcp://far:8786"))


def test_workers_are_of_this_machine_or_of_a_cluster():
    line = one_line.refusal(lambda: cluster.check_given("2", "tcp://127.0.0.1:8786"))
    assert line.startswith("WORKERS= and SCHEDULER=: ") and line.endswith("give one")


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:8786", "tcp://127.8.9.1:1", "tcp://localhost:8786", "tcp://[::1]:8786", "tls://far.example:8786"],
)
def test_this_machine_and_tls_need_no_trust(address):
    cluster.check_address(address, trust_network=False)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://far.example:8786",
        "tcp://192.0.2.7:8786",
        "tcp://0.0.0.0:8786",  # every network that this machine is on
        "tcp://[2001:db8::1]:8786",
        "tcp://localhost.far.example:8786",
        "tcp://127.0.0.1.far.example:8786",
        "tcp://127.0.0.1@far.example:8786",
    ],
)
def test_another_machine_in_the_clear_takes_the_users_word(address):
    line = one_line.refusal(lambda: cluster.check_address(address, trust_network=False))
    assert line.startswith(f"SCHEDULER={address} is another machine") and "TRUST_NETWORK=yes" in line
    cluster.check_address(address, trust_network=True)


@pytest.mark.parametrize(
    "address",
    [
        "8786",
        "far.example",
        "far.example:8786",
        "tcp://",
        "tcp://far.example",
        "tcp://:8786",
        "tcp://far.example:port",
        "tcp://far.example:99999",
        "tcp:127.0.0.1:8786",
        "http://127.0.0.1:8786",
        "ucx://127.0.0.1:8786",
        "inproc://x",
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_what_is_no_address_is_one_line(address, trust):
    line = one_line.refusal(lambda: cluster.check_address(address, trust_network=trust))
    assert line.startswith(f"SCHEDULER={address} is no address: write tcp://HOST:PORT or tls://HOST:PORT")
