"""Export a trained ranker: the request network, the two encoders, and what was learned of single items and nodes.

Opset 17; only operators that TensorRT compiles (no Unique, NonZero or scatter). All are stamped with the encoder's
identity, a hash of all weights: rows of one encoder and the engine of another cannot be mixed. Nothing is stamped with
a catalogue or a vocabulary, for nothing here knows one.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from airserve import contract
from airserve.artifacts import ITEM_ENCODER_FILE, LEARNED_FILE, MANIFEST_FILE, NODE_ENCODER_FILE, ONNX_FILE
from airserve.contract import TensorSpec
from airserve.errors import EngineError
from airserve.export.fold import fold_fixed_sizes
from airserve.export.parity import random_inputs
from airserve.files import atomic_path, atomic_stream, write_json
from airserve.model.encoders import ItemEncoder, NodeEncoder
from airserve.model.ranker import Ranker
from airserve.model.request import RequestNetwork
from airserve.table.company import Company
from airserve.table.intents import IntentTable

OPSET = 17
FORBIDDEN_OPERATORS = {"Unique", "NonZero", "Compress", "ScatterElements", "ScatterND", "Loop", "If", "Scan"}
"""What TensorRT does not compile, or only at a price."""
_DTYPES = {
    np.dtype(np.int32): onnx.TensorProto.INT32,
    np.dtype(np.int64): onnx.TensorProto.INT64,
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float16): onnx.TensorProto.FLOAT16,
}


def dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    """Axis number -> name, of the axes of a tensor that vary."""
    return {place: axis for place, axis in enumerate(spec.axes) if axis in contract.PROFILE}


def encoder_identity(ranker: Ranker) -> str:
    """Hash of all that was learned, 16 hex digits."""
    digest = hashlib.sha256(repr((contract.CONTRACT_VERSION, ranker.settings)).encode())
    for name, tensor in sorted(ranker.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sizes_of(ranker: Ranker) -> dict[str, int]:
    """An encoder's own axes: H, E and X."""
    width, size = ranker.settings.sequence.width, int(cast(Tensor, ranker.item_vectors_NE).shape[1])
    return {"H": width, "E": size, "X": width + size}


def export_ranker(
    ranker: Ranker, table: IntentTable, folder: Path, *, company: Company | None = None
) -> dict[str, Any]:
    """Write `ranker.onnx`, the encoders, `learned.npz` and `manifest.json`.

    Args:
        ranker: trained.
        table: that it was trained on; says which learned vector is whose.
        folder: made when missing.
        company: how what is met together counts beside the ranker; None for not at all.

    Returns:
        The manifest.

    Raises:
        EngineError: if a graph does not come out as the contract says.
    """
    if not torch.equal(cast(Tensor, ranker.base.items.vectors_NE), cast(Tensor, ranker.item_vectors_NE)):
        raise EngineError("ranker: its base sees other vectors than its intents; such a one is for a study, not served")
    folder.mkdir(parents=True, exist_ok=True)
    ranker = ranker.eval()
    identity, sizes = encoder_identity(ranker), sizes_of(ranker)
    stamps = {"contract_version": str(contract.CONTRACT_VERSION), "encoder": identity}
    _export_request_network(ranker, sizes, folder / ONNX_FILE, stamps)
    _export_encoders(ranker, sizes, folder, stamps)
    _write_learned(ranker, table, folder / LEARNED_FILE)
    manifest: dict[str, Any] = {
        "contract_version": contract.CONTRACT_VERSION,
        "encoder": identity,
        "sizes": sizes,
        "opset": OPSET,
        "weighing": weighing_of(ranker),
        "company": vars(company or Company()),
        "items_learned": int(cast(Tensor, ranker.base.items.ids.known_N).sum()),
    }
    return write_manifest(folder, manifest)


