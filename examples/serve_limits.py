"""What keeps serve.py up: connections end; uvicorn's settings."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_SECONDS = 10  # of a connection that has no request in work
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Connection(H11Protocol):
    """A connection with an end: uvicorn by itself waits for ever for the headers of a request."""

    def connection_made(self, transport: Any) -> None:
        """Set the end; a request that is then in work is answered first."""
        super().connection_made(transport)
        self.end = self.loop.call_later(MAX_SECONDS, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the end."""
        self.end.cancel()
        super().connection_lost(exc)


SETTINGS: dict[str, Any] = {  # of uvicorn
    "http": Connection,
    "ws": "none",
    "lifespan": "off",
    "limit_concurrency": 500,  # connections; with more, every request is answered 503
    "timeout_keep_alive": 5,
    "timeout_graceful_shutdown": 30,  # an upload, its turn and the work
    "access_log": False,
    "log_level": "warning",
    "server_header": False,
    "headers": [
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ],
}
