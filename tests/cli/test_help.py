"""The command line explains itself."""

import pytest

import fastdiff as package


def test_help_names_every_command(fastdiff):
    outcome = fastdiff("--help")
    assert outcome.status == 0
    for command in ("sample", "train", "convert", "doctor"):
        assert command in outcome.out


@pytest.mark.parametrize("command", ["sample", "train", "convert", "doctor"])
def test_every_option_says_what_it_does(fastdiff, command):
    outcome = fastdiff(command, "--help")
    assert outcome.status == 0 and "Traceback" not in outcome.err
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_version(fastdiff):
    assert package.__version__ in fastdiff("--version").out


def test_an_unknown_command_is_refused(fastdiff):
    outcome = fastdiff("smaple")
    assert outcome.status == 2 and "smaple" in outcome.err
