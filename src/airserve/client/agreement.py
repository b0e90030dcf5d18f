"""Whether a server speaks this client's contract, told from its model configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from airserve import contract
from airserve.contract import TensorSpec
from airserve.errors import ArtifactError


def _expected(kind: str, specs: Sequence[TensorSpec]) -> dict[str, str]:
    return {spec.name: f"{kind} {spec.name} {spec.triton_dtype} {list(spec.dims)}" for spec in specs}


def _served(kind: str, tensors: Iterable[Any]) -> dict[str, str]:
    return {
        tensor.name: f"{kind} {tensor.name} {pb.DataType.Name(tensor.data_type).removeprefix('TYPE_')} "
        f"{list(tensor.dims)}"
        for tensor in tensors
    }


def _differences(kind: str, specs: Sequence[TensorSpec], tensors: Iterable[Any]) -> list[tuple[str, str]]:
    ours = _expected(kind, specs)
    theirs = _served(kind, tensors)
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        (ours.get(name, f"no {kind} {name}"), theirs.get(name, f"no {kind} {name}"))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def check_agreement(url: str, config: Any) -> None:
    """Compare the contract with a server's: version, batch size, and name, dtype and dimensions of every tensor.

    Args:
        url: of the server, for the message.
        config: its `ModelConfig` of the ensemble.

    Raises:
        ArtifactError: naming both sides.
    """
    version = config.parameters["contract_version"].string_value if "contract_version" in config.parameters else ""
    if version != str(contract.CONTRACT_VERSION):
        raise ArtifactError(
            url,
            expected=f"contract version {contract.CONTRACT_VERSION} (this client's)",
            got=version or "none",
            remedy="install the client of the server's release",
        )
    differences = _differences("input", contract.REQUEST, config.input)
    differences += _differences("output", contract.RESPONSE, config.output)
    if config.max_batch_size < contract.MAX_BATCH:
        differences.append((f"batches of {contract.MAX_BATCH}", f"batches of {config.max_batch_size}"))
    if differences:
        raise ArtifactError(
            url,
            expected=f"{'; '.join(ours for ours, _ in differences)} (this client's contract)",
            got=f"{'; '.join(theirs for _, theirs in differences)} (the server's)",
            remedy="write the repository again with this release, or install the client of the server's",
        )
