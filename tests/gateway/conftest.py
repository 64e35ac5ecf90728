"""A real nginx with the configuration of deploy/gateway, in front of real capture APIs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.capture_api.conftest import Capture, new_capture, until, until_fixture
from tests.conftest import require_program, unused_port

__all__ = ["new_capture", "until_fixture"]

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "gateway"
UNLIMITED = {("site/unlimited.conf", "# 10.0.0.0/8 1;"): "127.0.0.0/8 1;"}
TRUST = {"TIDEMARK_CAPTURE_TRUSTED_PROXIES": "127.0.0.0/8"}


class Gateway:
    """An nginx on a high port, with a folder and a certificate of its own."""

    def __init__(
        self, folder: Path, ports: tuple[int, int], changes: dict[tuple[str, str], str]
    ) -> None:
        self.folder = folder
        self.port = unused_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        shutil.copytree(CONFIGURATION, folder, dirs_exist_ok=True)
        for (name, before), after in changes.items():
            self._change(name, before, after)
        _certificate(folder)
        site = {
            "process.conf": f"pid {folder}/nginx.pid; error_log {folder}/error.log info;"
            + (" user root;" if os.geteuid() == 0 else ""),
            "paths.conf": f"access_log {folder}/access.json requests;"
            + "".join(
                f" {kind}_temp_path {folder}/{kind};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
        }
        for name, text in site.items():
            (folder / "site" / name).write_text(text)
        for name, before, after in (
            ("replicas.conf", "127.0.0.1:8001", f"127.0.0.1:{ports[0]}"),
            ("replicas.conf", "127.0.0.1:8002", f"127.0.0.1:{ports[1]}"),
            ("listen.conf", "listen 443 ", f"listen 127.0.0.1:{self.port} "),
            ("listen.conf", "listen [::]:443 ssl http2;", ""),
            ("listen.conf", "/etc/tidemark/", f"{folder}/"),
        ):
            self._change(f"site/{name}", before, after)
        self.client = self.new_client()

    def start(self) -> Gateway:
        """Check the configuration, start nginx, and wait until it answers."""
        nginx = require_program("nginx", "nginx")
        command = [nginx, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        with (self.folder / "stderr").open("ab") as log:
            self.process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=log)
        until(self.answers, "nginx answers")
        return self

    def answers(self) -> bool:
        """Whether it does."""
        try:
            return self.client.get("/_").status_code == 404
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End nginx and its workers."""
        self.client.close()
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def new_client(self, **more: Any) -> httpx.Client:
        """A client with connections of its own, which believes the certificate."""
        trust = ssl.create_default_context(cafile=str(self.folder / "gateway.crt"))
        return httpx.Client(
            base_url=self.url, transport=httpx.HTTPTransport(verify=trust, **more), timeout=30
        )

    def log(self) -> list[dict[str, Any]]:
        """The access log."""
        lines = (self.folder / "access.json").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def _change(self, name: str, before: str, after: str) -> None:
        file = self.folder / name
        text = file.read_text()
        assert before in text, f"{name} has no {before!r}"
        file.write_text(text.replace(before, after))


def _certificate(folder: Path) -> None:
    """A key and a certificate for 127.0.0.1, signed by itself."""
    command = [require_program("openssl", "openssl"), "req", "-x509", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "gateway.key"), "-out", str(folder / "gateway.crt")]
    subprocess.run(command, capture_output=True, check=True)


@pytest.fixture(scope="module")
def new_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    """Makes running gateways before one or two replicas; texts of (file, text) may be changed."""
    gateways: list[Gateway] = []

    def make(*ports: int, changes: dict[tuple[str, str], str] | None = None) -> Gateway:
        folder = tmp_path_factory.mktemp("gateway")
        gateways.append(Gateway(folder, (ports[0], ports[-1]), changes or {}))
        return gateways[-1].start()

    yield make
    for gateway in gateways:
        gateway.stop()


@pytest.fixture(scope="module")
def replicas(kafka: str, new_capture: Callable[..., Capture]) -> tuple[Capture, Capture]:
    """Two running capture APIs with one ledger and one topic, which believe the gateway."""
    first = new_capture(kafka, **TRUST)
    ledger = {"TIDEMARK_LEDGER_URL": f"sqlite:///{first.home}/ledger.db"}
    second = new_capture(kafka, make_topic=False, **TRUST, **ledger, TIDEMARK_TOPIC=first.topic)
    return first.start(), second.start()


@pytest.fixture(scope="module")
def gateway(replicas: tuple[Capture, Capture], new_gateway: Callable[..., Gateway]) -> Gateway:
    """The gateway before the two replicas."""
    return new_gateway(*(replica.port for replica in replicas), changes=UNLIMITED)
