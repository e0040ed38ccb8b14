"""A tokenizer small enough to be read: words it knows, letters for all others."""

import string
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "of", "how", "what", "is", "cat", "Cat", "dog", "tree", "sky", "blue")


def tiny_bert_tokenizer(folder: str | Path, lowercase: bool = False) -> str:
    """Saves a fast BERT tokenizer of 190 tokens into `folder` and returns the folder's name.

    It tells cases apart (unless `lowercase`), so that a test can see whether text was lowercased before it.
    """
    letters = string.ascii_letters + string.digits + ".,:?!-_/"
    vocabulary = dict.fromkeys((*SPECIAL_TOKENS, *WORDS, *letters, *(f"##{letter}" for letter in letters)))
    vocabulary = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.enable_padding(length=24)  # published tokenizer.json files carry such settings, which no store may heed
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL_TOKENS, strict=True)))
    fast.save_pretrained(folder)
    return str(folder)
