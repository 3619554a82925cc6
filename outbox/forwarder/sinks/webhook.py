"""Webhooks: CloudEvents over HTTP, signed as Standard Webhooks has it.

The address is resolved and checked once a connection and then pinned, so that a name cannot point elsewhere after it
was checked. Redirects are failures. One connection is kept; a request ends after ten seconds, however slowly the
receiver answers.
"""

from __future__ import annotations

import email.utils
import http.client
import socket
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.connection import is_connection_dropped

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Found, Gone, Message, Refused, Rejected, Undelivered
from outbox.forwarder.sinks import events, signatures
from outbox.forwarder.sinks.addresses import checked_addresses
from store.errors import ConfigError

__all__ = ["Webhook", "retry_after_s"]

_READ_BYTES = 64 << 10
"""Of an answer; a longer one costs the connection."""

_LONGEST_WAIT_S = 3_600.0

_NOT_ABOUT_THE_MESSAGE = (401, 403, 404, 405, 407, 408, 425, 429)
"""Answers below 500 that another message would get as well."""


class Webhook:
    """One receiver."""

    def __init__(self, table: Forward, store_id: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._table = table
        self._store_id = store_id
        self._timeout_s = timeout_s
        self._url = urlsplit(table.url)
        self._target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        self._connection: HTTPConnection | None = None
        try:
            self._keys = tuple(map(signatures.key_of, table.secrets()))
        except ConfigError as error:
            raise Refused(str(error)) from None

    def open(self) -> Found | None:
        """Resolve, check and pin the address. A receiver cannot tell where it stands."""
        host, is_tls = self._url.hostname or "", self._url.scheme == "https"
        port = self._url.port or (443 if is_tls else 80)
        addresses = checked_addresses(
            host, port, allow_private=self._table.allow_private, allow=self._table.allow
        )  # fmt: skip
        address = self._reachable(addresses, port)
        if is_tls:
            self._connection = HTTPSConnection(
                address, port, timeout=self._timeout_s, server_hostname=host, assert_hostname=host
            )  # fmt: skip
        else:
            self._connection = HTTPConnection(address, port, timeout=self._timeout_s)
        return None

    def _reachable(self, addresses: list[str], port: int) -> str:
        """The first of several that takes connections."""
        for address in addresses[:-1]:
            try:
                socket.create_connection((address, port), self._timeout_s / len(addresses)).close()
            except OSError:
                continue
            return address
        return addresses[-1]

    def send(self, messages: Sequence[Message]) -> None:
        """One request: an array of events, or one event where the batch is 1."""
        feed = self._table.feed
        first, last = messages[0].seq, messages[-1].seq
        if self._table.batch_lines == 1:
            for message in messages:
                body = events.event(message, self._store_id, feed)
                self._post(f"{self._store_id}_{feed}_{message.seq}", body, events.SINGLE)
            return
        body = events.batch(messages, self._store_id, feed)
        self._post(f"{self._store_id}_{feed}_{first}-{last}", body, events.BATCH)

    resend = send

    def _post(self, identity: str, body: bytes, content_type: str) -> None:
        headers = {
            "host": self._url.netloc.rpartition("@")[2],
            "content-type": content_type,
            "user-agent": "oncelake",
            "idempotency-key": identity,
            **signatures.headers(self._keys, identity, int(time.time()), body),
        }
        connection = self._connection
        assert connection is not None
        if connection.sock is not None and is_connection_dropped(connection):
            connection.close()  # the receiver had enough of waiting
        timer = threading.Timer(self._timeout_s, _cut, (connection,))
        timer.daemon = True
        began = time.monotonic()  # before the timer: what it cuts is late
        timer.start()
        try:
            connection.request("POST", self._target, body, headers, preload_content=False)
            response = connection.getresponse()
            status, wait = response.status, response.headers.get("retry-after")
            if len(response.read(_READ_BYTES + 1)) > _READ_BYTES:
                connection.close()
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            connection.close()
            is_late = time.monotonic() - began >= self._timeout_s
            why = f"no answer within {self._timeout_s:g} s" if is_late else str(error) or repr(error)
            raise Undelivered(f"{self._table.shown_url}: {why}") from error
        finally:
            timer.cancel()
        self._judge(status, wait)

    def _judge(self, status: int, wait: str | None) -> None:
        told = f"{self._table.shown_url} answered {status}"
        if 200 <= status < 300:
            return
        if status == 410:
            raise Gone(f"{told}: it wants nothing any more. `oncelake forward --retry` enables it again")
        if 300 <= status < 400:
            raise Undelivered(f"{told}: redirects are not followed: write the final URL")
        if 400 <= status < 500 and status not in _NOT_ABOUT_THE_MESSAGE:
            raise Rejected(told)
        raise Undelivered(told, retry_after_s=retry_after_s(wait, datetime.now(UTC)))

    def close(self) -> None:
        """The connection."""
        if self._connection is not None:
            self._connection.close()


def _cut(connection: HTTPConnection) -> None:
    if (sock := connection.sock) is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it ended at the same moment


def retry_after_s(text: str | None, now: datetime) -> float:
    """Seconds of a `Retry-After`, a number or a date; 0 without one that can be read. An hour at most."""
    if text is None:
        return 0.0
    if text.strip().isdecimal():
        return min(float(text), _LONGEST_WAIT_S)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - now).total_seconds()), _LONGEST_WAIT_S)
