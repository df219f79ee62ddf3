"""The collector's command line as a person types it, in the test's own process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from cloud_collector.__main__ import cli


def run(*words: object) -> Result:
    """Type a command, and see what it prints and how it ends."""
    return CliRunner().invoke(cli, [str(word) for word in words])