def weighing_of(ranker: Ranker) -> dict[str, Any]:
    """What the lookup weighs trees with, see `airserve.table.format.Weighing`."""
    with torch.no_grad():
        return {
            "actions": [float(weight) for weight in ranker.tree.action_weights()],
            "decay_per_day": float(ranker.tree.decay_per_day()),
            "norms": [float(norm) for norm in ranker.levels.norms()],
        }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` with the sha256 of every file beside it; returns what was written."""
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (ONNX_FILE, ITEM_ENCODER_FILE, NODE_ENCODER_FILE, LEARNED_FILE)
    }
    whole = {**manifest, "files": files, "onnx_sha256": files[ONNX_FILE]}
    write_json(folder / MANIFEST_FILE, whole)
    return whole


def _trace(
    module: nn.Module,
    inputs: Sequence[Tensor],
    names: tuple[Sequence[str], Sequence[str]],
    axes: Mapping[str, Mapping[int, str]],
) -> onnx.ModelProto:
    traced = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of Python numbers taken from sizes that are fixed here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            traced,  # type: ignore[arg-type]  # the tracer takes a stream too
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names[0]),
            output_names=list(names[1]),
            dynamic_axes=axes,
        )
    return onnx.load_from_string(traced.getvalue())


def _save(model: onnx.ModelProto, path: Path, stamps: Mapping[str, str]) -> None:
    onnx.helper.set_model_props(model, dict(stamps))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))


def _export_request_network(ranker: Ranker, sizes: Mapping[str, int], path: Path, stamps: Mapping[str, str]) -> None:
    example = random_inputs({"B": 2, "C": 6, "R": 9}, sizes, seed=0)
    specs = (*contract.RANKER_INPUTS, *contract.RANKER_OUTPUTS)
    model = _trace(
        RequestNetwork(ranker),
        [torch.from_numpy(example[spec.name]) for spec in contract.RANKER_INPUTS],
        ([spec.name for spec in contract.RANKER_INPUTS], [spec.name for spec in contract.RANKER_OUTPUTS]),
        {spec.name: dynamic_axes(spec) for spec in specs},
    )
    _set_output_shapes(model)
    model = fold_fixed_sizes(model)
    check_graph(model)
    _save(model, path, stamps)


def _export_encoders(ranker: Ranker, sizes: Mapping[str, int], folder: Path, stamps: Mapping[str, str]) -> None:
    ids, vectors = torch.zeros(3, sizes["H"]), torch.zeros(3, sizes["E"])
    levels = torch.zeros(3, dtype=torch.int64)
    for name, module, inputs, names in (
        (
            ITEM_ENCODER_FILE,
            ItemEncoder(ranker),
            (ids, vectors, ids, ids),
            (("ids", "vectors", "main_nodes", "other_nodes"), ("tokens", "targets")),
        ),
        (NODE_ENCODER_FILE, NodeEncoder(ranker), (ids, vectors, levels), (("ids", "vectors", "levels"), ("rows",))),
    ):
        axes = {tensor: {0: "N"} for tensor in (*names[0], *names[1])}
        _save(_trace(module, inputs, names, axes), folder / name, stamps)


def _write_learned(ranker: Ranker, table: IntentTable, path: Path) -> None:
    """What was learned of single items and nodes, by what they are called outside of this catalogue and vocabulary."""

    def array(tensor: Tensor) -> Any:
        return tensor.detach().cpu().numpy()

    ids = ranker.base.items.ids
    known = array(cast(Tensor, ids.known_N))[contract.FIRST_ITEM_ROW :]
    keys = np.asarray(table.arrays.node_keys)[1:]
    order = np.argsort(keys)
    of_nodes = (ranker.node_tokens.ids, ranker.queries.main_nodes, ranker.queries.other_nodes)
    with atomic_stream(path) as stream:
        np.savez(
            stream,
            items=np.asarray(table.items)[known],
            titles=np.asarray(table.arrays.title_keys)[known],
            item_ids=array(ids.weight_NH)[contract.FIRST_ITEM_ROW :][known],
            no_item=array(ids.none_H),
            nodes=keys[order],
            node_ids=np.stack([array(one.weight_NH)[1:][order] for one in of_nodes], axis=1),
            no_node=np.stack([array(one.none_H) for one in of_nodes]),
        )


def _set_output_shapes(model: onnx.ModelProto) -> None:
    """Write the contract's fixed axes into the outputs; tracing leaves some of them open."""
    for spec, value in zip(contract.RANKER_OUTPUTS, model.graph.output, strict=True):
        sizes: list[int | str] = [axis if axis in contract.PROFILE else -1 for axis in spec.axes]
        for place, size in enumerate(spec.dims, start=1):
            if size != -1:
                sizes[place] = size
        value.CopyFrom(onnx.helper.make_tensor_value_info(spec.name, _DTYPES[np.dtype(spec.dtype)], sizes))


def check_graph(model: onnx.ModelProto) -> None:
    """Hold a graph to the contract's names and dtypes and to the operators that TensorRT takes.

    Raises:
        EngineError: naming what differs.
    """
    for specs, values in ((contract.RANKER_INPUTS, model.graph.input), (contract.RANKER_OUTPUTS, model.graph.output)):
        got = [(value.name, value.type.tensor_type.elem_type) for value in values]
        expected = [(spec.name, _DTYPES[np.dtype(spec.dtype)]) for spec in specs]
        if got != expected:
            raise EngineError(f"{ONNX_FILE}: expected tensors {expected}, got {got}; the export is broken")
    forbidden = sorted({node.op_type for node in model.graph.node} & FORBIDDEN_OPERATORS)
    if forbidden:
        raise EngineError(f"{ONNX_FILE}: operators that TensorRT does not compile: {', '.join(forbidden)}")
