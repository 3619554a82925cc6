"""Webhooks: what goes over the wire, what each answer means, and whom they may reach."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import Message, Refused, Undelivered
from outbox.forwarder.sinks import addresses, events, signatures
from outbox.forwarder.sinks.webhook import Webhook, retry_after_s
from tests.support.forwarding import STORE, ListSource, drive, line_of, lines_of, shipper
from tests.support.receiver import Receiver, Request

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def test_the_signature_is_that_of_the_standards_own_vector() -> None:
    """Published with the reference libraries."""
    found = signatures.headers(
        (signatures.key_of(SECRET),), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}'
    )
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["whsec_", "whsec_***", "plain text", ""])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    """And does not stand in the message."""
    with pytest.raises(Refused) as error:
        signatures.key_of(secret)
    assert secret in ("", "whsec_") or secret.removeprefix("whsec_") not in str(error.value)


def test_a_batch_is_an_array_of_cloud_events_that_the_reference_library_verifies(tmp_path: Path) -> None:
    """With the old secret and the new one; `data` is the line, byte for byte."""
    with Receiver() as receiver:
        source = ListSource(lines_of(1, 250))
        drive(shipper(tmp_path, source, receiver.url, batch=100, allow_private=True, secret=(OTHER, SECRET)), 250)
    assert [len(request.events) for request in receiver.requests] == [100, 100, 50]
    for request in receiver.requests:
        for secret in (SECRET, OTHER):
            standardwebhooks.Webhook(secret).verify(request.body, request.headers)
        assert request.headers["content-type"].startswith("application/cloudevents-batch+json")
        assert request.headers["idempotency-key"] == request.headers["webhook-id"]
    assert [int(event["id"]) for event in receiver.events] == list(range(1, 251))
    for event, (_, line) in zip(receiver.events, source.lines, strict=True):
        assert event["data"] == json.loads(line)
    assert b',"data":' + source.lines[0][1] + b"}" in receiver.requests[0].body


def test_a_batch_of_one_is_a_single_event(tmp_path: Path) -> None:
    """Complete, as CloudEvents asks for."""
    with Receiver() as receiver:
        drive(
            shipper(tmp_path, ListSource(lines_of(1, 3)), receiver.url, batch=1, allow_private=True, feed="alerts"), 3
        )
    first = receiver.requests[0]
    assert first.headers["content-type"].startswith("application/cloudevents+json")
    assert first.headers["webhook-id"] == f"{STORE}_alerts_1" and "webhook-signature" not in first.headers
    assert json.loads(first.body) == {
        "specversion": "1.0", "id": "1", "source": f"/oncelake/{STORE}/alerts", "type": "oncelake.alert",
        "time": "2024-03-01T12:00:01.000000Z", "datacontenttype": "application/json", "data": json.loads(line_of(1)),
    }  # fmt: skip
    assert events.event(Message(1, line_of(1)), STORE, "alerts") == first.body


def answers(*statuses: tuple[int, dict[str, str]]) -> Any:
    """One after the other, then 200."""
    left = list(statuses)
    return lambda request: left.pop(0) if left else (200, {})


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(tmp_path: Path, status: int) -> None:
    """Once."""
    with Receiver(lambda request: (status, {})) as receiver:
        drive(shipper(tmp_path, ListSource(lines_of(1, 3)), receiver.url, allow_private=True), 3)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 408, 422, 429, 500, 502, 503])
def test_anything_else_is_tried_again_with_the_same_id(tmp_path: Path, status: int) -> None:
    """Redirects too: they are not followed."""
    with Receiver(answers((status, {"location": "/elsewhere"}))) as receiver:
        drive(shipper(tmp_path, ListSource(lines_of(1, 1)), receiver.url, allow_private=True), 1)
    first, second = receiver.requests
    assert (first.path, first.headers["webhook-id"], first.body) == (
        second.path, second.headers["webhook-id"], second.body,
    )  # fmt: skip


def test_410_disables(tmp_path: Path) -> None:
    """Nothing more is asked."""
    with Receiver(answers((410, {}))) as receiver:
        ship = shipper(tmp_path, ListSource(lines_of(1, 3)), receiver.url, allow_private=True)
        for _ in range(5):
            ship._clock.at += ship.step()  # type: ignore[attr-defined]
    assert len(receiver.requests) == 1 and ship.status().state == "disabled"
    assert "--retry" in ship.status().problem


def test_retry_after_slows_it_down(tmp_path: Path) -> None:
    """By as much as it says."""
    with Receiver(answers((429, {"retry-after": "33"}), (503, {"retry-after": "44"}))) as receiver:
        ship = shipper(tmp_path, ListSource(lines_of(1, 3)), receiver.url, allow_private=True)
        assert ship.step() == 33
        ship._clock.at += 33  # type: ignore[attr-defined]
        assert ship.step() == 44
        drive(ship, 3)
    assert len(receiver.requests) == 3


def test_retry_after_is_a_number_or_a_date() -> None:
    """An hour at most, and what cannot be read is nothing."""
    now = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
    assert retry_after_s("7", now) == 7 and retry_after_s("999999", now) == 3_600
    assert retry_after_s("Fri, 01 Mar 2024 12:01:30 GMT", now) == 90
    assert retry_after_s("Fri, 01 Mar 2024 11:00:00 GMT", now) == 0
    assert retry_after_s("soon", now) == 0 and retry_after_s(None, now) == 0


@pytest.mark.parametrize("drips", [b"", b"HTTP/1.1 2", b"H"])
def test_a_receiver_that_does_not_answer_is_left_in_time(drips: bytes) -> None:
    """Also one that sends a byte now and then."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            client, _ = listener.accept()
            with client:
                while not stop.wait(0.05):
                    try:
                        client.sendall(drips[:1])
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        sink = Webhook(Forward("n", url, allow_private=True), STORE, timeout_s=0.3)
        sink.open()
        began = time.monotonic()
        with pytest.raises(Undelivered, match=r"no answer within 0\.3 s"):
            sink.send([Message(1, line_of(1))])
        assert time.monotonic() - began < 3
        stop.set()
        sink.close()
        thread.join()


