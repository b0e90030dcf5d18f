"""What the launcher refuses before it starts anything, and what it passes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airserve import contract
from airserve.artifacts import PLAN_MANIFEST
from airserve.errors import UserError
from airserve.triton.server import ServerSettings, ServerTls, TraceSettings, TritonServer


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository" / contract.ENSEMBLE_MODEL).mkdir(parents=True)
    return tmp_path / "repository"


def command(settings: ServerSettings) -> list[str]:
    return TritonServer(settings).command(Path("backends"), Path("site"))


@pytest.mark.parametrize("port", [0, -1, 65536])
@pytest.mark.parametrize("name", ["grpc_port", "http_port", "metrics_port"])
def test_impossible_ports_are_refused_by_name(repository: Path, name: str, port: int) -> None:
    ports: dict[str, Any] = {name: port}
    with pytest.raises(UserError, match=f"{name}: expected 1 to 65535, got {port}"):
        ServerSettings(repository=repository, **ports)


def test_one_port_for_two_things_is_refused(repository: Path) -> None:
    with pytest.raises(UserError, match="three different ones"):
        ServerSettings(repository=repository, grpc_port=8000, http_port=8000)


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"write_repository\.py"):
        ServerSettings(repository=tmp_path)


def test_certificates_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    present = tmp_path / "present.pem"
    present.touch()
    with pytest.raises(UserError, match="certificate: expected a PEM file"):
        ServerTls(certificate=tmp_path / "absent.pem", private_key=present)
    with pytest.raises(UserError, match="client_authorities"):
        ServerTls(certificate=present, private_key=present, client_authorities=tmp_path / "absent.pem")


def test_tls_and_mutual_tls_reach_the_command_line(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "any.pem"
    file.touch()
    plain = command(ServerSettings(repository=repository))
    assert not any(argument.startswith("--grpc-use-ssl") for argument in plain)
    one_way = command(ServerSettings(repository=repository, tls=ServerTls(certificate=file, private_key=file)))
    assert "--grpc-use-ssl=1" in one_way
    assert not any(argument.startswith("--grpc-use-ssl-mutual") for argument in one_way)
    both = ServerTls(certificate=file, private_key=file, client_authorities=file)
    assert "--grpc-use-ssl-mutual=1" in command(ServerSettings(repository=repository, tls=both))


def test_traces_go_to_a_collector_or_to_a_file(repository: Path, tmp_path: Path) -> None:
    to_url = command(ServerSettings(repository=repository, trace=TraceSettings(target="http://host:4318/v1/traces")))
    assert "--trace-config=mode=opentelemetry" in to_url
    to_file = command(ServerSettings(repository=repository, trace=TraceSettings(target="trace.json", one_in=5)))
    assert "--trace-config=mode=triton" in to_file
    assert "--trace-config=rate=5" in to_file
    with pytest.raises(UserError, match="one_in"):
        TraceSettings(target="x", one_in=0)


def test_another_triton_is_run_with_the_same_arguments_and_must_exist(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tritonserver: expected the server's program"):
        ServerSettings(repository=repository, tritonserver=tmp_path / "none")
    program = tmp_path / "tritonserver"
    program.touch()
    arguments = TritonServer(ServerSettings(repository=repository, tritonserver=program)).arguments()
    assert f"--model-repository={repository.resolve()}" in arguments
    assert not any(argument.startswith("--backend-directory") for argument in arguments)


def test_a_version_compatible_plan_is_served_as_one(repository: Path) -> None:
    version = repository / contract.RANKER_MODEL / "1"
    version.mkdir(parents=True)
    (version / PLAN_MANIFEST).write_text(json.dumps({"version_compatible": True}))
    arguments = TritonServer(ServerSettings(repository=repository)).arguments()
    assert "--backend-config=tensorrt,version-compatible=true" in arguments
