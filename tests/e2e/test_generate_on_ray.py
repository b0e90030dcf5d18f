"""The generation job on a real Ray with the real vLLM and the shipped model: an actor is killed, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from airserve.intents.answers import read_parts
from airserve.intents.engine_vllm import vllm_version

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed"),
]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "offline/intent_lm"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
PROMPTS = 300
CHUNK = 24


def start_job(data, out, *more):
    command = [sys.executable, ROOT / "offline/generate_intents.py", "--data", data, "--out", out, "--model", MODEL]
    command += ["--workers", 1, "--chunk", CHUNK, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, cwd=ROOT, **pipes)


def finish(process):
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err


def wait_for_parts(process, out, count):
    deadline = time.monotonic() + 400
    while len(list((out / "parts").glob("[0-9a-f]*.parquet"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no part in 400 s"
        time.sleep(0.05)


def actors_of(ancestor):
    """Process ids of the Ray actors that descend from a process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue
    below = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return [pid for pid in below if b"MapWorker" in names.get(pid, b"")]


def answers_by_key(out):
    return {row["key"]: (row["raw"], row["paths"]) for row in read_parts(out).to_pylist()}


def test_an_actor_killed_mid_run_loses_no_row_and_the_answers_are_the_local_engines(small_job, tmp_path):
    job, _ = small_job
    process = start_job(job.folder / "data", tmp_path, "--engine", "ray", "--limit", PROMPTS)
    wait_for_parts(process, tmp_path, 2)
    (actor,) = actors_of(process.pid)
    os.kill(actor, signal.SIGKILL)
    report, err = finish(process)
    assert "actors lost and replaced: 1" in err
    assert report["unanswered"] == 0
    assert report["event_kinds"] == PROMPTS
    found, local = answers_by_key(tmp_path), answers_by_key(job.folder / "intents")
    assert len(found) == report["unique_prompts"] == report["new"]
    assert found == {key: local[key] for key in found}


@pytest.mark.slow
def test_ray_and_the_local_engine_write_the_same_bytes(small_job, tmp_path):
    job, _ = small_job
    outputs = []
    for engine in ("ray", "vllm"):
        out = tmp_path / engine
        finish(start_job(job.folder / "data", out, "--engine", engine, "--limit", PROMPTS))
        outputs.append([(out / name).read_bytes() for name in ("answers.parquet", "dead_letters.parquet")])
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_a_prompt_that_kills_its_actor_is_found_and_the_others_are_answered(tmp_path):
    program = f"""
import json, os, sys
from pathlib import Path
from airserve.intents import ray_pool
from airserve.intents.answers import content_keys, model_identity, read_parts
from airserve.intents.engines import Question, Task
from airserve.intents.settings import GenerateSettings

class Watcher:
    done = 0

    def ready(self):
        pass

    def advance(self, prompts):
        self.done += prompts

    def count(self, tokens):
        assert tokens.output > 0

class Dying(ray_pool.Answerer):
    def __call__(self, block):
        if "poison" in block.column("title").to_pylist():
            os._exit(1)
        return super().__call__(block)

ray_pool.Answerer = Dying
titles = ["poison" if at == 42 else f"lamp number {{at}}" for at in range(200)]
questions = tuple(Question(action="view", segment_text="general", title=title) for title in titles)
settings = GenerateSettings(model={str(MODEL)!r}, engine="ray", workers=1)
identity = model_identity(settings.model)
keys = tuple(content_keys(titles, settings, identity))
tasks = iter([Task(keys=keys[at:at + 50], questions=questions[at:at + 50]) for at in range(0, 200, 50)])
out = Path({str(tmp_path)!r})
watcher = Watcher()
result = ray_pool.run_ray(tasks, settings, identity, out, watcher)
answered = set(read_parts(out).column("key").to_pylist())
print(json.dumps([[keys.index(key) for key in result.unanswered], len(answered), watcher.done]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, timeout=580)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[42], 199, 200]


@pytest.mark.slow
def test_an_actor_without_the_same_model_says_so_and_ends_the_job(tmp_path):
    program = f"""
from pathlib import Path
from airserve.intents.engines import Question, Task
from airserve.intents.ray_pool import run_ray
from airserve.intents.settings import GenerateSettings

task = Task(keys=("a",), questions=(Question(action="view", segment_text="general", title="lamp"),))
settings = GenerateSettings(model={str(MODEL)!r}, engine="ray", workers=1)
run_ray(iter([task]), settings, "sha256:other", Path({str(tmp_path)!r}), None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert "EngineError" in done.stderr
    assert "expected sha256:other on every machine" in done.stderr
