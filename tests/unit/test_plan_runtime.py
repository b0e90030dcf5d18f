"""A TensorRT plan is served only where it was built for, with what to do otherwise."""

from __future__ import annotations

import pytest

from airserve.errors import ArtifactError
from airserve.export.runtime import UNKNOWN, check_runtime

H200 = {"tensorrt": "11.0.0", "cuda": "13.4", "gpu": "NVIDIA H200, 580.1, 9.0"}


def test_the_same_machine_may_serve_its_plan() -> None:
    check_runtime(H200, H200)
    check_runtime({**H200, "tensorrt": "11.0.0.34"}, {**H200, "cuda": "13.5", "gpu": "NVIDIA H100, 570.0, 9.0"})


@pytest.mark.parametrize(
    ("key", "here", "flag"),
    [
        ("tensorrt", "11.1.0", "--version-compatible"),
        ("tensorrt", "10.14.1", "compile_engine"),
        ("cuda", "12.9", "compile_engine"),
        ("gpu", "NVIDIA L4, 580.1, 8.9", "--hardware-compatible"),
    ],
)
def test_another_release_or_gpu_is_refused_with_what_to_do(key: str, here: str, flag: str) -> None:
    with pytest.raises(ArtifactError, match=f"{key} .*{here}.*{flag}"):
        check_runtime(H200, {**H200, key: here})


def test_a_compatible_plan_may_be_served_by_later_releases_and_other_gpus() -> None:
    about = {**H200, "version_compatible": True, "hardware_compatible": True}
    check_runtime(about, {**H200, "tensorrt": "11.2.0", "gpu": "NVIDIA L4, 580.1, 8.9"})
    with pytest.raises(ArtifactError, match="tensorrt"):
        check_runtime(about, {**H200, "tensorrt": "10.14.1"})


def test_what_is_not_known_is_said_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    check_runtime(H200, {"tensorrt": UNKNOWN, "cuda": UNKNOWN, "gpu": UNKNOWN})
    assert caplog.text.count("not checked") == 3
