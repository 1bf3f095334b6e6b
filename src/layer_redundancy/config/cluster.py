"""What the user says of workers, checked before a minute is spent. Standard library only: the Makefile asks."""

import ipaddress
from urllib.parse import urlparse

from layer_redundancy.core import doors, flags
from layer_redundancy.core.errors import StudyError

FROM_STORE = "LAYER_REDUNDANCY_FROM_STORE"  # set where somebody else has measured: studies that are opened only read
MOST = 256  # processes of one machine


@flags.checked
def check_given(workers: str, scheduler: str, trust_network: bool = False) -> None:
    """Raises StudyError for workers or a scheduler that make no sense as they were written; "" for none."""
    if workers and scheduler:
        said = f"{doors.setting('workers')} and {doors.setting('scheduler')}"
        raise StudyError(f"{said}: the workers are either of this machine or of a cluster that is there: give one")
    if workers:
        if not workers.isdecimal():
            raise StudyError(f"{doors.setting('workers', workers)}: give the number of processes, from 1 to {MOST}")
        check_number(int(workers))
    if scheduler:
        check_address(scheduler, trust_network)


def check_number(workers: int) -> None:
    """Raises StudyError for a number of workers that makes no sense on this machine."""
    if not 1 <= workers <= MOST:
        raise StudyError(f"{doors.setting('workers', str(workers))}: give the number of processes, from 1 to {MOST}")


@flags.checked
def check_address(address: str, trust_network: bool) -> None:
    """Raises StudyError for an address that is none, or to which code would go in the clear.

    Whoever can speak to a scheduler of Dask has its workers run what he likes: beyond this machine that takes TLS, or
    the user's word that the network is his.
    """
    try:
        parts = urlparse(address)
        port = parts.port
    except ValueError:
        port = None
    if port is None or parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise StudyError(
            f"{doors.setting('scheduler', address)} is no address: write tcp://HOST:PORT or tls://HOST:PORT, as "
            "`dask scheduler` prints it"
        )
    if parts.scheme == "tls" or trust_network or _is_loopback(parts.hostname):
        return
    raise StudyError(
        f"{doors.setting('scheduler', address)} is another machine, and whoever reaches a scheduler without TLS can "
        f"run code on its workers: use tls:// (docs/clusters.md), or {doors.setting('trust_network', True)} if "
        "nobody else is on that network"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
