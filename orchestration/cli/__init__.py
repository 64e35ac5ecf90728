"""The command line: `tidemark`.

Exit codes: 0 done; 1 it failed, with one line on stderr that says why and what to do; 2 the
command was misspelt; 3 a balance does not close. With `--json`, stdout holds one JSON document
and nothing else.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module

import click
from confluent_kafka import KafkaException
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from assets.pipeline.errors import BatchError
from local_stack.errors import StackError
from local_stack.kafka.errors import LocalKafkaError
from local_stack.kafka.topics import KafkaNotReady, TopicMismatch
from orchestration.instance import dagster_trouble, is_of_dagster
from orchestration.ledger.errors import LedgerRefused, in_one_line
from orchestration.settings_in_force import SettingsTrouble
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
    SettingsError,
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
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(map(str, problem["loc"])).upper()
            text = problem["msg"].removeprefix("Value error, ")
            print(f"tidemark: TIDEMARK_{name}: {text}", file=sys.stderr)
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
    if isinstance(error, KafkaException):
        return f"Kafka: {error.args[0].str()}"
    if isinstance(error, SettingsError):
        name = re.search(r'field "(\w+)"', str(error))
        variable = f"TIDEMARK_{name[1].upper()}" if name else "a TIDEMARK_ variable"
        return f'{variable} is not JSON: write it as {{"name": "value"}}'
    if isinstance(error, SQLAlchemyError):
        return f"the ledger cannot be used ({in_one_line(error)}); see TIDEMARK_LEDGER_URL"
    if isinstance(error, ImportError):
        return f"{error}: install it, or name a driver that is there in TIDEMARK_LEDGER_URL"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; see TIDEMARK_HOME"
    return str(error)
