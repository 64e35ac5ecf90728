"""The client's address: the one place that decides whom to believe about it.

For now that is the peer of the TCP connection. Proxies and their forwarding headers belong here
too, together with the list of proxies that may be believed.
"""

from __future__ import annotations

from capture_api.answers import Scope


def client_address(scope: Scope) -> str:
    """The address in text, or an empty string when the server does not know it."""
    client = scope.get("client")
    return client[0] if client else ""
