"""Licences and known advisories of everything that is installed for this project.

    python -m tests.audit [PIP_AUDIT]       PIP_AUDIT: the program of that name (`make audit` installs it apart)

Exit code 2: a licence that is not on the list below, or a package with a known advisory. An advisory service that cannot be asked is told and
is no error.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from lib.errors import InputError
from lib.training.runtime import run

PROJECT, EXTRAS = "gaussian-head-avatars", ("dev", "viewer", "interpreter")
PERMISSIVE = "keep the notice"
ALLOWED = dict.fromkeys((
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "MIT", "MIT-CMU", "PSF-2.0",
    "Zlib"), PERMISSIVE)
ALLOWED |= {"MPL-2.0": "copyleft of single files, which are used as they are"}
# What packages write where no SPDX expression is.
SPELLED = {
    "3-Clause BSD License": "BSD-3-Clause", "Apache 2.0": "Apache-2.0", "Apache Software License": "Apache-2.0", "BSD License": "BSD",
    "MIT License": "MIT", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0"}
# Wheels that hold more than their metadata says.
INSIDE = {
    "av": "its wheel holds FFmpeg with x264 (GPL-2.0-or-later): whoever passes the wheel on does so under the GPL",
    "numpy": "its wheel holds OpenBLAS with libgfortran (GPL-3.0 with GCC exception)",
    "opencv-python-headless": "its wheel holds FFmpeg (LGPL-2.1-or-later)",
    "scipy": "its wheel holds OpenBLAS with libgfortran (GPL-3.0 with GCC exception)"}
VENDOR = re.compile(r"nvidia-|cuda-")  # come with builds of torch for CUDA, under NVIDIA's licence, which allows to use them


@dataclass(frozen=True)
class Package:
    """What is installed."""

    name: str
    version: str
    licence: str

    @property
    def reason(self) -> str | None:
        """Why it may be used; None where nothing says so."""
        if VENDOR.match(self.name):
            return "NVIDIA's licence of its runtime; comes with torch"
        parts = re.split(r" (AND|OR) ", self.licence.replace("(", "").replace(")", ""))
        names = parts[0::2]
        allowed = [name for name in names if name in ALLOWED]
        enough = bool(allowed) if set(parts[1::2]) == {"OR"} else len(allowed) == len(names)
        return "; ".join(dict.fromkeys(ALLOWED[name] for name in allowed)) if enough else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pip_audit", nargs="?", type=Path, metavar="PIP_AUDIT", help="asks for advisories with this program")
    options = parser.parse_args()
    packages = installed()
    width = max(len(package.name) for package in packages)
    for package in packages:
        print(f"{package.name:<{width}}  {package.version:<18}  {package.licence}: {package.reason or 'NOT ALLOWED'}")
        if package.name in INSIDE:
            print(f"{'':<{width}}  {INSIDE[package.name]}")
    problems = [f"{package.name} {package.version}: licence '{package.licence}' is not on the list of tests/audit.py"
                for package in packages if package.reason is None]
    print(f"licences: {len(packages)} packages, {len(problems)} not allowed")
    if options.pip_audit is not None:
        problems += advisories(packages, options.pip_audit)
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problems", *problems]))


def installed() -> list[Package]:
    """The project's requirements and theirs, as far as they are installed here. Raises InputError without the project."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(PROJECT, EXTRAS)]
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name == PROJECT:
                raise InputError(f"{PROJECT} is not installed here; `make setup` does that") from error
            continue  # an extra that this machine has no need of
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found and not extras:
            continue
        found[key] = distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((requirement.name, tuple(requirement.extras)))
    del found[PROJECT]
    return [Package(name, distribution.version, licence(distribution)) for name, distribution in sorted(found.items())]


def licence(distribution: importlib.metadata.Distribution) -> str:
    """As an SPDX expression, if the metadata say one in any of the three ways there are; else what they say, or 'unknown'."""
    data = distribution.metadata
    if data.get("License-Expression"):
        return str(data["License-Expression"])
    classes = [line.rpartition(" :: ")[2] for line in data.get_all("Classifier") or () if line.startswith("License :: ")]
    stated = classes or [(data.get("License") or "").strip().partition("\n")[0] or "unknown"]
    return " AND ".join(dict.fromkeys(SPELLED.get(name, name) for name in stated))  # where there are several, all count


def advisories(packages: list[Package], pip_audit: Path) -> list[str]:
    """A line for each known advisory. Says how many packages could be looked up."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "installed.txt"
        wanted.write_text("".join(f"{package.name}=={package.version.partition('+')[0]}\n" for package in packages))
        command = [str(pip_audit), "-r", str(wanted), "--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
        result = subprocess.run(command, capture_output=True, text=True)
    try:
        rows = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        words = result.stderr.strip().splitlines() or ["it said nothing"]
        print(f"advisories: NOT LOOKED UP: pip-audit cannot ask PyPI ({words[-1]})")
        return []
    known = [row for row in rows if "skip_reason" not in row]
    if not known:
        print(f"advisories: NOT LOOKED UP: PyPI answered for none of {len(rows)} packages; is only a mirror of its files reachable?")
        return []
    found = [f"{row['name']} {row['version']}: {bug['id']}, fixed in {', '.join(bug['fix_versions']) or 'no version'}"
             for row in known for bug in row["vulns"]]
    print(f"advisories: {len(known)} of {len(rows)} packages looked up, {len(found)} known")
    return found


if __name__ == "__main__":
    run(main)
