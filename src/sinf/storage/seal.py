"""What shows that a JSON file of ours is as it was written: a digest of its content, and with a key its signature.

The digest is the sha256 of the canonical JSON (sorted keys, no spaces) of everything else in the file. It shows damage
and edits by hand. It shows no forger: who changes the content can compute it again. The signature is the HMAC-SHA256 of
the digest under a key that writer and reader share; without that key nobody can make another.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from sinf.errors import ConfigError, SinfError

DIGEST, SIGNATURE = "digest", "signature"
_LEAST_KEY = 16  # bytes


def canonical(record: dict[str, Any]) -> bytes:
    """The content of a record without its seal, the same for the same content."""
    content = {name: value for name, value in record.items() if name not in (DIGEST, SIGNATURE)}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sealed(record: dict[str, Any], key: bytes | None = None) -> dict[str, Any]:
    """A record with its digest, and signed where there is a key (bytes, 16 at least)."""
    digest = hashlib.sha256(canonical(record)).hexdigest()
    return {**record, DIGEST: digest} | ({} if key is None else {SIGNATURE: _sign(digest, key)})


def unsealed(
    record: dict[str, Any], error: type[SinfError], where: str, key: bytes | None = None
) -> tuple[dict[str, Any], str]:
    """A record without its seal, and its digest; ``where`` names the file in messages. Without a key, signatures are
    not looked at.

    Raises:
        error: the digest is not that of the content, or not signed with the key that is given.
    """
    digest = hashlib.sha256(canonical(record)).hexdigest()
    if record.get(DIGEST) != digest:
        raise error(
            "a file must be as it was written",
            got=f"{where} is damaged or was changed",
            remedy="copy it again, or make it again",
        )
    if key is not None:
        signature = record.get(SIGNATURE)
        if not isinstance(signature, str) or not hmac.compare_digest(signature.encode(), _sign(digest, key).encode()):
            got = f"{where} is not signed" if signature is None else f"{where} is signed with another"
            raise error("a file must be signed with the given key", got=got, remedy="ask its author, or give no key")
    return {name: value for name, value in record.items() if name not in (DIGEST, SIGNATURE)}, digest


def _sign(digest: str, key: bytes) -> str:
    if len(key) < _LEAST_KEY:
        raise ConfigError(f"a key must have at least {_LEAST_KEY} bytes", got=len(key), remedy="draw 32 random ones")
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()
