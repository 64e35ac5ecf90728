"""The command line: `tidemark`.

Exit codes: 0 done; 1 it failed, with one line on stderr that says why and what to do; 2 the
command was misspelt; 3 a balance does not close. With `--json`, stdout holds one JSON document
and nothing else.
"""

from __future__ import annotations

import errno
import sys
from importlib import import_module

import click
from confluent_kafka import KafkaException
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from assets.pipeline.errors import BatchError, TopicMissing
from local_stack.errors import StackError
from local_stack.kafka.errors import LocalKafkaError
from local_stack.kafka.topics import KafkaNotReady, TopicMismatch
from orchestration.instance import dagster_trouble, is_of_dagster
from orchestration.ledger.errors import LedgerRefused, in_one_line, what_to_do
from orchestration.settings_in_force import SettingsTrouble
from orchestration.settings_trouble import sentences
from orchestration.webserver import WebserverSilent

EXIT_FAILED = 1
EXIT_NOT_BALANCED = 3

_USER_ERRORS = (
    StackError,
    BatchError,
    LocalKafkaError,
    KafkaNotReady,
    TopicMismatch,
    LedgerRefused,
    WebserverSilent,
    KafkaException,
    SettingsTrouble,
    SQLAlchemyError,
    ImportError,
    OSError,
)

_OWN_PACKAGES = {"assets", "capture_api", "local_stack", "orchestration"}

_COMMANDS = {
    "up": "stack",
    "down": "stack",
    "status": "status",
    "demo": "demo",
    "batch": "batch",
    "retry": "batch",
    "release": "batch",
    "alarms": "alarms",
    "gaps": "gaps",
    "redrive": "redrive",
    "import": "imports",
    "backfill": "backfill",
    "explain": "explain",
    "reconcile": "reconcile",
    "housekeeping": "housekeeping",
    "projects": "projects",
    "rules": "rules",
    "settings": "settings",
}
"""Each command and the module beside this one that holds it."""


_ATTRIBUTES = {"import": "import_"}
"""Where a command cannot be called as its module's attribute is."""


class _OnDemand(click.Group):
    """Commands that are imported when they are called: most need only a part of Tidemark."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"orchestration.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, _ATTRIBUTES.get(cmd_name, cmd_name))
        return command


@click.group(
    cls=_OnDemand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tidemark")
def tidemark() -> None:
    """Event ingestion you can audit: SDK → Kafka → Dagster micro-batches → ClickHouse."""


def main() -> None:
    """Run the command line; the edge at which errors become one line and an exit code."""
    try:
        tidemark(prog_name="tidemark")
    except (ValidationError, SettingsError) as error:
        for sentence in sentences(error):
            print(f"tidemark: {sentence}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except _USER_ERRORS as error:
        if isinstance(error, ImportError) and (error.name or "").split(".")[0] in _OWN_PACKAGES:
            raise  # a fault of Tidemark, not a package that is missing
        print(f"tidemark: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if not is_of_dagster(error):
            raise
        print(f"tidemark: {dagster_trouble(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, TopicMissing):
        return (
            f"{error}: create it (`tidemark up` does so on the local stack), or name another in "
            "TIDEMARK_TOPIC"
        )
    if isinstance(error, KafkaException):
        return f"Kafka: {error.args[0].str()}; see TIDEMARK_KAFKA_BOOTSTRAP_SERVERS and …_OPTIONS"
    if isinstance(error, SQLAlchemyError):
        reason = in_one_line(error)
        help_ = what_to_do(reason, "TIDEMARK_LEDGER_URL")
        return f"the ledger cannot be used ({reason}); {help_}"
    if isinstance(error, ImportError):
        return f"{error}: install it, or name a driver that is there in TIDEMARK_LEDGER_URL"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        help_ = _OF_FILES.get(error.errno or 0, "see TIDEMARK_HOME" if where else "")
        return f"{where}{error.strerror}{help_ and f'; {help_}'}"
    return str(error)


_OF_FILES = {
    errno.ENOSPC: "make room on the disk of TIDEMARK_HOME",
    errno.EDQUOT: "make room on the disk of TIDEMARK_HOME",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "let this user write there, or name another folder in TIDEMARK_HOME",
    ),
}
"""What helps against an error of the operating system."""
