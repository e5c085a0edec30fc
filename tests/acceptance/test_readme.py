"""The README says what the program does: its exit codes, its options, its variables."""

from __future__ import annotations

import re

from typer.main import get_command

from jobs.cli.frame import build
from jobs.exits import Exit
from jobs.settings import Settings
from tests.acceptance.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_every_exit_code_is_listed_with_its_meaning():
    for code in Exit:
        assert f"| {code.value} | {code.meaning} |" in README


def test_every_option_that_is_named_exists_and_every_option_of_submit_is_named():
    commands = get_command(build()).commands
    flags = {name: {flag for option in command.params for flag in option.opts} for name, command in commands.items()}
    table = README.split("| Options")[1].split("\n\n")[0]
    named = set(re.findall(r"--[a-z][a-z-]*", table)) - {"--help"}
    everywhere = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))

    assert named == {flag for flag in flags["submit"] if flag.startswith("--")} - {"--output", "--model"}
    known = set().union(*flags.values()) | {"--help", "--index-url", "--readme"}
    assert everywhere <= known


def test_every_variable_that_is_named_is_a_setting():
    named = {name.lower() for name in re.findall(r"NIGHTMILL_([A-Z_]+)", README)}

    assert named <= set(Settings.model_fields)
