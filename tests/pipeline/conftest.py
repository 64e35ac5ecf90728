"""Stacks with files to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.ledger.projects import create_project
from tests.imports import Scene
from tests.stack import Stack

NewStack = Callable[..., Stack]


@pytest.fixture
def new_scene(new_stack: NewStack, tmp_path: Path) -> Callable[..., Scene]:
    """Makes scenes with project 1."""

    def make(**values: object) -> Scene:
        stack = new_stack(**values).make_topics()
        create_project(stack.ledger, "shop")
        return Scene(stack, tmp_path)

    return make


@pytest.fixture
def scene(new_scene: Callable[..., Scene]) -> Scene:
    """One whose batches have ten rows."""
    return new_scene(batch_max_records=10)
