"""The command line as tests call it."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from invdiff.cli import app

QUICK = ["--steps", "3", "--samples", "2"]


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])
