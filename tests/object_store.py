"""A real S3 store on loopback: SeaweedFS, of which a package of the tests brings the program.

One process is its master, its volumes, its filer and the S3 gateway. Invariant: who holds KEY may
do in BUCKET what docs/object-store.md says a lake needs, and nothing elsewhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from tests.killable import Killable

BUCKET = "lake"
KEY, SECRET = "AKIDTIDEMARK", "sEcReT/of+the=lake"
_OWNER = ("AKIDOWNER", "of-the-whole-store")
START_S = 60.0

_IDENTITIES = {
    "identities": [
        {
            "name": "tidemark",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": [f"{right}:{BUCKET}" for right in ("Read", "Write", "List")],
        },
        {
            "name": "owner",
            "credentials": [{"accessKey": _OWNER[0], "secretKey": _OWNER[1]}],
            "actions": ["Admin"],
        },
    ]
}

_PARTS = ("master", "volume", "filer", "s3")


class ObjectStore(Killable):
    """The store in a folder of its own; it keeps its data and port over a crash."""

    def __init__(self, folder: Path, unused_port: Callable[[], int]) -> None:
        self.folder = folder
        self._ports = {
            f"{part}.port{grpc}": unused_port() for part in _PARTS for grpc in ("", ".grpc")
        }

    @property
    def port(self) -> int:
        """Where it speaks S3."""
        return self._ports["s3.port"]

    @property
    def endpoint(self) -> str:
        """The same as an address."""
        return f"http://127.0.0.1:{self.port}"

    def lake_uri(self) -> str:
        """A folder of the bucket that nobody else uses."""
        return f"s3://{BUCKET}/{uuid4().hex[:12]}"

    def environment(self) -> dict[str, str]:
        """What a process has in its environment that may use the bucket."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> ObjectStore:
        """Start it, with the bucket; return when it takes files."""
        config = self.folder / "identities.json"
        config.write_text(json.dumps(_IDENTITIES))
        (self.folder / "data").mkdir(exist_ok=True)
        options = {
            **self._ports,
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer.localSocket": self.folder / "filer.sock",
            "s3.localSocket": self.folder / "s3.sock",
            "s3.config": config,
            "s3": "true",
            "s3.autoCreateBucket": "false",
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.peers": "none",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 100,
        }
        command = [str(Path(sys.executable).with_name("weed")), "server"]
        command += [f"-{name}={value}" for name, value in options.items()]
        with (self.folder / "store.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        self._await_bucket()
        return self

    def _await_bucket(self) -> None:
        """Its parts find each other in their time."""
        end = time.monotonic() + START_S
        while not self._takes_files():
            assert self.process is not None
            log = self.folder / "store.log"
            assert self.process.poll() is None, f"the store has ended: {log}"
            assert time.monotonic() < end, f"the store takes no files: {log}"
            time.sleep(0.05)

    def _takes_files(self) -> bool:
        with suppress(OSError):
            owner = self.as_owner(allow_bucket_creation=True)
            owner.create_dir(BUCKET)
            with owner.open_output_stream(f"{BUCKET}/.ready") as sink:
                sink.write(b"it takes files")
            owner.delete_file(f"{BUCKET}/.ready")
            return True
        return False

    def as_owner(self, **options: bool) -> fs.S3FileSystem:
        """The store as its owner sees it; nothing is tried twice."""
        return fs.S3FileSystem(
            access_key=_OWNER[0],
            secret_key=_OWNER[1],
            endpoint_override=f"127.0.0.1:{self.port}",
            scheme="http",
            region="us-east-1",
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
            **options,
        )

    def objects(self, folder: str = "") -> dict[str, int]:
        """Every object below a folder of the bucket and its size, whoever has put it there."""
        root = f"{BUCKET}/{folder}".rstrip("/")
        found = self.as_owner().get_file_info(
            fs.FileSelector(root, recursive=True, allow_not_found=True)
        )
        return {
            info.path.removeprefix(f"{BUCKET}/"): info.size
            for info in found
            if info.type == fs.FileType.File
        }

    def kill(self) -> None:
        """As the power cut does."""
        if self.process is not None:
            super().kill()
            for part in _PARTS:  # where these are cannot be said
                socket = f"/tmp/seaweedfs-{part}-grpc-{self._ports[f'{part}.port.grpc']}.sock"
                Path(socket).unlink(missing_ok=True)
