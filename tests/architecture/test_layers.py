"""The layout is the architecture: who may import whom, where names stand, and how long things may be."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from airserve import artifacts, contract
from airserve.triton.config_names import FUSED_SOURCE

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
LIBRARY = SOURCE / "airserve"
ROLES = ("offline", "build", "clients", "perf")

MODULE_LINES = 400
FUNCTION_LINES = 60
SCRIPT_LINES = 150

CONTRACT_NAMES = {
    contract.ENSEMBLE_MODEL,
    contract.LOOKUP_MODEL,
    contract.RANKER_MODEL,
    *(
        spec.name
        for specs in (
            contract.REQUEST,
            contract.RESPONSE,
            contract.LOOKUP_OUTPUTS,
            contract.RANKER_INPUTS,
            contract.RANKER_OUTPUTS,
        )
        for spec in specs
    ),
}

COLUMNS = {contract.USER_SEGMENT.name}
"""Tensors whose name is also a column of a Parquet file in docs/ARCHITECTURE.md."""
OFFLINE = ("src/airserve/data/", "src/airserve/intents/", "src/airserve/table/", "src/airserve/training/",
           "src/airserve/world/", "src/airserve/showcase.py", "offline/")  # fmt: skip
"""Where Parquet files are read and written, and a string may be such a column."""
ONLINE = (
    "src/airserve/table/arrays.py",
    "src/airserve/table/format.py",
    "src/airserve/table/lookup.py",
    "src/airserve/table/tree.py",
)
"""Modules of those folders that run in the server: tensors only, no columns."""

NOT_A_TENSOR = {
    ("src/airserve/main_job.py", contract.COVERAGE.name): "key of the summary",
    ("clients/ask_users.py", contract.COVERAGE.name): "key of the script's result, read by the summary",
    ("src/airserve/showcase.py", contract.COVERAGE.name): "key of a sample answer",
    ("src/airserve/showcase.py", contract.EVIDENCE.name): "key of a sample answer",
    ("src/airserve/export/serving.py", contract.TABLE_VERSION.name): "key of the script's result",
    ("src/airserve/table/build.py", contract.TABLE_VERSION.name): "key of a table's manifest and report",
    ("src/airserve/table/report.py", contract.TABLE_VERSION.name): "key of a table's manifest and report",
    ("src/airserve/training/checkpoint.py", contract.TABLE_VERSION.name): "key of a table's manifest",
    ("src/airserve/training/measure.py", contract.ENSEMBLE_MODEL): "the method's name among those compared",
}
"""(file, string) that names something else by the same word, and what."""

FILE_NAMES = {
    value for name, value in vars(artifacts).items() if name.isupper() and isinstance(value, str) and "." in value
}
"""Names of artifacts.py, those of files; a folder's name is also an everyday word."""

SWAPS_FOLDERS = frozenset({"src/airserve/table/publish.py", "src/airserve/triton/repository.py"})
"""Files that rename on their own: they swap whole folders, which files.py does not do. Never to grow."""

NUMPY_ONLY = frozenset({"numpy"})
IN_TRITON = frozenset({"numpy", "onnxruntime", "triton_python_backend_utils"})
"""What the server's environment has."""

