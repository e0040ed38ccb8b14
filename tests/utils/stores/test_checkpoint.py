"""Checkpoints: the newest whole one is found, and training goes on from it bit for bit."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from transformers import AutoTokenizer

from data.tokenizing import load_tokenizer, write_token_store
from model.reading import HeadLayer, Reading, find_reading
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import load_encoder, tiny_bert, tiny_roberta
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, save_random_checkpoint, save_tiny_checkpoint
from utils.batching import PackedTokens, Sequences, pack
from utils.runtime.errors import InputError
from utils.stores.checkpoint import (
    CHECKED,
    TrainerState,
    checkpoint_step,
    checkpoint_to_mine,
    fingerprint_of_weights,
    load_training_state,
    newest_checkpoint,
    newest_or_initial,
    read_trainer_state,
    remove_old_checkpoints,
    save_checkpoint,
)
from utils.stores.episode import write_result
from utils.stores.token_store import TokenStore


@pytest.fixture
def save(tmp_path):
    encoder = tiny_bert()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    optimizer = torch.optim.AdamW(encoder.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def save(step, **state):
        state = TrainerState(global_step=step, **state)
        return save_checkpoint(tmp_path / "models", encoder, tokenizer, 16, 16, optimizer, scaler, state)

    save.parts = encoder, optimizer, scaler
    return save


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path, save):
    assert newest_checkpoint(tmp_path / "models") is None
    for step in (5, 100, 20):
        save(step)
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-100"


def test_a_run_goes_on_from_the_newest_of_its_folders_or_begins_with_the_initial_model(tmp_path, save):
    folders = [tmp_path / "models", tmp_path / "elsewhere"]
    with pytest.raises(InputError, match="models: no checkpoint there"):
        newest_or_initial(folders, "")
    assert newest_or_initial(folders, "a hub name") == ("a hub name", None)
    save(9)
    folders[1].mkdir()
    save(30, round=2).rename(folders[1] / "checkpoint-30")
    found, state = newest_or_initial(folders, "a hub name")
    assert (found, state.global_step, state.round) == (str(folders[1] / "checkpoint-30"), 30, 2)


@pytest.mark.parametrize("damage", [*CHECKED, "checksums.json"])
def test_a_checkpoint_that_lacks_a_file_is_named_and_passed_over(tmp_path, save, damage, capsys):
    save(5)
    (save(10) / damage).unlink()
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-5"
    assert "checkpoint-10" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 60, -8])
def test_a_checkpoint_whose_weights_were_cut_off_is_named_and_passed_over(tmp_path, save, kept, capsys):
    save(5)
    weights = save(10) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-5"
    assert "checkpoint-10/model.safetensors: is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", CHECKED)
def test_a_checkpoint_with_an_altered_byte_is_named_and_passed_over(tmp_path, save, name, capsys):
    save(5)
    path = save(10) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-5"
    assert f"checkpoint-10/{name}: " in capsys.readouterr().out


HEAD = (HeadLayer("Dense", 16, 8, activation="Tanh"), HeadLayer("LayerNorm", 8, 8))
OF_READING = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
    *("2_Dense/config.json", "2_Dense/model.safetensors", "3_LayerNorm/config.json", "3_LayerNorm/model.safetensors"),
    "4_Normalize/config.json",
)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("name", OF_READING)
def test_a_checkpoint_whose_reading_or_head_was_altered_is_named_and_passed_over(tmp_path, save, name, gone, capsys):
    """Without modules.json a model with a head would train on as one without."""
    save(5)
    checkpoint = save_random_checkpoint(tmp_path / "models", "bert", Reading("mean", True, "q: ", head=HEAD))
    assert newest_checkpoint(tmp_path / "models") == checkpoint
    if gone:
        (checkpoint / name).unlink()
    else:
        content = bytearray((checkpoint / name).read_bytes())
        content[-1] ^= 1
        (checkpoint / name).write_bytes(content)
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-5"
    assert f"not a valid checkpoint, passed over: {checkpoint / name}: " in capsys.readouterr().out
    if name.endswith("safetensors"):
        with pytest.raises(InputError, match=re.escape(name)):
            load_encoder("auto", str(checkpoint))


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, save, monkeypatch):
    weights = save(10) / "model.safetensors"
    assert newest_checkpoint(tmp_path / "models")
    with monkeypatch.context() as patch:
        patch.setattr("utils.stores.files.sha256_of_file", lambda path: pytest.fail(f"{path} was read again"))
        assert newest_checkpoint(tmp_path / "models")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert newest_checkpoint(tmp_path / "models") is None


@pytest.mark.parametrize("keep", [1, 2, 9])
def test_the_newest_checkpoints_of_an_episode_are_kept_and_the_ends_of_earlier_ones(tmp_path, save, keep):
    for step in (5, 10, 12, 14, 16):
        save(step)
    remove_old_checkpoints(tmp_path / "models", keep, first=10)
    left = sorted(checkpoint_step(path, tmp_path / "models") for path in (tmp_path / "models").glob("checkpoint-*"))
    assert left == [5, 10, *[12, 14, 16][-keep:]]


def test_no_checkpoint_is_removed_while_the_newest_is_damaged(tmp_path, save):
    for step in (12, 14, 16):
        save(step)
    (tmp_path / "models" / "checkpoint-16" / "optimizer.pt").unlink()
    remove_old_checkpoints(tmp_path / "models", 1, first=10)
    assert len(list((tmp_path / "models").glob("checkpoint-*"))) == 3


def test_only_a_checkpoint_inside_the_training_folder_has_a_step(tmp_path, monkeypatch):
    assert checkpoint_step(tmp_path / "models" / "checkpoint-45000", tmp_path / "models") == 45000
    assert checkpoint_step(tmp_path / "public" / "checkpoint-45000", tmp_path / "models") == 0
    assert checkpoint_step(tmp_path / "models" / "checkpoint-best", tmp_path / "models") == 0
    monkeypatch.chdir(tmp_path)
    assert checkpoint_step("models/checkpoint-7", tmp_path / "models") == 7
    assert checkpoint_step("checkpoint-7", "models") == 0


def test_what_a_crash_left_is_no_checkpoint(tmp_path, save):
    whole = save(5)
    whole.rename(whole.parent / ".checkpoint-9.partial-123")
    assert newest_checkpoint(tmp_path / "models") is None


def test_the_trainer_state_is_read_as_it_was_written(save):
    state = TrainerState(
        round=2, global_step=9, episode_step=4, position=77, processes=3, dro={"weights": [0.1, 1 / 3]}
    )
    assert (
        read_trainer_state(
            save(9, **{k: v for k, v in vars(state).items() if k not in ("global_step", "format_version")})
        )
        == state
    )


def test_an_episode_has_finished_at_its_last_step_or_where_a_later_one_stands():
    state = TrainerState(round=1, global_step=9, episode_step=4, position=77)
    assert state.episode_start == 5
    assert [state.has_finished(round, 4) for round in (0, 1, 2)] == [True, True, False]
    assert not state.has_finished(1, 5)
    assert not state.has_finished(1, 0)
    state.advance(0, skipped=False)  # the last triplet of the mined file
    assert (state.has_finished(1, 0), state.episode_start) == (True, 5)
    state.begin(2)
    assert (state.has_finished(2, 4), state.episode_start) == (False, 10)


@pytest.mark.parametrize("position", ["front", -1, 2**53, True, None, 1.0])
def test_an_altered_trainer_state_is_an_error(save, position):
    path = save(9) / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"position": position}))
    with pytest.raises(InputError, match=f"position is {position!r}, not a count as it was saved"):
        read_trainer_state(path.parent)


def test_optimizer_and_random_states_go_on_bit_for_bit(save):
    encoder, optimizer, scaler = save.parts
    loss = encoder(PackedTokens(torch.tensor([2, 7, 3]), torch.arange(3), torch.tensor([0]), [3])).sum()
    loss.backward()
    optimizer.step()
    folder = save(1)
    drawn = torch.rand(5)
    moments = {k: v["exp_avg"].clone() for k, v in optimizer.state_dict()["state"].items()}

    torch.manual_seed(999)
    fresh = torch.optim.AdamW(encoder.parameters())
    load_training_state(folder, fresh, scaler, random_states=True)
    assert torch.equal(torch.rand(5), drawn)
    restored = fresh.state_dict()["state"]
    assert all(torch.equal(restored[k]["exp_avg"], value) for k, value in moments.items())


def test_a_damaged_optimizer_file_is_named(save):
    _, optimizer, scaler = save.parts
    folder = save(1)
    (folder / "optimizer.pt").write_bytes(b"not a file of torch")
    with pytest.raises(InputError, match=r"optimizer\.pt"):
        load_training_state(folder, optimizer, scaler, random_states=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "random_states.pt"])
@pytest.mark.parametrize("content", [7, [], {"optimizer": []}, {"optimizer": {"state": {}}}, [{"cpu": "x"}]])
def test_a_whole_file_of_torch_that_holds_something_else_is_named(save, name, content):
    _, optimizer, scaler = save.parts
    folder = save(1)
    torch.save(content, folder / name)
    with pytest.raises(InputError, match=rf"{re.escape(name)}: cannot be read .*the one before"):
        load_training_state(folder, optimizer, scaler, random_states=True)


def test_a_pickle_in_place_of_the_optimizer_does_not_run(save, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    _, optimizer, scaler = save.parts
    folder = save(1)
    torch.save(Malicious(), folder / "optimizer.pt")
    with pytest.raises(InputError, match=r"optimizer\.pt"):
        load_training_state(folder, optimizer, scaler, random_states=True)
    assert not (tmp_path / "ran").exists()


def test_the_fingerprint_follows_the_weights(save, tmp_path):
    encoder, _, _ = save.parts
    one, same = fingerprint_of_weights(save(1), encoder), fingerprint_of_weights(save(2), encoder)
    assert one == same
    plain = fingerprint_of_weights(tmp_path, encoder)
    with torch.no_grad():
        next(encoder.parameters())[0, 0] += 1
    assert fingerprint_of_weights(save(3), encoder) != one
    assert fingerprint_of_weights(tmp_path, encoder) != plain


def test_the_fingerprint_does_not_depend_on_the_folders_name(save, tmp_path):
    encoder, _, _ = save.parts
    own = save(5)
    assert fingerprint_of_weights(own.rename(tmp_path / "best"), encoder) == fingerprint_of_weights(save(6), encoder)
    foreign = tmp_path / "checkpoint-45000"
    encoder.save_pretrained(foreign)
    assert fingerprint_of_weights(foreign, encoder) == fingerprint_of_weights(
        foreign.rename(tmp_path / "initial"), encoder
    )


def test_the_fingerprint_of_a_model_from_elsewhere_follows_the_head_that_loading_added(tmp_path):
    encoder = tiny_roberta()
    folder = tmp_path / "checkpoint-45000"
    encoder.model.save_pretrained(folder)
    before = fingerprint_of_weights(folder, encoder)
    torch.nn.init.normal_(encoder.head[0].weight)
    assert fingerprint_of_weights(folder, encoder) != before


TEXTS = [
    "The Cat is how BLUE?",
    "a",
    "",
    "Dog and Cat " * 40,  # cut
    " ".join(["sky"] * QUERY_LENGTH),  # cut as a query
    "a [SEP] b [MASK] [CLS] </s> [UNK]",  # names of special tokens
]
MODEL_TYPES = ["rdot_nll", "rdot_nll_condenser"]


def own_vectors(checkpoint: Path, model_type: str, max_length: int, folder: Path) -> np.ndarray:
    """The vectors of TEXTS by way of a token store, as mining and evaluation make them."""
    reading = find_reading(str(checkpoint), model_type)
    texts = ((row, str(row), reading.passages(text)) for row, text in enumerate(TEXTS))
    source = folder / "source"
    folder.mkdir(exist_ok=True)
    source.write_text("of the texts")
    tokenizer = load_tokenizer(str(checkpoint))
    write_token_store(folder / "store", texts, tokenizer, max_length, source, label="texts")
    encoder, _ = load_encoder(model_type, str(checkpoint))
    packed = pack([(Sequences(TokenStore(folder / "store")), np.arange(len(TEXTS)))])
    return encoder.eval()(packed).detach().numpy()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sentence_transformers_gives_our_vectors_of_any_text_also_after_it_saved_the_model_again(
    tmp_path, model_type
):
    checkpoint = save_tiny_checkpoint(tmp_path, model_type)
    expected = own_vectors(checkpoint, model_type, PASSAGE_LENGTH, tmp_path)
    model = SentenceTransformer(str(checkpoint), device="cpu")
    assert (model.max_seq_length, model.similarity_fn_name) == (PASSAGE_LENGTH, "dot")
    vectors = model.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity(vectors, vectors), expected @ expected.T, rtol=1e-4)

    model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert (again.max_seq_length, again.similarity_fn_name) == (PASSAGE_LENGTH, "dot")
    np.testing.assert_allclose(again.encode(TEXTS), vectors, atol=1e-6)


OLD_FILES = {  # as older versions of sentence-transformers write them
    "modules.json": lambda text: re.sub(
        r'"sentence_transformers\.[\w.]*\.(\w+)"', r'"sentence_transformers.models.\1"', text
    ),
    "1_Pooling/config.json": lambda text: '{"word_embedding_dimension": 16, "pooling_mode_cls_token": true}',
}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("generation", ["new", "old"])
def test_a_head_that_sentence_transformers_has_saved_again_is_read(tmp_path, generation, safe, capsys):
    checkpoint = save_tiny_checkpoint(tmp_path, "rdot_nll")
    expected = own_vectors(checkpoint, "rdot_nll", PASSAGE_LENGTH, tmp_path / "before")
    again = tmp_path / "again"
    SentenceTransformer(str(checkpoint), device="cpu").save(str(again), safe_serialization=safe)
    if generation == "old":
        for name, older in OLD_FILES.items():
            (again / name).write_text(older((again / name).read_text()))
    assert not any("embeddingHead" in key for key in load_file(again / "model.safetensors"))
    assert (again / "2_Dense" / "pytorch_model.bin").exists() is not safe
    assert (generation == "old") == ("sentence_transformers.models.Dense" in (again / "modules.json").read_text())
    capsys.readouterr()
    found = own_vectors(again, "rdot_nll", PASSAGE_LENGTH, tmp_path / "after")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "random" not in capsys.readouterr().out
    encoder, _ = load_encoder("rdot_nll", str(checkpoint))
    once_more, _ = load_encoder("rdot_nll", str(again))
    assert fingerprint_of_weights(again, once_more) == fingerprint_of_weights(tmp_path / "none", encoder)


def test_what_sentence_transformers_saved_of_a_bert_is_read_as_before(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path, "rdot_nll_condenser")
    expected = own_vectors(checkpoint, "rdot_nll_condenser", PASSAGE_LENGTH, tmp_path / "before")
    SentenceTransformer(str(checkpoint), device="cpu").save(str(tmp_path / "again"))
    found = own_vectors(tmp_path / "again", "rdot_nll_condenser", PASSAGE_LENGTH, tmp_path / "after")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture
def saved_again(tmp_path) -> Path:
    SentenceTransformer(str(save_tiny_checkpoint(tmp_path, "rdot_nll")), device="cpu").save(str(tmp_path / "again"))
    return tmp_path / "again"


def test_a_saved_head_is_read_from_the_hubs_cache_too(saved_again, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached, commit = tmp_path / "hub" / "models--me--mine", "a" * 40  # as a download leaves it
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(saved_again, cached / "snapshots" / commit)
    found, _ = load_encoder("rdot_nll", "me/mine", str(tmp_path / "hub"))
    expected, _ = load_encoder("rdot_nll", str(saved_again))
    assert fingerprint_of_weights("me/mine", found) == fingerprint_of_weights(saved_again, expected)


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


MODULES = '[{"type": "sentence_transformers.models.Dense", "path": "%s"}]'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_json(folder / "2_Dense/config.json", activation_function="torch.nn.Tanh"), "2_Dense"),
        (lambda folder: change_json(folder / "2_Dense/config.json", use_residual=True), "it is another model"),
        (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "2_Dense: holds no weights"),
        (lambda folder: (folder / "3_LayerNorm/model.safetensors").write_bytes(b"7"), "the weights are damaged"),
        (
            lambda folder: shutil.copy(folder / "3_LayerNorm/model.safetensors", folder / "2_Dense"),
            "2_Dense: holds weights .*it is another model",
        ),
        (lambda folder: (folder / "modules.json").write_text("{"), r"modules\.json: is not JSON"),
        (lambda folder: (folder / "modules.json").write_text("7"), r"modules\.json: has 7, where"),
        (
            lambda folder: (folder / "modules.json").write_text(MODULES % "../other"),
            r"a folder's name",
        ),
        (
            lambda folder: (folder / "modules.json").write_text(MODULES % "2_Dense"),
            "begin with a random head instead, remove modules.json",
        ),
    ],
)
def test_a_head_that_is_of_another_model_or_damaged_is_refused_and_never_replaced(saved_again, change, message):
    change(saved_again)
    with pytest.raises(InputError, match=message):
        load_encoder("rdot_nll", str(saved_again))


def test_a_pickle_in_place_of_a_saved_head_does_not_run(saved_again, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (saved_again / "2_Dense" / "model.safetensors").unlink()
    for content in (Malicious(), {"linear.weight": Malicious()}, [], {"linear.weight": 7}):
        torch.save(content, saved_again / "2_Dense" / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"2_Dense/pytorch_model\.bin: "):
            load_encoder("rdot_nll", str(saved_again))
    assert not (tmp_path / "ran").exists()


def test_layers_that_a_model_type_has_not_are_said_to_be_left_out(tmp_path, capsys):
    words = Transformer(str(save_tiny_checkpoint(tmp_path, "rdot_nll_condenser")))
    modules = [words, Pooling(16, pooling_mode="cls"), Dense(16, 8), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "again"))
    load_encoder("rdot_nll_condenser", str(tmp_path / "again"))
    assert "warning: " + str(tmp_path / "again/2_Dense") + " (Dense) is left out" in capsys.readouterr().out


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sentence_transformers_cuts_queries_as_training_did(tmp_path, model_type):
    checkpoint = save_tiny_checkpoint(tmp_path, model_type)
    expected = own_vectors(checkpoint, model_type, QUERY_LENGTH, tmp_path)
    model = SentenceTransformer(str(checkpoint), device="cpu")
    assert not np.allclose(model.encode(TEXTS), expected, atol=1e-2)
    np.testing.assert_allclose(model.encode_query(TEXTS), expected, atol=1e-5)


def test_documents_of_many_chunks_are_cut_to_the_positions_that_there_are(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path, "rdot_nll_multi_chunk", max_length=2048)
    model = SentenceTransformer(str(checkpoint), device="cpu")
    assert model.max_seq_length == 64 - 1  # the tiny RoBERTa's padding token is 0, and positions count from 1
    assert np.isfinite(model.encode(TEXTS)).all()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_nothing_but_training_needs_what_is_not_to_be_uploaded(tmp_path, model_type):
    checkpoint = save_tiny_checkpoint(tmp_path, model_type)
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    for name in ("optimizer.pt", "random_states.pt", "trainer_state.json"):
        (checkpoint / name).unlink()
    assert not list(checkpoint.rglob("*.pt"))
    np.testing.assert_array_equal(SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS), expected)
    encoder, _ = load_encoder(model_type, str(checkpoint))
    assert encoder.embedding_dim == expected.shape[1]


def test_a_checkpoint_that_was_renamed_or_is_a_file_or_has_no_sums_is_passed_over(tmp_path, save, capsys):
    save(5)
    for step, change in (
        (10, lambda folder: folder.rename(folder.with_name("checkpoint-11"))),
        (12, lambda folder: (folder / "checksums.json").write_text('{"model.safetensors": []}')),
        (13, lambda folder: (folder.rename(folder.with_name("away")), folder.touch())),
    ):
        change(save(step))
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-5"
    assert "checkpoint-11: is of step 10: it was renamed" in capsys.readouterr().out


def test_the_newest_checkpoint_of_some_kind_is_found(tmp_path, save):
    for step, skipped in ((5, 0), (10, 0), (15, 3)):
        save(step, skipped_in_a_row=skipped)
    assert newest_checkpoint(tmp_path / "models").name == "checkpoint-15"
    assert newest_checkpoint(tmp_path / "models", lambda state: state.skipped_in_a_row == 0).name == "checkpoint-10"


def to_mine(tmp_path: Path, number: int, waits: bool = False) -> tuple[str, int] | None:
    """The checkpoint for an episode, where those before were mined from step 0 on, 9 steps apart."""
    for earlier in range(number):
        result = {"ndcg": 0.5, "mrr": 0.5, "checkpoint": "that one", "step": 9 * earlier}
        write_result(tmp_path / "results", earlier, result)
    return checkpoint_to_mine(number, tmp_path / "results", tmp_path / "models", "initial", waits)


def test_an_episode_is_mined_by_a_newer_checkpoint_of_the_end_of_a_round_or_there_is_nothing_to_mine_with(
    tmp_path, save, capsys
):
    (tmp_path / "results").mkdir()
    assert to_mine(tmp_path, 0) == ("initial", 0)
    assert to_mine(tmp_path, 1) is None
    assert "nothing to mine with: no checkpoint is newer than that one, of episode 0" in capsys.readouterr().out
    save(5, episode_step=5)
    assert to_mine(tmp_path, 1) is None
    assert "checkpoint-5 stands inside round 0; train that to its end" in capsys.readouterr().out
    assert to_mine(tmp_path, 1, waits=True) == (str(tmp_path / "models" / "checkpoint-5"), 5)
    ended = save(9, episode_step=9, ended=True)
    assert to_mine(tmp_path, 1) == (str(ended), 9)
    assert to_mine(tmp_path, 2) is None


@pytest.mark.parametrize("mines", [0, 1])
def test_an_episode_is_mined_by_no_checkpoint_that_was_trained_on_it_or_on_a_later_one(tmp_path, save, mines):
    save(18, round=1, ended=True)
    (tmp_path / "results").mkdir()
    with pytest.raises(InputError, match=rf"was trained on episode 1.* cannot mine episode {mines}; remove"):
        to_mine(tmp_path, mines)
    assert to_mine(tmp_path, 2)[1] == 18


def test_an_episode_goes_on_in_its_own_mined_file_only(tmp_path):
    (tmp_path / "mined").write_text("1")
    state = TrainerState()
    state.enter(tmp_path / "mined")
    state.advance(3, skipped=False)
    state.enter(tmp_path / "mined")
    (tmp_path / "mined").write_text("2")
    with pytest.raises(InputError, match=r"mined: is another file .* beyond step 0 to begin the episode anew"):
        state.enter(tmp_path / "mined")
    state.begin(1)
    state.enter(tmp_path / "mined")


def test_altered_weights_are_not_loaded(save):
    folder = save(5)
    load_encoder("rdot_nll_condenser", str(folder))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged"):
        load_encoder("rdot_nll_condenser", str(folder))
