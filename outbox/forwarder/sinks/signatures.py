"""Standard Webhooks: what a request is signed with (standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac

from outbox.forwarder.settings import is_secret
from outbox.forwarder.sink import Refused

__all__ = ["headers", "key_of"]


def key_of(secret: str) -> bytes:
    """The key of a secret, `whsec_` and base64; `Refused` where it is none."""
    if not is_secret(secret):
        raise Refused("a secret of this webhook is not `whsec_` and base64, as Standard Webhooks has it")
    text = secret.removeprefix("whsec_")
    return base64.b64decode(text + "=" * (-len(text) % 4))


def headers(keys: tuple[bytes, ...], identity: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt. Each key signs, so that a receiver may know the old secret or the new one."""
    found = {"webhook-id": identity, "webhook-timestamp": str(timestamp)}
    signed = b".".join([identity.encode(), str(timestamp).encode(), body])
    sums = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
    if sums:
        found["webhook-signature"] = " ".join(f"v1,{each}" for each in sums)
    return found
