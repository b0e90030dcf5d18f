"""The intent model's parts, on a network of a few thousand weights."""

from pathlib import Path

import pytest
import torch

from airserve.errors import ArtifactError
from airserve.intents.prompt import prefix
from airserve.intents.schema import format_answer, parse_answer
from airserve.lm import export
from airserve.lm.evaluation import accuracy, greedy_answers
from airserve.lm.examples import Example, ExampleWriter, encode
from airserve.lm.network import IntentNetwork, NetworkSettings
from airserve.lm.tokenizer import AnswerCodec, TokenizerSettings, build_tokenizer
from airserve.lm.training import Trainer, TrainingSettings
from airserve.world.ontology import Ontology, load_ontology


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    return load_ontology()


@pytest.fixture(scope="module")
def writer(ontology: Ontology) -> ExampleWriter:
    return ExampleWriter(ontology)


@pytest.fixture(scope="module")
def tokenizer(ontology: Ontology, writer: ExampleWriter):  # type: ignore[no-untyped-def]
    titles = [example.title for example in writer.training(0, -1, 1500)]
    return build_tokenizer(titles, ontology.nodes, TokenizerSettings(pieces=1500))


@pytest.fixture(scope="module")
def codec(tokenizer, ontology: Ontology) -> AnswerCodec:  # type: ignore[no-untyped-def]
    return AnswerCodec(tokenizer, ontology.nodes)


def tiny(tokenizer) -> IntentNetwork:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    sizes = NetworkSettings(
        vocab_size=len(tokenizer), hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate_size=48
    )
    return IntentNetwork(sizes, tokenizer(prefix(), add_special_tokens=False)["input_ids"])


def test_every_answer_reads_back_and_is_short(ontology: Ontology, tokenizer, codec: AnswerCodec) -> None:  # type: ignore[no-untyped-def]
    for leaf in ontology.leaves:
        paths = (leaf.path, ontology.leaves[0].path)
        ids = codec.encode(paths)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text == format_answer(paths)
        assert set(parse_answer(text)) == set(paths)
        assert len(ids) == 10


def test_the_shared_prefix_gives_the_logits_of_a_full_prompt(writer: ExampleWriter, tokenizer, codec) -> None:  # type: ignore[no-untyped-def]
    network = tiny(tokenizer).eval()
    rows = encode(writer.training(0, 0, 6), tokenizer, codec)
    model = export.to_transformers(network, codec.end_id)
    assert export.logit_difference(network, model, [row.query_ids for row in rows]) < 1e-4


def test_padding_changes_no_answer(writer: ExampleWriter, tokenizer, codec: AnswerCodec) -> None:  # type: ignore[no-untyped-def]
    network = tiny(tokenizer).eval()
    examples = writer.training(0, 0, 8)
    together = accuracy(network, examples, tokenizer, codec, batch_rows=8)
    alone = accuracy(network, examples, tokenizer, codec, batch_rows=1)
    assert together == alone


def test_training_learns_and_an_interrupted_run_goes_on(
    writer: ExampleWriter,
    tokenizer,
    codec: AnswerCodec,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    state = tmp_path / "state.pt"
    settings = TrainingSettings(steps=12, batch_rows=16, chunk_rows=64)
    whole = Trainer(tiny(tokenizer), writer, tokenizer, codec, settings)
    result = whole.run()
    assert result.last_loss < 8.0
    first = Trainer(tiny(tokenizer), writer, tokenizer, codec, settings, state)
    batches = first._batches()
    for _ in range(5):
        first._advance(next(batches), first.step / settings.steps)
    first._save(1.0)
    second = Trainer(tiny(tokenizer), writer, tokenizer, codec, settings, state)
    resumed = second.run()
    assert (resumed.steps, resumed.rows) == (result.steps, result.rows)
    torch.testing.assert_close(second.network.state_dict(), whole.network.state_dict(), atol=1e-4, rtol=1e-3)
    foreign = Trainer(tiny(tokenizer), writer, tokenizer, codec, TrainingSettings(steps=13), state)
    with pytest.raises(ArtifactError, match=r"state\.pt"):
        foreign.run()


def test_a_saved_model_loads_and_answers_the_same(writer: ExampleWriter, tokenizer, codec, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    network = tiny(tokenizer).eval()
    probes = [row.query_ids for row in encode(writer.training(0, 0, 2), tokenizer, codec)]
    export.save(network, tokenizer, codec.end_id, probes, tmp_path / "model")
    files = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    loaded = export.load(tmp_path / "model", network.prefix_ids)
    questions = [("view", "general", "a mug")]
    rounded = {name: value.bfloat16().float() for name, value in network.state_dict().items()}
    network.load_state_dict(rounded)
    assert greedy_answers(loaded, questions, tokenizer, codec) == greedy_answers(network, questions, tokenizer, codec)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="train_intent_lm"):
        export.load(tmp_path, [1])


def test_another_ontology_needs_another_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArtifactError, match="no such node"):
        AnswerCodec(tokenizer, ["no such node"])


def test_the_question_of_an_example_ends_the_prompt(writer: ExampleWriter) -> None:
    example: Example = writer.training(0, 0, 1)[0]
    assert example.query_line.endswith("\n")
    assert "\n" not in example.query_line[:-1]
