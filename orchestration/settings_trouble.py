"""What is wrong with the settings, in sentences that name the variable and say what would do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv.parser import Binding, parse_stream
from pydantic import ValidationError
from pydantic_settings import SettingsError

_PREFIX = "TIDEMARK_"
_HOW = "write TIDEMARK_<NAME>=value, and close what is quoted"


class SettingsFileTrouble(SettingsError):
    """The file of the settings is not what it should be; what it says would be passed over."""


def check_settings_file(file: Path) -> None:
    """Raise SettingsFileTrouble unless every line of it can be read, if the file is there."""
    for binding in _bindings(file):
        if binding.error or (binding.key and binding.value is None):
            raise SettingsFileTrouble(f"{file}, line {_line(binding)}: not a setting; {_HOW}")


def misspelt(file: Path, known: Collection[str]) -> list[str]:
    """Lines of the file that set nothing, because no setting has that name, each in a sentence."""
    told = []
    for binding in _bindings(file):
        variable = (binding.key or "").upper()
        name = variable.removeprefix(_PREFIX).lower()
        if variable.startswith(_PREFIX) and name not in known:
            near = [variable_of(one) for one in get_close_matches(name, known, 1)]
            instead = f"is {near[0]} meant?" if near else "`tidemark settings` lists what there is"
            told.append(f"{file}, line {_line(binding)}: {variable} is no setting: {instead}")
    return told


def sentences(error: ValidationError | SettingsError) -> list[str]:
    """What each setting that was refused needs, one line each."""
    if isinstance(error, ValidationError):
        return [_sentence(problem) for problem in error.errors()]
    if isinstance(error, SettingsFileTrouble):
        return [str(error)]
    name = re.search(r'field "(\w+)"', str(error))
    variable = variable_of(name[1]) if name else "a TIDEMARK_ variable"
    return [f'{variable} is not JSON: write it as {{"name": "value"}}']


def variable_of(name: str) -> str:
    """A setting's environment variable."""
    return f"{_PREFIX}{name.upper()}"


def text_of(problem: Mapping[str, Any]) -> str:
    """What is wrong, of one of a ValidationError's."""
    return str(problem["msg"]).removeprefix("Value error, ")


def _sentence(problem: Any) -> str:
    name, *inner = map(str, problem["loc"])
    where = "".join(f", {part}" for part in inner)
    return f"{variable_of(name)}{where}: {text_of(problem)}"


def _bindings(file: Path) -> Iterator[Binding]:
    if not file.is_file():
        return
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsFileTrouble(
            f"{file} is no text in UTF-8, from byte {error.start} on: {_HOW}"
        ) from None
    yield from parse_stream(StringIO(text))


def _line(binding: Binding) -> int:
    """The line it begins at: blank ones before it are counted to it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
