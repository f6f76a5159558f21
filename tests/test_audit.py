"""A licence that nobody has looked at stops the audit; an advisory service that does not answer is said, not taken for good news."""

import json
import stat
import sys
from email.message import Message
from types import SimpleNamespace
from unittest import mock

import pytest

from lib.errors import InputError
from tests import audit
from tests.audit import Package, advisories, installed, licence


def test_what_is_installed_for_the_project_is_allowed():
    packages = {package.name: package for package in installed()}
    assert {"torch", "numpy", "av", "pydantic-core", "werkzeug", "websockets", "iniconfig"} <= packages.keys()  # also those of those
    assert not [package for package in packages.values() if package.reason is None]


@pytest.mark.parametrize(("expression", "allowed"), [
    ("MIT", True), ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False), ("GPL-3.0-or-later", False), ("unknown", False), ("", False),
    ("MPL-2.0 AND MIT", True), ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", False), ("AGPL-3.0", False), ("Proprietary", False),
])
def test_licences(expression, allowed):
    assert (Package("a", "1", expression).reason is not None) == allowed


def told(**headers: str | list[str]) -> str:
    message = Message()
    for key, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            message[key.replace("_", "-")] = value
    return licence(SimpleNamespace(metadata=message))


def test_each_way_to_state_a_licence():
    assert told(License_Expression="MIT", License="GPL") == "MIT"
    assert told(Classifier="License :: OSI Approved :: MIT License", License="Copyright ...") == "MIT"
    two = ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]
    assert told(Classifier=two) == "MIT AND GNU General Public License v3 (GPLv3)"
    assert told(License="Apache 2.0") == "Apache-2.0"
    assert told() == "unknown"


def program(path, output: str):
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write('no network\\n')\nprint({output!r})\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_advisories_are_told_and_their_absence_is_not_good_news(tmp_path, capsys):
    packages = [Package("a", "1.0+cpu", "MIT"), Package("b", "2", "MIT")]
    bug = {"id": "PYSEC-1", "fix_versions": ["1.1"]}
    rows = [{"name": "a", "version": "1.0", "vulns": [bug]}, {"name": "b", "skip_reason": "not found"}]
    assert advisories(packages, program(tmp_path / "one", json.dumps({"dependencies": rows}))) == ["a 1.0: PYSEC-1, fixed in 1.1"]
    assert "1 of 2 packages looked up, 1 known" in capsys.readouterr().out
    assert advisories(packages, program(tmp_path / "two", json.dumps({"dependencies": rows[1:]}))) == []
    assert "NOT LOOKED UP: PyPI answered for none" in capsys.readouterr().out
    assert advisories(packages, program(tmp_path / "three", "Traceback")) == []
    assert "NOT LOOKED UP: pip-audit cannot ask PyPI (no network)" in capsys.readouterr().out


def test_a_licence_that_is_not_allowed_is_an_error(capsys):
    with mock.patch.object(audit, "installed", return_value=[Package("a", "1", "GPL-3.0-only")]), mock.patch.object(sys, "argv", ["audit"]), \
            pytest.raises(InputError, match="a 1: licence 'GPL-3.0-only' is not on the list"):
        audit.main()
    assert "NOT ALLOWED" in capsys.readouterr().out