def test_a_connection_that_the_receiver_closed_is_made_again(tmp_path: Path) -> None:
    """Without counting as a failure."""
    with Receiver(lambda request: (200, {"connection": "close"})) as receiver:
        ship = shipper(tmp_path, ListSource(lines_of(1, 30)), receiver.url, batch=10, allow_private=True)
        drive(ship, 30)
    assert len(receiver.requests) == 3 and ship.status().failures == 0


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
     "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "255.255.255.255"],
)  # fmt: skip
def test_what_is_not_the_public_internet_is_private(address: str) -> None:
    """Also where it hides in another address."""
    assert addresses.is_private(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_the_public_internet_is_not(address: str) -> None:
    """Nor where it hides."""
    assert not addresses.is_private(ipaddress.ip_address(address))


def test_private_addresses_are_refused_unless_allowed(tmp_path: Path) -> None:
    """All, or those on the list; with a list nothing else."""
    with Receiver() as receiver:
        ship = shipper(tmp_path / "a", ListSource(lines_of(1, 1)), receiver.url)
        ship.step()
        assert "private address" in ship.status().problem and receiver.requests == []
        ship = shipper(
            tmp_path / "b", ListSource(lines_of(1, 1)), receiver.url, allow_private=True, allow=("10.0.0.0/8",)
        )
        ship.step()
        assert "not in `allow`" in ship.status().problem and receiver.requests == []
        for number, entry in enumerate(["127.0.0.0/8", "127.0.0.1", "LOCALHOST"]):
            url = receiver.url.replace("127.0.0.1", "localhost") if number == 2 else receiver.url
            drive(shipper(tmp_path / f"c{number}", ListSource(lines_of(1, 1)), url, allow=(entry,)), 1)
    assert len(receiver.requests) == 3


def test_a_name_is_resolved_once_and_then_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it points to later does not matter to a connection that was checked; the Host header is the name."""
    asked: list[str] = []

    def resolve(host: str, port: int, *args: Any, **more: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", resolve)
    with Receiver(lambda request: (200, {"connection": "close"})) as receiver:
        url = receiver.url.replace("127.0.0.1", "hooks.example")
        drive(shipper(tmp_path, ListSource(lines_of(1, 40)), url, batch=10, allow=("*.example",)), 40)
    assert [host for host in asked if host == "hooks.example"] == ["hooks.example"]
    assert {request.headers["host"] for request in receiver.requests} == {f"hooks.example:{receiver.port}"}


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is this machine."""

    def resolve(host: str, port: int, *args: Any, **more: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", resolve)


TLS = Path(__file__).parents[1] / "data" / "tls"


def test_https_goes_to_the_pinned_address_and_checks_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: None
) -> None:
    """Of the certificate: it must be of the name in the URL, and from who is trusted."""
    source = ListSource(lines_of(1, 30))
    with Receiver(certificate=TLS / "hooks.example.pem") as receiver:
        url = f"https://hooks.example:{receiver.port}/in"
        unknown = shipper(tmp_path / "a", source, url, allow_private=True)
        unknown.step()
        assert "certificate" in unknown.status().problem.lower() and receiver.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "ca.pem"))
        other = shipper(tmp_path / "b", source, url.replace("hooks", "other"), allow_private=True)
        other.step()
        assert "other.example" in other.status().problem and receiver.requests == []
        drive(shipper(tmp_path / "c", source, url, batch=10, allow_private=True), 30)
    assert len(receiver.requests) == 3
    assert {request.headers["host"] for request in receiver.requests} == {f"hooks.example:{receiver.port}"}


