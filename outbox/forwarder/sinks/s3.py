"""A bucket of S3 or of what speaks its protocol."""

from __future__ import annotations

import os
from datetime import timedelta
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Undelivered

__all__ = ["S3Bucket"]

_PAGE = 1_000
_DIGITS = 20


class S3Bucket:
    """`s3://[key:secret@]bucket/prefix?endpoint=…&region=…`; keys else from the environment, as AWS names them."""

    def __init__(self, table: Forward, *, timeout_s: float = TIMEOUT_S) -> None:
        options, parts = table.options(), urlsplit(table.url)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        keys = {"access_key_id": unquote(user), "secret_access_key": unquote(password)} if user else {}
        endpoint = {"endpoint": options["endpoint"]} if options.get("endpoint") else {}
        is_open = bool(endpoint) and not keys and "AWS_ACCESS_KEY_ID" not in os.environ
        self._told = table.shown_url
        try:
            self._store = S3Store(
                parts.netloc.rpartition("@")[2],
                prefix=parts.path.strip("/") or None,
                region=options.get("region") or os.environ.get("AWS_REGION") or "us-east-1",
                skip_signature=is_open,
                client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_s)},
                retry_config={"max_retries": 0},
                **endpoint,  # type: ignore[arg-type]
                **keys,  # type: ignore[arg-type]
            )
        except BaseError as error:
            raise Undelivered(f"{self._told}: {_first_line(error)}") from error

    def newest(self, prefix: str) -> str | None:
        """Few objects are listed; of many the last is found by halving, since lists only begin where they are told."""
        names = self._page(prefix, prefix, _PAGE)
        if len(names) < _PAGE:
            return names[-1] if names else None
        low, step = _seq(names[-1], prefix), 1
        while found := self._page(f"{prefix}{low + step:0{_DIGITS}d}.jsonl", prefix, 1):
            low, step = _seq(found[0], prefix), 2 * step
        high = low + step
        while names := self._page(f"{prefix}{low:0{_DIGITS}d}.jsonl", prefix, 1):
            # at least one lies above `low`, none above `high`
            middle = (_seq(names[0], prefix) + high) // 2
            found = self._page(f"{prefix}{middle:0{_DIGITS}d}.jsonl", prefix, 1)
            low, high = (_seq(found[0], prefix), high) if found else (_seq(names[0], prefix), middle)
        return f"{prefix}{low:0{_DIGITS}d}.jsonl"

    def _page(self, after: str, prefix: str, limit: int) -> list[str]:
        """Names above another one, in order."""
        try:
            found = next(iter(obstore.list(self._store, offset=after, chunk_size=limit)), [])
        except BaseError as error:
            raise Undelivered(f"{self._told}: {_first_line(error)}") from error
        names = sorted(each["path"].rpartition("/")[2] for each in found)
        return [name for name in names if name.startswith(prefix) and name.endswith(".jsonl")]

    def get(self, name: str) -> bytes:
        """The bytes of an object."""
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except BaseError as error:
            raise Undelivered(f"{self._told}: {_first_line(error)}") from error

    def put_new(self, name: str, data: bytes) -> bool:
        """`If-None-Match: *`."""
        try:
            obstore.put(self._store, name, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except BaseError as error:
            raise Undelivered(f"{self._told}: {_first_line(error)}") from error
        return True

    def close(self) -> None:
        """Connections end with the store."""


def _seq(name: str, prefix: str) -> int:
    return int(name.removeprefix(prefix)[:_DIGITS])


def _first_line(error: BaseError) -> str:
    return str(error).partition("\n")[0][:500]
