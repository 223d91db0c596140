"""A user's seal on plans: it says whose word the hash of a plan is.

A plan is native code, and the hash beside it is no better than who wrote both. A model folder may
come from a stranger with plans in it. So a plan bears a seal that only its builder can make, by a
key in the user's own cache folder, and a plan under no seal of ours is not run until its user says
so (`diffusion-rt build DIR --engine trt --trust`).
"""

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.errors import BadInput

BYTES = 32  # of a seal, and of the key
_WHAT = b"diffusion-rt plan 1\n"


def seal_of(header_sha256: bytes) -> bytes:
    """The seal of this user on a header, which holds the plan's own hash. Raises BadInput."""
    return hmac.digest(_key(), _WHAT + header_sha256, "sha256")


def is_ours(header_sha256: bytes, seal: bytes) -> bool:
    """Whether this user sealed a header. Raises BadInput where the key cannot be had."""
    return hmac.compare_digest(seal, seal_of(header_sha256))


def _key() -> bytes:
    """The user's key, made when first needed. Others cannot read the folder it lies in."""
    path = cache_folder("trt") / "plan.key"
    if not os.path.lexists(path):
        _make(path)
    key = read_bytes(path, 1 << 10, follow_links=False)
    if len(key) != BYTES:
        raise BadInput(f"{path}: {len(key)} bytes, wants {BYTES}; remove it and build anew")
    return key


def _make(path: Path) -> None:
    """A new key under `path`; of several processes that make one, the first one's stays."""
    new = path.with_name(f".plan-{secrets.token_hex(8)}.key")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()
