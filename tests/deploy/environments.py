"""Virtual environments of some requirements and nothing else, made of what is installed here, without a network."""

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

INSTALLED = Path(sysconfig.get_path("purelib"))


def closure(requirements):
    """The names of all distributions that `requirements`, lines of a requirements file, ask for in the end."""
    waiting, found = [Requirement(line) for line in requirements], {}
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
        if key in found:
            continue
        installed = distribution(requirement.name)
        assert requirement.specifier.contains(installed.version, prereleases=True), requirement
        found[key] = installed
        for line in installed.requires or ():
            wanted = Requirement(line)
            extras = requirement.extras or {""}
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(wanted)
    return list(found.values())


def environment_of(folder, requirements):
    """Makes a virtual environment at `folder` with links to what `requirements` ask for; returns its Python."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    names = {Path(file).parts[0] for each in closure(requirements) for file in each.files or ()}
    for name in sorted(names - {"..", "__pycache__"}):
        (site / name).symlink_to(INSTALLED / name)
    return folder / "bin" / "python"


def run(python, *arguments, cwd):
    """Runs a Python with no path but its own; returns the finished process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean, check=False)


def install_wheel(python, wheel):
    """Installs a wheel alone, with the pip of this environment."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
