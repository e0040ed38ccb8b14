"""A collection and a checkpoint made on the spot, for benchmarks that need nothing from elsewhere.

Words are drawn at random, and a word is a token; lengths are like those of MS MARCO's texts: passages 77 tokens in
the mean, at most 256; queries 10, at most 32. Weights are random, too. Neither matters for time.
"""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.judgments import qrel_file
from data.layouts.msmarco import read_tsv
from data.tokenizing import load_tokenizer, write_token_store
from evaluate.benchmarks import contenders
from utils.stores.qrels import Qrels, write_qrels

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_SEQ_LENGTH, MAX_QUERY_LENGTH = 256, 32
MEAN_PASSAGE, MEAN_QUERY = 77, 10


def write_checkpoint(folder: Path, shape: str) -> Path:
    """A random encoder of this shape with a tokenizer of as many tokens as BERT's, read by first tokens."""
    words = [f"w{number}" for number in range(contenders.VOCABULARY - len(SPECIAL_TOKENS))]
    numbers = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    specials = dict(zip(names, SPECIAL_TOKENS, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **specials)
    fast.save_pretrained(folder)
    encoder = contenders.make_encoder(shape)
    encoder.save_pretrained(folder)
    encoder.save_reading(folder, MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    return folder


def write_collection(folder: Path, checkpoint: Path, passages: int, queries: int, seed: int = 0) -> None:
    """Texts in MS MARCO's files, and in preprocessed/ the token stores of them and a relevant passage a query."""
    generator, stores = np.random.default_rng(seed), folder / "preprocessed"
    stores.mkdir(parents=True)
    tokenizer, prepared = load_tokenizer(str(checkpoint)), contenders.READING.passages
    for name, store, count, mean, most in (
        ("collection", "passages", passages, MEAN_PASSAGE, MAX_SEQ_LENGTH),
        ("queries.train", "train-query", queries, MEAN_QUERY, MAX_QUERY_LENGTH),
    ):
        lengths = contenders.draw_lengths(generator, count, mean, most) - 2  # without [CLS] and [SEP]
        words = generator.integers(0, contenders.VOCABULARY - len(SPECIAL_TOKENS), size=lengths.sum())
        texts = np.split(words, np.cumsum(lengths)[:-1])
        path = folder / f"{name}.tsv"
        with path.open("w") as file:
            file.writelines(
                f"{i}\t{' '.join(f'w{word}' for word in text.tolist())}\n" for i, text in enumerate(texts)
            )
        rows = read_tsv(path, prepared)
        write_token_store(stores / store, rows, tokenizer, most, path, prepared=prepared, label=store, total=count)
    relevant = Qrels.by_row(np.arange(queries), generator.integers(passages, size=queries), np.ones(queries))
    write_qrels(qrel_file(stores, "train"), relevant)
