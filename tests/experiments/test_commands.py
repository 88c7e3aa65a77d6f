"""The command line as a whole: the list of commands, and their help."""

import re
from pathlib import Path

import pytest
from documented_commands import ROOT, problems

from experiments.__main__ import commands, main


def test_the_list_has_every_command_with_a_line(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    files = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert set(commands()) == files
    for name, line in commands().items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", printed, re.MULTILINE)
        assert 5 < len(line) < 60 and line[0].isupper()


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["rnu"]) == 2
    assert "did you mean 'run'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_groups_its_options_and_ends_with_two_real_examples(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert done.value.code == 0
    examples = printed.split("examples:\n")[1].strip().splitlines()
    assert len(examples) == 2
    for example in examples:
        line = example.strip()
        assert line.startswith(f"python -m experiments.{name} ") and not problems(line)
    options = re.findall(r"^options:$(.*?)^\S", printed, re.MULTILINE | re.DOTALL)
    assert "--help" in options[0] and options[0].count("--") == 1, "every option but --help is in a named group"


def test_the_console_script_is_the_list():
    text = Path(ROOT / "pyproject.toml").read_text()
    assert 'locore = "experiments.__main__:main"' in text
