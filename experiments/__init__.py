"""The command line: `python -m experiments` lists the commands."""
