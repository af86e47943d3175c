"""Figures for Prometheus: as a text file, and over HTTP where a port is named.

A figure is counted on the way of a message or a round and must not end either: what goes wrong with
the file or the port is passed over or told once.
"""

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, write_to_textfile
from prometheus_client import start_http_server as serve

FILE = "metrics.prom"
PORT, HOST, DEFAULT_HOST = "FEDMTL_METRICS_PORT", "FEDMTL_METRICS_HOST", "127.0.0.1"
# Seconds: a deployed round takes from half a second to an hour.
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class FiguresFile:
    """A registry of figures of this process alone, and the file that shows it.

    Args:
        folder: where the file stands.
        prefix: what every figure's name begins with, such as "fedmtl_node".
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.path, self.prefix = folder / FILE, prefix
        self.registry = CollectorRegistry()
        self._server: tuple[object, threading.Thread] | None = None

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a figure that only grows; Prometheus calls it ``<prefix>_<name>_total``."""
        return Counter(f"{self.prefix}_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a figure that goes up and down."""
        return Gauge(f"{self.prefix}_{name}", text, labels, registry=self.registry)

    def seconds(self, name: str, text: str, *labels: str) -> Histogram:
        """Make a distribution of durations; it is called ``<prefix>_<name>_seconds``."""
        return Histogram(
            f"{self.prefix}_{name}_seconds", text, labels, buckets=BUCKETS, registry=self.registry
        )

    def write(self) -> None:
        """Replace the file; a failure to write is passed over."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(str(self.path), self.registry)

    def serve(self, logger: logging.Logger) -> None:
        """Serve the figures on /metrics where the environment names a port; else do nothing."""
        port, host = os.environ.get(PORT, ""), os.environ.get(HOST) or DEFAULT_HOST
        if not port:
            return
        try:
            self._server = serve(int(port), host, self.registry)
            logger.info("figures are served on http://%s:%s/metrics", host, port)
        except (OSError, ValueError, OverflowError) as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
            logger.warning(
                "%s must be a free port, got '%s' on %s (%s); figures stand in %s only",
                PORT,
                port,
                host,
                reason,
                self.path,
            )

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()  # type: ignore[attr-defined]
            server.server_close()  # type: ignore[attr-defined]
            thread.join(timeout=5.0)
            self._server = None
