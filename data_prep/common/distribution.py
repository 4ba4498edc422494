"""This distribution's own packages, and the versions of installed ones.

`data_prep`, `pipeline` and `tuning` are common names: a folder `pipeline/` of the user's, found first on Python's path,
would be imported instead. The three packages of one distribution lie in one folder, whether it is installed, editable
or on PYTHONPATH.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from data_prep.common.errors import UserError

PACKAGES = ("data_prep", "pipeline", "tuning")
HOME = Path(__file__).parents[2]
"""The folder that holds the three packages."""


def check_packages() -> None:
    """Checks the packages that this process imports.

    Raises:
        UserError: one of them is not this distribution's; names its path.
    """
    for name in PACKAGES:
        _check(name, importlib.util.find_spec(name), "Python imports")


def check_worker_packages() -> None:
    """Checks the packages that the Ray workers of this driver will import, before any is started.

    Ray puts the current folder of the driver, and the folder of its script, in front of its workers' path.

    Raises:
        UserError: one of them would not be this distribution's; names its path.
    """
    script = os.path.dirname(os.path.realpath(sys.argv[0]))  # noqa: PTH120 - an entry of sys.path, as Ray compares it
    for folder in (str(Path.cwd()), *([script] if script in sys.path else [])):
        for name in PACKAGES:
            # Without it on the path, the finder of an editable installation has it.
            found = PathFinder.find_spec(name, [folder, *sys.path]) or importlib.util.find_spec(name)
            _check(name, found, "Ray workers would import")


def _check(name: str, found: ModuleSpec | None, who: str) -> None:
    ours = HOME / name
    places = [Path(place) for place in (found.submodule_search_locations or [found.origin or name])] if found else []
    if any(place.exists() and place.samefile(ours) for place in places):
        return
    if not places:
        raise UserError(f"phasecollapse's package {ours} is not on Python's path: install phasecollapse again")
    raise UserError(
        f"{who} {places[0]} instead of phasecollapse's package {ours}: rename the former, or run the command "
        f"from a folder other than {places[0].parent} and keep that off PYTHONPATH"
    )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, in order; packages that are not installed are left out."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