# Written so that this file does not break its own rule.
MACHINE_FOLDERS = ("home", "root", "work", "opt", "Users", "mnt", "workspace")
ABSOLUTE_PATH = re.compile(rf"""(?<![\w.$}})\]/-])/(?:{"|".join(MACHINE_FOLDERS)})/[\w.-]+""")
TEXT_SUFFIXES = {".py", ".toml", ".md", ".sh", ".txt", ".lock", ".pbtxt", ".json", ".yml", ".yaml", ".cfg", ".pth", ""}
TRACKED = ("src", *ROLES, "tests", "requirements", "model_repository", ".ci", "Makefile", "pyproject.toml")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def scripts() -> list[Path]:
    return sorted(path for role in ROLES for path in (ROOT / role).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions; `from a import b` gives `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(SOURCE).parts[: -node.level]
                base = ".".join((*package, *base.split("."))).rstrip(".")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def top_level(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def module_file(name: str) -> Path | None:
    """The file of a dotted name of the library; None for a name inside a module."""
    path = SOURCE.joinpath(*name.split("."))
    if (path / "__init__.py").exists():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def loaded_with(start: Path) -> set[Path]:
    """Files of the library that importing a file loads, packages' `__init__.py` too, imports in functions too."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "airserve":
                continue
            files = (module_file(".".join(parts[:length])) for length in range(1, len(parts) + 1))
            waiting += [file for file in files if file is not None]
    return found


def foreign_imports(path: Path) -> set[str]:
    return top_level(imported(path)) - set(sys.stdlib_module_names) - {"airserve"}


@pytest.mark.parametrize("script", scripts(), ids=relative)
def test_a_role_script_imports_no_other_role_script(script: Path) -> None:
    neighbours = {path.stem for path in scripts()} | set(ROLES)
    assert not top_level(imported(script)) & neighbours


def test_the_library_never_imports_a_role_folder() -> None:
    scripts_and_folders = {path.stem for path in scripts()} | set(ROLES)
    offenders = {
        relative(path): sorted(found)
        for path in modules()
        if (found := top_level(imported(path)) & scripts_and_folders)
    }
    assert not offenders


def test_role_folders_are_no_packages() -> None:
    assert not [relative(path) for path in scripts() if path.name == "__init__.py"]


def test_the_contract_needs_numpy_and_the_errors_only() -> None:
    path = LIBRARY / "contract.py"
    assert foreign_imports(path) <= NUMPY_ONLY
    assert {file.stem for file in loaded_with(path)} == {"__init__", "contract", "errors"}


@pytest.mark.parametrize("name", ["arrays", "format", "lookup", "tree"])
def test_the_lookup_needs_numpy_and_the_contract_only(name: str) -> None:
    path = LIBRARY / "table" / f"{name}.py"
    loaded = loaded_with(path)
    assert {relative(file) for file in loaded} <= {
        *(f"src/airserve/{part}.py" for part in ("__init__", "artifacts", "contract", "errors", "table/__init__")),
        *(f"src/airserve/table/{part}.py" for part in ("arrays", "format", "lookup", "tree")),
    }
    assert set().union(*map(foreign_imports, loaded)) <= NUMPY_ONLY


def test_tritons_python_models_need_only_what_the_servers_environment_has() -> None:
    models = sorted((LIBRARY / "triton" / "python_models").glob("*.py"))
    assert {path.stem for path in models} == {"__init__", FUSED_SOURCE, contract.LOOKUP_MODEL, contract.RANKER_MODEL}
    needed = {
        relative(file): sorted(foreign)
        for model in models
        for file in loaded_with(model)
        if (foreign := foreign_imports(file) - IN_TRITON)
    }
    assert not needed


def test_rows_are_encoded_without_torch() -> None:
    foreign = set().union(*map(foreign_imports, loaded_with(LIBRARY / "table" / "encode.py")))
    assert "onnxruntime" in foreign
    assert foreign <= {"numpy", "onnxruntime", "scipy"}


def test_file_names_and_writes_need_the_standard_library_only() -> None:
    for name in ("artifacts", "files"):
        loaded = loaded_with(LIBRARY / f"{name}.py")
        assert {file.stem for file in loaded} <= {"__init__", name}
        assert not set().union(*map(foreign_imports, loaded))


def test_the_client_needs_no_training_and_no_server() -> None:
    folders = {relative(file).split("/")[2] for file in loaded_with(LIBRARY / "client" / "__init__.py")}
    assert folders <= {"__init__.py", "artifacts.py", "client", "contract.py", "errors.py", "files.py", "ids.py"}


def docstrings(tree: ast.Module) -> set[int]:
    """`id` of the nodes that are docstrings."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }


def contract_literals(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string constant that is exactly a tensor's or a served model's name."""
    tree = tree_of(path)
    about = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in CONTRACT_NAMES and id(node) not in about:
            yield node.lineno, str(node.value)


def may_be_a_column(name: str, text: str) -> bool:
    return text in COLUMNS and name.startswith(OFFLINE) and name not in ONLINE


def test_names_of_tensors_and_models_stand_in_the_contract_only() -> None:
    offenders = [
        f"{relative(path)}:{line}: {text!r}; take it from airserve.contract"
        for path in (*modules(), *scripts())
        if path != LIBRARY / "contract.py"
        for line, text in contract_literals(path)
        if (relative(path), text) not in NOT_A_TENSOR and not may_be_a_column(relative(path), text)
    ]
    assert not offenders, "\n".join(offenders)


def test_the_rule_on_names_sees_literals_and_spares_docstrings(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    name = contract.SCORES.name
    source.write_text(f'"""{name}"""\n\ndef f(answer):\n    "{name}"\n    return answer["{name}"], "{name} of it"\n')
    assert list(contract_literals(source)) == [(5, name)]


def test_no_exception_to_the_rule_on_names_has_outlived_its_reason() -> None:
    found = {(relative(path), text) for path in (*modules(), *scripts()) for _, text in contract_literals(path)}
    assert not [exception for exception in NOT_A_TENSOR if exception not in found]


def file_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string constant that is, or as a path ends in, a file's name of artifacts.py."""
    tree = tree_of(path)
    about = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in about:
            head, _, name = node.value.rpartition("/")
            if name in FILE_NAMES and not re.search(r"\s", head):
                yield node.lineno, node.value


def renames(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each call that gives a file a name: `os.replace`, `os.rename`, `Path.replace` and the like.

    `Path.replace` is told from those of strings, dates and dataclasses by its one argument.
    """
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module in {"os", "shutil"}:
            names = {alias.name for alias in node.names}
            if names & {"replace", "rename", "renames", "move"}:
                yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, called = ast.unparse(node.func.value), node.func.attr
        one_argument = len(node.args) == 1 and not node.keywords
        if (
            (owner == "os" and called in {"replace", "rename", "renames"})
            or (owner == "shutil" and called == "move")
            or called == "rename"
            or (called == "replace" and one_argument)
        ):
            yield node.lineno, ast.unparse(node)


def test_only_files_py_gives_a_written_file_its_name() -> None:
    found = {
        relative(path): [f"{relative(path)}:{line}: {text}; use airserve.files" for line, text in renames(path)]
        for path in (*modules(), *scripts())
        if path != LIBRARY / "files.py"
    }
    assert not [line for name, lines in found.items() if name not in SWAPS_FOLDERS for line in lines]
    assert {name for name in SWAPS_FOLDERS if not found.get(name)} == set(), "take these off the list"


def test_file_names_stand_in_artifacts_only() -> None:
    found = [
        f"{relative(path)}:{line}: {text!r}; use airserve.artifacts"
        for path in (*modules(), *scripts())
        if path != LIBRARY / "artifacts.py"
        for line, text in file_names(path)
    ]
    assert not found, "\n".join(found)


def test_every_name_of_artifacts_says_what_it_is() -> None:
    body = tree_of(LIBRARY / "artifacts.py").body
    bare = [
        ast.unparse(node)
        for node, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.Assign) and not isinstance(after, ast.Expr)
    ]
    assert not bare


def test_the_rules_on_files_see_what_they_are_for(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    name = artifacts.ITEMS_FILE
    source.write_text(
        f'"""{name}"""\nimport os\n'
        "os.replace(a, b)\npart.replace(path)\npart.rename(path)\nfrom os import rename\n"
        "'text'.replace('a', 'b')\nreplace(settings, a=1)\ndate.replace(day=1)\n"
        f"x = folder / '{name}', 'data/{name}', f'{{folder}}/{name}', 'write {name}, please', 'see {name}'\n"
    )
    assert [line for line, _ in renames(source)] == [6, 3, 4, 5]
    assert [line for line, _ in file_names(source)] == [10, 10, 10]


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function, from `def` to its last line."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{relative(path)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_module_of_the_library_says_what_it_is_for() -> None:
    assert not [relative(path) for path in modules() if not ast.get_docstring(tree_of(path))]


def test_every_script_says_what_it_does() -> None:
    assert not [relative(path) for path in scripts() if not ast.get_docstring(tree_of(path))]


def test_every_package_of_the_library_has_an_init_file() -> None:
    folders = {path.parent for path in modules()}
    assert not [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()]


@pytest.mark.parametrize(
    ("files", "most"), [(modules, MODULE_LINES), (scripts, SCRIPT_LINES)], ids=["modules", "scripts"]
)
def test_no_file_is_too_long(files: object, most: int) -> None:
    assert callable(files)
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files()}
    assert not {name: length for name, length in lengths.items() if length > most}


def test_no_function_is_too_long() -> None:
    lengths = dict(found for path in (*modules(), *scripts()) for found in function_lengths(path))
    assert not {name: length for name, length in lengths.items() if length > FUNCTION_LINES}


def test_no_module_is_named_after_nothing() -> None:
    assert not [
        relative(path) for path in (*modules(), *scripts()) if path.stem in {"utils", "helpers", "common", "misc"}
    ]


def tracked_texts() -> Iterator[Path]:
    for name in TRACKED:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path] * path.exists():
            if file.is_file() and "__pycache__" not in file.parts and file.suffix in TEXT_SUFFIXES:
                yield file


def test_no_source_names_a_folder_of_one_machine() -> None:
    offenders = [
        f"{relative(path)}:{number}: {found.group()}"
        for path in tracked_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if (found := ABSOLUTE_PATH.search(line))
    ]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("folder", MACHINE_FOLDERS)
def test_the_rule_on_paths_sees_absolute_ones_only(folder: str) -> None:
    for text in (f"'/{folder}/x'", f"in /{folder}/somebody/models", f"--data=/{folder}/x"):
        assert ABSOLUTE_PATH.search(text)
    for text in (f"https://example.com/{folder}/x", f"artifacts/{folder}/x", f"{{base}}/{folder}/x", f"net/{folder}/x"):
        assert not ABSOLUTE_PATH.search(text)
