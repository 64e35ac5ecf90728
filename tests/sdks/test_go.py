"""posthog-go of 2025, through faults.

What it believes delivered stands at the top of `go_2025/main.go`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require_program
from tests.sdks.conftest import HERE, Way
from tests.sdks.evidence import hold
from tests.sdks.faults import all_seen, faults


@pytest.fixture(scope="session")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with the SDK, built from what go.sum names."""
    go = require_program("go", "golang-go")
    program = tmp_path_factory.mktemp("go") / "sender"
    command = [go, "build", "-mod=readonly", "-o", str(program), "."]
    settings = {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    subprocess.run(command, cwd=HERE / "go_2025", env={**os.environ, **settings}, check=True)
    return program


def test_the_sdk_of_2025(way: Way, sender: Path) -> None:
    """It gives events no uuid, so what it sends again after a lost answer counts as new.

    Its questions about flags are answered, and none of them is asked again for want of an answer.
    """
    way.proxy.plan = faults(seed=7)
    argument = json.dumps({"host": way.host, "token": way.token, "events": 2_000})
    output = subprocess.run([sender, argument], stdout=subprocess.PIPE, check=True).stdout
    told = json.loads(output)
    assert told["errors"] == []
    assert told["flags"] == "map[] false"
    assert sorted(told["believed"]) == list(range(2_000))
    hold(way, told["believed"], own_uuids=False)
    assert all_seen(way.proxy)
    assert not [e for e in way.proxy.exchanges if e.answered is not None and e.answered >= 400]
    assert len(way.proxy.of("/flags/")) == 2
    names = "SELECT DISTINCT event FROM {database}.events WHERE sdk = 'posthog-go/1.5.2'"
    found = {name for (name,) in way.stack.rows(names)}
    asked = {"$identify", "$create_alias", "$groupidentify", "$feature_flag_called"}
    assert found == {"tick", *asked}
