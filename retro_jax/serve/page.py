"""The page for a person, and what it may do in a browser."""

import base64
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_bytes()


def headers(page: str = PAGE.decode()) -> dict[str, str]:
    """What the page may do: its own style and script, and calls of this server."""
    allowed = {}
    for tag in ("style", "script"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        allowed[tag] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    return {
        "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; connect-src 'self'; img-src data:; "
        + "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in allowed.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
