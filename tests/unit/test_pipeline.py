"""A chain of scripts that runs again only what has changed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from airserve.pipeline import Step, StepError, fingerprint, run_chain, run_step

STATE = Path("steps")
OUTPUT = Path("out/result.txt")
SCRIPT = """
import json, pathlib, sys
runs = pathlib.Path("runs.txt")
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/result.txt").write_text(pathlib.Path("input.txt").read_text())
print("a line of a library")
print(json.dumps({"text": pathlib.Path("input.txt").read_text(), "runs": len(runs.read_text())}))
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with one script and its input."""
    monkeypatch.chdir(tmp_path)
    Path("work.py").write_text(SCRIPT)
    Path("input.txt").write_text("first")
    return tmp_path


def make_step(script: str = "work.py", *arguments: str, reads: tuple[str, ...] = ("input.txt",)) -> Step:
    paths = (Path(script), *map(Path, reads))
    return Step(name="work", about="work a little", command=(script, *arguments), reads=paths, writes=(OUTPUT,))


def run(step: Step, **options: bool) -> dict[str, object]:
    return run_step(step, STATE, number=1, of=2, **options)


def times_run() -> int:
    return len(Path("runs.txt").read_text())


def assert_nothing_remembered() -> None:
    assert not STATE.exists() or not list(STATE.iterdir())


def test_a_step_runs_and_returns_the_last_line_of_its_script() -> None:
    assert run(make_step()) == {"text": "first", "runs": 1}
    assert OUTPUT.read_text() == "first"


def test_a_step_is_skipped_when_nothing_changed_and_its_result_reused() -> None:
    first = run(make_step())
    assert run(make_step()) == first
    assert times_run() == 1


def test_a_touched_file_of_the_same_content_changes_nothing() -> None:
    run(make_step())
    Path("input.txt").write_text("first")
    Path("work.py").touch()
    run(make_step())
    assert times_run() == 1


def test_a_step_runs_again_when_the_content_of_an_input_changes() -> None:
    run(make_step())
    Path("input.txt").write_text("second")
    assert run(make_step()) == {"text": "second", "runs": 2}


def test_a_step_runs_again_when_its_script_changes() -> None:
    run(make_step())
    Path("work.py").write_text(SCRIPT + "\n# changed\n")
    run(make_step())
    assert times_run() == 2


def test_a_step_runs_again_when_its_command_changes() -> None:
    run(make_step())
    run(make_step("work.py", "--minutes", "4"))
    assert times_run() == 2


def test_arguments_that_read_alike_when_joined_are_different_commands() -> None:
    one, two = make_step("work.py", "--a b"), make_step("work.py", "--a", "b")
    assert fingerprint(one) != fingerprint(two)


def test_a_step_runs_again_when_a_file_is_added_to_a_folder_that_it_reads() -> None:
    Path("data").mkdir()
    step = make_step(reads=("input.txt", "data"))
    run(step)
    Path("data/more.txt").write_text("")
    run(step)
    assert times_run() == 2


def test_an_input_that_appears_empty_is_a_change() -> None:
    step = make_step(reads=("input.txt", "later.txt"))
    before = fingerprint(step)
    Path("later.txt").touch()
    assert fingerprint(step) != before


def test_compiled_files_logs_and_half_written_files_are_no_change() -> None:
    folder = Path("library/__pycache__")
    folder.mkdir(parents=True)
    step = make_step(reads=("library",))
    before = fingerprint(step)
    for path in ("library/__pycache__/a.txt", "library/a.pyc", "library/run.log", "library/part.tmp"):
        Path(path).write_text("something")
    assert fingerprint(step) == before


def test_a_step_runs_again_when_its_output_is_gone() -> None:
    run(make_step())
    OUTPUT.unlink()
    run(make_step())
    assert OUTPUT.exists()
    assert times_run() == 2


def test_a_step_runs_again_when_reuse_is_off() -> None:
    run(make_step())
    run(make_step(), reuse=False)
    assert times_run() == 2


def test_an_input_that_changes_while_the_step_runs_is_seen_the_next_time() -> None:
    Path("work.py").write_text(SCRIPT + "\npathlib.Path('input.txt').write_text('second')\n" + "print('{}')")
    run(make_step())
    assert OUTPUT.read_text() == "first"
    run(make_step())
    assert OUTPUT.read_text() == "second"


def test_a_failing_step_leaves_no_memory() -> None:
    Path("work.py").write_text("import sys; sys.exit(3)")
    with pytest.raises(StepError, match=r"work\.py: ended with status 3"):
        run(make_step())
    assert_nothing_remembered()


def test_a_failure_forgets_what_an_earlier_run_remembered() -> None:
    run(make_step())
    Path("work.py").write_text(SCRIPT.replace("print(json", "raise SystemExit(1)\nprint(json"))
    Path("input.txt").write_text("half done")
    with pytest.raises(StepError):
        run(make_step())
    assert_nothing_remembered()
    Path("work.py").write_text(SCRIPT)
    Path("input.txt").write_text("first")
    assert run(make_step())["text"] == "first"
    assert OUTPUT.read_text() == "first"


def test_a_script_that_does_not_write_what_it_should_is_an_error() -> None:
    Path("work.py").write_text("print('{}')")
    with pytest.raises(StepError, match=r"did not write out/result\.txt"):
        run(make_step())
    assert_nothing_remembered()


@pytest.mark.parametrize(
    "ending", ["", "print('done')", "print('3')", "print('[]')", "print('null')", "print('{\"a\"')"]
)
def test_a_script_whose_last_line_is_no_json_object_is_an_error(ending: str) -> None:
    quiet = SCRIPT.split('print("a line')[0]
    Path("work.py").write_text(quiet + ending)
    with pytest.raises(StepError, match="last line is no JSON object"):
        run(make_step())
    assert_nothing_remembered()


def test_json_must_be_the_last_line() -> None:
    Path("work.py").write_text(SCRIPT + "\nprint('bye')\n")
    with pytest.raises(StepError, match="bye"):
        run(make_step())


def test_a_missing_script_is_an_error() -> None:
    with pytest.raises(StepError, match=r"gone\.py"):
        run(make_step("gone.py"))


def test_what_a_step_says_goes_to_stderr_and_names_its_place_and_its_outputs(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(make_step())
    said = capfd.readouterr()
    assert said.out == ""
    assert "[1/2] work a little" in said.err
    assert str(OUTPUT) in said.err
    run(make_step())
    assert "unchanged, reused" in capfd.readouterr().err


def test_a_step_runs_with_the_python_that_runs_the_chain() -> None:
    Path("work.py").write_text(SCRIPT + "\nprint(json.dumps({'python': sys.executable}))\n")
    assert run(make_step()) == {"python": sys.executable}


def chain() -> list[Step]:
    copy = (
        "import pathlib; pathlib.Path('copy.txt').write_text(pathlib.Path('out/result.txt').read_text()); print('{}')"
    )
    Path("copy.py").write_text(copy)
    reads = (Path("copy.py"), OUTPUT)
    second = Step(name="copy", about="copy it", command=("copy.py",), reads=reads, writes=(Path("copy.txt"),))
    return [make_step(), second]


def test_a_chain_runs_in_order_and_a_change_runs_through_it() -> None:
    assert list(run_chain(chain(), STATE)) == ["work", "copy"]
    Path("input.txt").write_text("second")
    run_chain(chain(), STATE)
    assert Path("copy.txt").read_text() == "second"


def test_a_chain_reuses_the_steps_whose_inputs_came_out_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    run_chain(chain(), STATE)
    capfd.readouterr()
    Path("work.py").write_text(SCRIPT + "\n# changed, with the same output\n")
    run_chain(chain(), STATE)
    said = capfd.readouterr().err
    assert "work a little: unchanged" not in said
    assert "copy it: unchanged, reused" in said


def test_a_chain_stops_at_the_first_failure() -> None:
    steps = chain()
    Path("work.py").write_text("raise SystemExit(1)")
    with pytest.raises(StepError):
        run_chain(steps, STATE)
    assert not Path("copy.txt").exists()


def test_steps_of_different_names_remember_apart() -> None:
    run(make_step())
    run(replace(make_step(), name="other"))
    assert times_run() == 2
    assert {path.name for path in STATE.iterdir()} == {"work.json", "other.json"}
