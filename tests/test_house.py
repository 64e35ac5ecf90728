"""Rules of the house that no other test would notice being broken."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from pkgutil import resolve_name

import pytest

from assets.pipeline.batch import State
from assets.pipeline.reasons import SENTENCES, Reason
from capture_api.metrics import METRICS, Kind
from docs.week_of_dates import ENRICH, VERSION
from orchestration.cli import _COMMANDS
from orchestration.settings import Settings

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def committed() -> list[Path]:
    """The files that are in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_file_names_a_registry_or_a_folder_of_somebody() -> None:
    """Locks and sources hold no address of a package registry and no path of one machine."""
    hosts = re.compile(
        r"files\.python"
        + r"hosted|pypi\."
        + r"org|repo1?\.maven"
        + r"|registry\.np"
        + r"m"
        + r"|/ro"
        + r"ot/"
    )
    guilty = [
        str(path.relative_to(ROOT))
        for path in committed()
        if path.is_file()
        and path.suffix not in {".png"}
        and hosts.search(path.read_text(errors="replace"))
    ]
    assert guilty == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_pinned_with_a_hash(lock: str) -> None:
    """Each requirement of a lock file has one version and at least one SHA-256."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if "==" not in line or "--hash=sha256:" not in line] == []


def test_the_lock_of_the_javascript_sdks_has_hashes_and_no_addresses() -> None:
    """Every package that the tests take from npm has its integrity, and no host is named."""
    text = (ROOT / "tests" / "sdks" / "package-lock.json").read_text()
    packages = {name: p for name, p in json.loads(text)["packages"].items() if name}
    assert len(packages) > 10
    assert [name for name, package in packages.items() if "integrity" not in package] == []
    assert "://" not in text


def test_every_reason_has_a_sentence() -> None:
    """Whoever looks at a dead letter can read what its reason means."""
    assert set(SENTENCES) == set(Reason)
    page = (ROOT / "docs" / "dead-letters.md").read_text()
    rows = [f"| `{reason}` | {sentence} |" for reason, sentence in SENTENCES.items()]
    assert [row for row in rows if row not in page] == []


def test_every_state_is_in_the_drawing() -> None:
    """The design notes draw every state that a batch can have."""
    page = (ROOT / "docs" / "design.md").read_text()
    drawing = page.split("## A batch's states")[1].split("The ledger (")[0]
    assert [state for state in State if state not in drawing] == []


def test_every_link_of_the_documents_leads_somewhere() -> None:
    """No page links to a file that is not there."""
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_documents_name_every_command() -> None:
    """Each command of `tidemark` stands in the README or a page of docs/."""
    text = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert [name for name in _COMMANDS if f"tidemark {name}" not in text] == []


def test_the_settings_of_the_readme_exist() -> None:
    """Every TIDEMARK_… variable in the documents is a setting."""
    known = {f"TIDEMARK_{name.upper()}" for name in Settings.model_fields}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name for page in pages for name in re.findall(r"TIDEMARK_[A-Z0-9_]+", page.read_text())
    }
    assert named - known == set()


def test_every_metric_stands_in_the_docs() -> None:
    """With the labels and the sentence that /metrics shows."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    for metric in METRICS:
        name = metric.name + ("_total" if metric.kind is Kind.COUNTER else "")
        row = f"| `{name}` | {', '.join(metric.labels) or '–'} | {metric.help} |"
        assert row in page, f"docs/metrics.md lacks: {row}"


@pytest.mark.parametrize("name", [ENRICH, VERSION])
def test_what_the_pictures_put_in_place_is_there(name: str) -> None:
    """The pictures of the documents are made by hand: what they patch must not be renamed."""
    assert resolve_name(name) is not None
