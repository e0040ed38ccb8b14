"""Encoders load what the public checkpoints hold, and others load what is saved here."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from model.encoders import EMBEDDING_DIM
from model.reading import Reading
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import load_encoder, padded_vectors, tiny_bert, tiny_roberta
from utils.batching import PackedTokens
from utils.runtime.errors import InputError
from utils.stores.checkpoint import TrainerState, fingerprint_of_weights, save_checkpoint

IDS = torch.tensor([[2, 8, 9, 10, 3], [2, 11, 3, 0, 0]])
MASK = (IDS != 0).long()
PACK = PackedTokens(IDS[MASK.bool()], torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]), torch.tensor([0, 5]), [5, 3])


def small(config_class, **more):
    return config_class(
        vocab_size=156,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **more,
    )


def save_with_tokenizer(model, folder):
    tiny_bert_tokenizer(folder)
    model.save_pretrained(folder)
    return str(folder)


def test_a_public_ance_state_dict_loads_by_its_names_and_its_classifier_is_left_aside(tmp_path):
    source = RobertaForSequenceClassification(small(RobertaConfig, type_vocab_size=1, pad_token_id=1))
    folder = save_with_tokenizer(source, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("classifier.") for name in weights)
    head, norm = torch.nn.Linear(16, EMBEDDING_DIM), torch.nn.LayerNorm(EMBEDDING_DIM)
    torch.nn.init.normal_(norm.weight)
    for prefix, module in (("embeddingHead", head), ("norm", norm)):
        weights |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    encoder, _ = load_encoder("rdot_nll", folder)
    hidden = source.eval().roberta(IDS, attention_mask=MASK).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.eval()(PACK), norm(head(hidden)))


def test_a_plain_roberta_gets_a_new_head_and_says_so(tmp_path, capsys):
    folder = save_with_tokenizer(tiny_roberta().model, tmp_path)
    encoder, _ = load_encoder("rdot_nll", folder)
    assert encoder(PACK).shape == (2, EMBEDDING_DIM)
    assert "embeddingHead" in capsys.readouterr().out


def test_a_new_head_is_the_same_at_every_load_and_leaves_the_callers_random_state_alone(tmp_path):
    folder = save_with_tokenizer(tiny_roberta().model, tmp_path)
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        encoder, _ = load_encoder("rdot_nll", folder)
        assert torch.equal(torch.get_rng_state(), state)
        assert encoder.head[0].weight.std() > 0
        prints.append(fingerprint_of_weights(folder, encoder))
    assert prints[0] == prints[1]


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_any_bert_checkpoint_gives_its_first_tokens_vector(tmp_path, kind):
    source = kind(small(BertConfig)).eval()
    encoder, _ = load_encoder("rdot_nll_condenser", save_with_tokenizer(source, tmp_path))
    bert = getattr(source, "bert", source)
    expected = bert(IDS, attention_mask=MASK).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.eval()(PACK), expected)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    folder = save_with_tokenizer(tiny_bert(), tmp_path)
    with pytest.raises(InputError, match=r"is a bert checkpoint.*wants roberta"):
        load_encoder("rdot_nll", folder)


def test_a_decoder_is_refused(tmp_path):
    folder = save_with_tokenizer(BertModel(small(BertConfig, is_decoder=True)), tmp_path)
    with pytest.raises(InputError, match="is a decoder"):
        load_encoder("rdot_nll_condenser", folder)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint can be loaded.*config\.json"):
        load_encoder("rdot_nll", str(tmp_path))


def test_an_unknown_model_type_is_refused_with_the_names_that_there_are(tmp_path):
    with pytest.raises(InputError, match="rdot_nll_condenser"):
        load_encoder("dpr", str(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = save_with_tokenizer(tiny_bert(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layer.1" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="lacks weights"):
        load_encoder("rdot_nll_condenser", folder)


@pytest.mark.parametrize("kept", [0, 100, -50])
def test_weights_that_were_cut_off_are_named(tmp_path, kept):
    folder = save_with_tokenizer(tiny_bert(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors: the weights are damaged"):
        load_encoder("rdot_nll_condenser", folder)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_weights_of_the_older_format_are_named_without_torchs_advice_to_run_them(tmp_path, content):
    folder = save_with_tokenizer(tiny_bert(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: the weights are damaged") as caught:
        load_encoder("rdot_nll_condenser", folder)
    assert "weights_only" not in str(caught.value)


def test_weights_of_other_shapes_than_the_configurations_are_named(tmp_path):
    folder = save_with_tokenizer(tiny_bert(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(weights | {name: weights[name][:10].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"word_embeddings\.weight has shape \(10, 16\), and \(156, 16\)"):
        load_encoder("rdot_nll_condenser", folder)


@pytest.mark.parametrize("model_type", ["rdot_nll", "rdot_nll_condenser"])
def test_a_saved_checkpoint_loads_here_in_transformers_and_in_sentence_transformers(tmp_path, model_type):
    from sentence_transformers import SentenceTransformer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    pad = tokenizer.pad_token_id
    encoder = (
        tiny_bert(vocabulary=len(tokenizer))
        if model_type == "rdot_nll_condenser"
        else tiny_roberta(vocabulary=len(tokenizer), positions=64)
    )
    encoder.config.pad_token_id = pad
    encoder.eval()
    optimizer = torch.optim.SGD(encoder.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    folder = save_checkpoint(tmp_path, encoder, tokenizer, 20, 20, optimizer, scaler, TrainerState(global_step=7))
    assert folder.name == "checkpoint-7"

    texts = ["the cat sat on the mat", "a", "dog and cat " * 20]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=20, return_tensors="pt")
    again, _ = load_encoder(model_type, str(folder))
    expected = padded_vectors(again.eval(), tokens["input_ids"], tokens["attention_mask"]).detach().numpy()

    sentence = SentenceTransformer(str(folder), device="cpu")
    assert sentence.similarity_fn_name == "dot"
    np.testing.assert_allclose(sentence.encode(texts), expected, atol=1e-5)

    plain = AutoModel.from_pretrained(folder).eval()
    hidden = plain(**tokens).last_hidden_state[:, 0]
    np.testing.assert_allclose(again.finish(hidden).detach().numpy(), expected, atol=1e-5)


def test_another_pooling_is_refused():
    with pytest.raises(InputError, match="'max' is unknown; there are cls, mean"):
        Reading("max")
