"""Kafka: an idempotent producer, and the destinationId as key, so that a destination keeps its order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Found, Message, Rejected, Undelivered, head_of

__all__ = ["Kafka"]

_POLL_S = 0.1


class Kafka:
    """One topic."""

    def __init__(self, table: Forward, store_id: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._topic = table.options()["topic"]
        self._ids = f"{store_id}-{table.feed}"
        self._timeout_s = timeout_s
        parts = urlsplit(table.url)
        user, _, brokers = parts.netloc.rpartition("@")
        self._config: dict[str, str | int | float | bool] = {
            "bootstrap.servers": brokers,
            "client.id": "oncelake",
            "socket.timeout.ms": int(timeout_s * 1_000),
            "log_level": 0,
        }
        if user:
            name, _, password = user.partition(":")
            self._config |= {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanisms": "PLAIN",
                "sasl.username": unquote(name),
                "sasl.password": unquote(password),
            }
        self._producer: Producer | None = None

    def open(self) -> Found | None:
        """Make the topic where it is missing. A topic of several partitions cannot tell where it stands."""
        try:
            admin = AdminClient(self._config)
            # asked for by name, since many brokers make a topic then
            found = admin.list_topics(self._topic, timeout=self._timeout_s).topics[self._topic]
            if found.error is not None:
                made = admin.create_topics(
                    [NewTopic(self._topic, num_partitions=-1, replication_factor=-1)], request_timeout=self._timeout_s
                )
                made[self._topic].result(self._timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Undelivered(f"Kafka: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise Undelivered("Kafka: no answer in time") from error
        self._producer = Producer(
            {
                **self._config,
                "enable.idempotence": True,
                "message.timeout.ms": int(self._timeout_s * 1_000),
                "linger.ms": 5,
            }
        )
        return None

    def send(self, messages: Sequence[Message]) -> None:
        """All of them, then their acknowledgements. After a failure the producer is given up with what it holds."""
        producer = self._producer
        assert producer is not None
        errors: list[KafkaError] = []
        acknowledged = 0

        def done(error: KafkaError | None, message: Delivered) -> None:
            nonlocal acknowledged
            if error is None:
                acknowledged += 1
            else:
                errors.append(error)

        end = time.monotonic() + self._timeout_s
        try:
            for seq, line in messages:
                producer.produce(
                    self._topic,
                    value=line,
                    key=head_of(line).record.destinationId.encode(),
                    headers=[("id", f"{self._ids}-{seq}".encode())],
                    on_delivery=done,
                )
            while acknowledged + len(errors) < len(messages) and time.monotonic() < end:
                producer.poll(_POLL_S)
        except KafkaException as error:
            errors.append(error.args[0])
        except BufferError as error:
            raise Undelivered(f"Kafka: {error}") from error
        if errors:
            first = errors[0]
            if first.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise Rejected(f"Kafka: {first.str()}")
            raise Undelivered(f"Kafka: {first.str()}")
        if acknowledged < len(messages):
            raise Undelivered("Kafka: no acknowledgement in time")

    resend = send

    def close(self) -> None:
        """Drop what was not acknowledged: it is sent again from the feed."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.poll(0)
            self._producer = None
