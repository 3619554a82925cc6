"""What Prometheus reads at `GET /metrics`: counters that the committer and the queries feed, and the state as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outbox.forwarder.status import SinkStatus
from store.compaction import CompactionCounters
from store.memory import resident_bytes
from store.outcomes import Answer

__all__ = ["Metrics", "State"]

_MEDIA_TYPE = CONTENT_TYPE_LATEST.partition("; charset")[0]
"""The framework says the charset of every text."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG_SECONDS = (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 30, 60)
_ROWS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536)
_OUTCOMES = ("accepted", "duplicate", "conflict", "rejected")


class State(Protocol):
    """What is looked at when Prometheus asks."""

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Value and meaning of each figure, by its name without `oncelake_`."""

    def runs(self) -> dict[str, int]:
        """Runs on disk by kind."""

    def sinks(self) -> list[SinkStatus]:
        """The sinks of the forwarder."""

    def compactions(self) -> CompactionCounters:
        """What was compacted."""

    def flushes(self) -> tuple[int, int, float]:
        """Flushes, their records and their seconds."""


class Metrics:
    """The metrics of one service. A source is `http` or `file`: names of sources would have no bound."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        records = Counter(
            "oncelake_records", "Records by outcome and by the way they came.", ("outcome", "source"),
            registry=self._registry,
        )  # fmt: skip
        self._records = {
            (is_file, outcome): records.labels(outcome, "file" if is_file else "http")
            for is_file in (False, True)
            for outcome in _OUTCOMES
        }
        self._commit_seconds = Histogram(
            "oncelake_commit_seconds", "Time of a commit: decided, rendered, synced, answered.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._commit_records = Histogram(
            "oncelake_commit_records", "Records of a commit.", buckets=_ROWS, registry=self._registry
        )
        self._query_seconds = Histogram(
            "oncelake_query_seconds", "Time of a query until all of its answer is there.",
            buckets=_LONG_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_Now(state))

    def committed(self, seconds: float, answers: list[tuple[bool, Answer]]) -> None:
        """One commit: its time, and the answers to its parts with whether they are of files."""
        rows = 0
        for bulk in (False, True):
            found = [(a.accepted, a.duplicate, a.conflict, a.rejected) for is_file, a in answers if is_file is bulk]
            for outcome, counts in zip(_OUTCOMES, zip(*found, strict=True), strict=False):
                if count := sum(counts):
                    rows += count
                    self._records[bulk, outcome].inc(count)
        self._commit_seconds.observe(seconds)
        self._commit_records.observe(rows)

    def asked(self, seconds: float) -> None:
        """One query."""
        self._query_seconds.observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """Everything, and its media type."""
        return generate_latest(self._registry), _MEDIA_TYPE


class _Now(Collector):
    """What is as it is when it is asked for."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        for name, (meaning, value) in {**self._state.gauges(), **_memory()}.items():
            yield GaugeMetricFamily(f"oncelake_{name}", meaning, value)
        runs = GaugeMetricFamily("oncelake_runs", "Runs on disk by kind.", labels=["kind"])
        for kind, count in self._state.runs().items():
            runs.add_metric([kind], count)
        yield runs
        flushes, records, seconds = self._state.flushes()
        compactions = self._state.compactions()
        for name, meaning, value in (
            ("flushes", "Flushes.", flushes),
            ("flushed_records", "Records that were flushed.", records),
            ("flush_seconds", "Time of flushes.", seconds),
            ("compacted_partitions", "Partitions that were compacted.", compactions.partitions),
            ("compacted_files", "Parquet files that were merged into others.", compactions.files_in),
            ("compacted_records", "Records of files that were merged.", compactions.rows),
        ):
            yield CounterMetricFamily(f"oncelake_{name}", meaning, value)
        yield from _of_sinks(self._state.sinks())


def _of_sinks(sinks: list[SinkStatus]) -> Iterator[Metric]:
    labels = ["sink", "feed"]
    families: list[tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, str, str]] = [
        (GaugeMetricFamily, "forward_lag_seqs", "Committed seqs that a sink has not acknowledged.", "lag_seqs"),
        (GaugeMetricFamily, "forward_lag_seconds", "Age of the oldest of them that must go out.", "lag_s"),
        (CounterMetricFamily, "forward_attempts", "Requests to a sink.", "attempts"),
        (CounterMetricFamily, "forward_failures", "Those that failed.", "failures"),
        (CounterMetricFamily, "forward_delivered", "Messages that a sink acknowledged.", "delivered"),
        (GaugeMetricFamily, "forward_dead_letter_bytes", "Messages that were given up, on disk.", "dead_letter_bytes"),
    ]
    for kind, name, meaning, field in families:
        family = kind(f"oncelake_{name}", meaning, labels=labels)
        for sink in sinks:
            family.add_metric([sink.name, sink.feed], float(getattr(sink, field)))
        yield family
    state = GaugeMetricFamily("oncelake_forward_ok", "Whether a sink takes messages.", labels=labels)
    for sink in sinks:
        state.add_metric([sink.name, sink.feed], float(sink.state == "ok"))
    yield state


def _memory() -> dict[str, tuple[str, float]]:
    """Of this process: what is its own, and what of mapped files is in memory."""
    found = resident_bytes()
    if not found:
        return {}
    return {
        "memory_anonymous_bytes": ("Memory of the process that is its own.", found["RssAnon"]),
        "memory_mapped_bytes": ("Mapped files in memory, which the kernel may drop.", found["RssFile"]),
    }
