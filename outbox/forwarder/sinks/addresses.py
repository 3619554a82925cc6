"""Which addresses a webhook may reach. A name is resolved once, and what was checked is what is connected to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from outbox.forwarder.sink import Undelivered

__all__ = ["checked_addresses", "is_private"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_private(address: Address) -> bool:
    """Whether an address is not one of the public internet, also where an IPv4 address hides in an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if hidden is None and address in _NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return is_private(hidden)
    return not address.is_global or address.is_multicast


def checked_addresses(host: str, port: int, *, allow_private: bool, allow: Sequence[str]) -> list[str]:
    """The addresses of a host, all of them allowed; `Undelivered` where one is not, or none is found."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Undelivered(f"the host {host!r} is not found: {error}") from error
    texts = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    for address in map(ipaddress.ip_address, texts):
        is_listed = _is_listed(host, address, allow)
        if allow and not is_listed:
            raise Undelivered(f"{host} ({address}) is not in `allow` of this sink")
        if is_private(address) and not (allow_private or is_listed):
            raise Undelivered(
                f"{host} ({address}) is a private address: set `allow_private = true` or name it in `allow`, if meant"
            )
    return texts


def _is_listed(host: str, address: Address, allow: Sequence[str]) -> bool:
    for entry in allow:
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # a name
            name = entry.lower()
            if host.lower() == name or (name.startswith("*.") and host.lower().endswith(name[1:])):
                return True
    return False
