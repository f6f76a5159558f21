"""What ruff's security rules (pyproject.toml) do not see: in no file of the product is there a call that runs what it reads."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for place in ("*.py", "lib/**/*.py", "preprocess/**/*.py", "benchmarks/**/*.py") for path in ROOT.glob(place))
CONFIGS = sorted(path for place in ("config/**/*.yaml", "Makefile", "environment.yaml", ".ci/*") for path in ROOT.glob(place))
# Who may do what others may not, and why.
TORCHSCRIPT = {"preprocess/matting.py"}  # after check_program
UNPICKLER = {"lib/face_models/pickles.py"}  # whose find_class knows a few names
ADDRESS = {"lib/avatars/gaussian_head_avatar/viewer/server.py"}  # of the viewer itself
UNPICKLING = ("pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.expr) -> str:
    """a.b.c, or '' for what is no such name."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def faults(text: str, name: str) -> Iterator[str]:
    """Lines of a file that do what they may not."""
    for node in ast.walk(ast.parse(text)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called, given = dotted(node.func), {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            if called == "torch.load" and given.get("weights_only") is not True:
                yield f"{where}: torch.load without weights_only=True"
            if called == "torch.jit.load" and name not in TORCHSCRIPT:
                yield f"{where}: torch.jit.load"
            if given.get("allow_pickle", False) is not False:
                yield f"{where}: allow_pickle"
            if called.split(".")[0] in UNPICKLING and called.split(".")[-1] in ("load", "loads", "Unpickler", "open"):
                yield f"{where}: {called}"
            if called == "av.open" and not any(getattr(argument, "value", None) == "w" for argument in node.args[1:]) and "options" not in given:
                yield f"{where}: av.open of a file that may be a list of others"
            if given.get("shell", False) is not False or called in ("os.system", "os.popen", "eval", "exec", "tempfile.mktemp"):
                yield f"{where}: {called}"
            if given.get("verify", True) is not True or called == "ssl._create_unverified_context":
                yield f"{where}: an unverified connection"
        if isinstance(node, ast.ClassDef) and any(dotted(base).endswith("Unpickler") for base in node.bases) and name not in UNPICKLER:
            yield f"{where}: an Unpickler"
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLING and {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}:
            yield f"{where}: from {node.module} import"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\b(http|ftp)://", node.value) and name not in ADDRESS:
            yield f"{where}: an address without TLS"


def test_the_product_runs_nothing_that_it_reads():
    assert len(FILES) > 200
    assert [fault for path in FILES for fault in faults(path.read_text(), name_of(path))] == []
    assert not [path for path in CONFIGS if re.search(r"\b(http|ftp)://|--trusted-host|curl .*-k\b", path.read_text())]


@pytest.mark.parametrize("line", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)", "torch.jit.load(p)", "np.load(p, allow_pickle=True)",
    "np.load(p, allow_pickle=flag)", "pickle.load(f)", "pickle.loads(b)", "pickle.Unpickler(f).load()", "from pickle import loads", "av.open(p)",
    "subprocess.run(c, shell=True)", "os.system(c)", "os.popen(c)", "eval(c)", "exec(c)", "tempfile.mktemp()", "requests.get(u, verify=False)",
    "class Reader(pickle.Unpickler): pass", "u = 'http://example.org/weights.pth'", "joblib.load(p)", "marshal.loads(b)",
])
def test_such_lines_are_seen(line):
    assert list(faults(line, "lib/any.py"))


def test_exceptions_from_the_rules_of_ruff_are_few():
    """Each says why where it stands."""
    found = {}
    for path in FILES:
        for line in path.read_text().splitlines():
            if match := re.search(r"# noqa: ?(?P<rules>[A-Z0-9, ]*\bS\d+[A-Z0-9, ]*)(?P<why>.*)", line):
                assert match["why"].startswith("("), f"{name_of(path)}: {line.strip()}"
                found[name_of(path)] = found.get(name_of(path), 0) + 1
    assert found == {"lib/avatars/gaussian_head_avatar/viewer/server.py": 1, "preprocess/lpips_weights.py": 2}


# --- pins -------------------------------------------------------------------------------------------------------------

def test_every_pinned_package_has_hashes():
    """And torch is not among them: its build is the user's choice."""
    for file, least in (("constraints.txt", 50), ("constraints_interpreter.txt", 1)):
        entries = re.split(r"\n(?=[A-Za-z])", re.sub(r"(?m)^#.*\n", "", (ROOT / file).read_text()).strip())
        assert len(entries) >= least
        for entry in entries:
            head, *hashes = [line.strip().removesuffix("\\").strip() for line in entry.splitlines()]
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+( ; .*)?", head), head
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), head
            assert not head.startswith(("torch==", "nvidia"))