def test_a_secret_in_a_file_is_changed_without_a_restart(tmp_path: Path) -> None:
    """A receiver that knows only the new one answers 401 until the file has it: the next attempt reads it again."""
    path = tmp_path / "secret"
    path.write_text(f"{OTHER}\n")

    def knows_the_new_one(request: Request) -> tuple[int, dict[str, str]]:
        try:
            standardwebhooks.Webhook(SECRET).verify(request.body, request.headers)
        except standardwebhooks.WebhookVerificationError:
            return 401, {}
        return 204, {}

    with Receiver(knows_the_new_one) as receiver:
        ship = shipper(
            tmp_path, ListSource(lines_of(1, 3)), receiver.url, allow_private=True, secret=f"file:{path}", attempts=0
        )  # fmt: skip
        ship._clock.at += ship.step()  # type: ignore[attr-defined]
        assert "401" in ship.status().problem
        path.write_text(f"{SECRET}\n{OTHER}\n")
        drive(ship, 3)
    assert [len(request.headers["webhook-signature"].split()) for request in receiver.requests] == [1, 2]


def test_a_name_of_several_addresses_is_refused_for_one_that_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them is taken is not ours to say."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *args, **more: found)
    with pytest.raises(Undelivered, match=r"10\.0\.0\.1"):
        addresses.checked_addresses("h.example", 80, allow_private=False, allow=())


def test_the_program_of_a_receiver_sees_each_message_once(tmp_path: Path) -> None:
    """Repeated requests carry the same ids, so the pair of source and id is enough to skip them."""
    seen: dict[tuple[str, str], Any] = {}
    flaky = iter([True, False] * 50)

    def receive(request: Request) -> tuple[int, dict[str, str]]:
        for event in request.events:
            seen.setdefault((event["source"], event["id"]), event["data"])
        return (500 if next(flaky) else 200), {}

    with Receiver(receive) as receiver:
        drive(shipper(tmp_path, ListSource(lines_of(1, 60)), receiver.url, batch=10, allow_private=True), 60)
    assert [data["seq"] for data in seen.values()] == list(range(1, 61))
    assert len(receiver.events) == 120
