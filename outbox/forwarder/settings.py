"""One `[[forward]]` table: a feed, where it goes, and how."""

from __future__ import annotations

import base64
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from store.errors import ConfigError

__all__ = ["KINDS", "Forward", "is_secret", "masked_url"]

Names = tuple[str, ...]

KINDS = {
    "http": "webhook",
    "https": "webhook",
    "redis": "redis",
    "rediss": "redis",
    "nats": "nats",
    "tls": "nats",
    "kafka": "kafka",
    "amqp": "amqp",
    "amqps": "amqp",
    "s3": "objects",
    "file": "objects",
}
"""The kind of sink of each scheme."""

_BATCHES = {"webhook": 100, "redis": 1_000, "nats": 1_000, "kafka": 1_000, "amqp": 500, "objects": 10_000}

_OPTIONS: dict[str, frozenset[str]] = {
    "webhook": frozenset(),
    "redis": frozenset({"stream", "channel", "maxlen"}),
    "nats": frozenset({"stream", "subject"}),
    "kafka": frozenset({"topic"}),
    "amqp": frozenset({"exchange", "routing_key", "queue"}),
    "objects": frozenset({"endpoint", "region"}),
}

_NEEDED = {"nats": ("stream", "subject"), "kafka": ("topic",), "amqp": ("routing_key",)}


class Forward(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sink. `start` is where a sink begins that has no checkpoint yet; a number is a seq to start after."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    url: str
    feed: Literal["notifications", "alerts"] = "notifications"
    start: Literal["earliest", "latest"] | Annotated[int, Meta(ge=0)] = "earliest"
    batch: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    linger_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    attempts: Annotated[int, Meta(ge=0)] = 0
    unit: str | Names = ()
    destination: str | Names = ()
    source: str | Names = ()
    secret: str | Names = ""
    allow_private: bool = False
    allow: Names = ()
    in_service: bool = True

    @property
    def kind(self) -> str:
        """Which sink it is: a value of `KINDS`."""
        return KINDS[urlsplit(self.url).scheme]

    @property
    def batch_lines(self) -> int:
        """Messages that go out together."""
        return self.batch or _BATCHES[self.kind]

    @property
    def shown_url(self) -> str:
        """The URL without what nobody should read."""
        return masked_url(self.url)

    def check(self) -> None:
        """`ConfigError` where a value cannot work, which its type alone does not tell."""
        parts = self._parts()
        kind = KINDS.get(parts.scheme)
        if kind is None:
            known = ", ".join(f"{scheme}://" for scheme in KINDS)
            raise ConfigError(f"url: {self.shown_url!r} is of no kind that is known: {known}")
        if parts.scheme != "file" and not parts.hostname:
            raise ConfigError(f"url: {self.shown_url!r} names no host")
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise ConfigError(f"url: {self.shown_url!r}: write a folder as file:///srv/out")
        if kind == "webhook":
            for text in filter(None, [self.secret] if isinstance(self.secret, str) else self.secret):
                if not text.startswith(("env:", "file:")) and not is_secret(text):
                    raise ConfigError("secret: one is not `whsec_` and base64: write that, env:NAME or file:PATH")
            return
        options = self.options()
        if unknown := sorted(set(options) - _OPTIONS[kind]):
            near = difflib.get_close_matches(unknown[0], _OPTIONS[kind], n=1, cutoff=0.4)
            known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(_OPTIONS[kind]))}"
            raise ConfigError(f"url: there is no option {unknown[0]!r} for {parts.scheme}://; {known}")
        for needed in _NEEDED.get(kind, ()):
            if not options.get(needed):
                raise ConfigError(f"url: {parts.scheme}:// needs ?{needed}=…")
        if kind == "redis" and not (options.get("stream") or options.get("channel")):
            raise ConfigError("url: redis:// needs ?stream=… or ?channel=…, or both")
        if not options.get("maxlen", "1").isdecimal():
            raise ConfigError(f"url: maxlen is {options['maxlen']!r}: write a number of messages")

    def options(self) -> dict[str, str]:
        """What stands behind the `?` of the URL (a webhook's query is its own)."""
        return dict(parse_qsl(self._parts().query, keep_blank_values=True))

    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            _ = parts.port  # raises where it is no number
        except ValueError as error:
            raise ConfigError(f"url: {masked_url(self.url)!r} is no URL: {error}") from None
        return parts

    def secrets(self, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
        """The secrets that sign, newest first: as they stand, of `env:NAME` or of `file:PATH` (one on a line)."""
        found: list[str] = []
        for text in filter(None, [self.secret] if isinstance(self.secret, str) else self.secret):
            where, _, what = text.partition(":")
            if where == "env" and what not in environ:
                raise ConfigError(f"secret: there is no environment variable {what}")
            if where == "file":
                try:
                    found += Path(what).read_text("utf-8").split()
                except (OSError, UnicodeDecodeError) as error:
                    raise ConfigError(f"secret: {what} cannot be read: {error}") from None
            else:
                found += environ[what].split() if where == "env" else [text]
        return tuple(found)


def is_secret(text: str) -> bool:
    """Whether it is one as Standard Webhooks has it."""
    body = text.removeprefix("whsec_")
    try:
        return bool(base64.b64decode(body + "=" * (-len(body) % 4), validate=True))
    except ValueError:
        return False


_USERINFO = re.compile(r"(?<=//)[^/?#]*@")


def masked_url(url: str) -> str:
    """The URL with its password hidden, and the query of a webhook, which often holds a token."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _USERINFO.sub("***@", url)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user:
        user = f"{user.partition(':')[0]}:***"
    query = "***" if parts.query and parts.scheme in ("http", "https") else parts.query
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}", query=query))
