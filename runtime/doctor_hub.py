"""The hub that checkpoints are fetched from: how it is set up here, and whether it answers.

The standard library is enough to ask: the hub's own package comes with the extra `export`, and who
wants to know may not have it yet.
"""

import http.client
import os
import threading
import urllib.error
import urllib.request
from urllib.parse import SplitResult, urlsplit

from diffusion_rt import __version__
from diffusion_rt.runtime.finding import Finding

# As huggingface-hub has them.
DEFAULT = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES = ("1", "ON", "YES", "TRUE")

SECONDS = 5.0  # for each step on the way
PATIENCE = 10.0  # for all of it: a host may send a byte now and then
MAX_TEXT = 200


def hub_settings() -> list[Finding]:
    """How hub names would be fetched; a token is said to be there, never shown."""
    words = []
    if name := offline():
        words.append(f"{name} is set: only what the cache holds")
    if text := os.environ.get("HF_ENDPOINT"):
        parts = _parts(text)
        if parts is None:
            return [_unusable(text)]
        words.append(f"HF_ENDPOINT={_shown(parts)}")
    if os.environ.get("HF_TOKEN"):
        words.append("HF_TOKEN is set")
    asked = "" if offline() else "; whether it answers, --online asks it"
    return [Finding("ok", "hub", ("; ".join(words) or "default settings") + asked)]


def hub_online(*, seconds: float = SECONDS, patience: float = PATIENCE) -> list[Finding]:
    """Ask the hub for the head of its front page, unless a variable forbids the network.

    `seconds` are given to each step on the way, `patience` to all of it.
    """
    if name := offline():
        return [Finding("absent", "hub online", f"not asked: {name} is set", f"unset {name}")]
    text = os.environ.get("HF_ENDPOINT") or DEFAULT
    parts = _parts(text)
    if parts is None:
        return [_unusable(text, "hub online")]
    # Without user and password, which urllib takes for part of the host; 401 is an answer too.
    url = parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]).geturl()
    answers: list[Finding] = []
    # In a thread that is left behind where it takes too long: the time limit is of one read only.
    asking = threading.Thread(
        target=lambda: answers.append(_asked(url, _shown(parts), seconds)), daemon=True
    )
    asking.start()
    asking.join(patience)
    if answers:
        return answers
    return [_unreached(_shown(parts), f"no answer within {patience:g} seconds")]


def offline() -> str | None:
    """The variable that forbids the network, None where none does."""
    # The first that is set counts, as for huggingface-hub.
    name = next((name for name in OFFLINE if os.environ.get(name)), None)
    return name if name and os.environ[name].upper() in _YES else None


def _asked(url: str, host: str, seconds: float) -> Finding:
    """What comes of a HEAD request."""
    try:
        # Some hubs refuse a client that does not say who it is.
        agent = {"User-Agent": f"diffusion-rt/{__version__}"}
        request = urllib.request.Request(url, method="HEAD", headers=agent)
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return Finding("ok", "hub online", f"{host} answers {answer.status}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 407:
            repair = "give the proxy's user and password in HTTPS_PROXY"
            return Finding("absent", "hub online", f"{host}: the proxy answers 407", repair)
        if error.code in (401, 403, 404, 405):  # of its front page; models may be there
            return Finding("ok", "hub online", f"{host} answers {error.code}")
        repair = "try again later, or see to HF_ENDPOINT; or export from a local folder"
        return Finding("absent", "hub online", f"{host} answers {error.code}", repair)
    except urllib.error.URLError as error:
        return _unreached(host, str(error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _unreached(host, str(error) or type(error).__name__)


def _unreached(host: str, reason: str) -> Finding:
    text = " ".join(reason.split())[:MAX_TEXT]
    repair = "see to network and proxy (HTTPS_PROXY), or export from a local folder"
    return Finding("absent", "hub online", f"{host}: {text}", repair)


def _unusable(text: str, subject: str = "hub") -> Finding:
    # Not shown whole: it may hold a password.
    shown = repr(text.rsplit("@", 1)[-1][:MAX_TEXT])
    repair = f"HF_ENDPOINT wants an address such as {DEFAULT}; unset it for that one"
    return Finding("absent", subject, f"HF_ENDPOINT is no address of a hub: {shown}", repair)


def _parts(text: str) -> SplitResult | None:
    """The parts of an address that can be asked; None where it is none."""
    if not text.isprintable() or " " in text or not text.isascii():
        return None
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return None
    return parts if known else None


def _shown(parts: SplitResult) -> str:
    """An address without the user and password that may stand in it."""
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}"
