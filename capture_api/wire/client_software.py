"""What the `User-Agent` header says about the client's software."""

from __future__ import annotations

import re
from functools import lru_cache

USER_AGENT_LENGTH = 512
"""Characters of a user agent that are kept."""

_SDK = re.compile(r"(posthog-[\w.\-]{1,64}/[\w.+\-]{1,64})(?:\s|$)")


def client_software(header: bytes | None) -> tuple[str, str]:
    """The user agent and, where it names one of PostHog's libraries, `library/version`."""
    return _client_software(header[:USER_AGENT_LENGTH]) if header else ("", "")


@lru_cache(maxsize=4096)
def _client_software(header: bytes) -> tuple[str, str]:
    user_agent = header.decode("latin-1")  # HTTP's own encoding: one byte, one character
    sdk = _SDK.match(user_agent)
    return user_agent, sdk[1] if sdk else ""
