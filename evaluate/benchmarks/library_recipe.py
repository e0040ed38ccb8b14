"""sentence-transformers as its documentation advises: mined negatives, then its trainer with in-batch negatives.

Mining is `mine_hard_negatives` with the settings that its documentation calls the strongest: negatives from the top,
at least 5% below the positive's score, searched with faiss. Training is the library's trainer as it is, with
`MultipleNegativesRankingLoss` on (anchor, positive, negative), batches without duplicates, AdamW, a linear warm-up
over the first tenth of the steps and linear decay. Both read the checkpoint as its own files say.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives
from transformers import PrinterCallback

from evaluate.benchmarks.library_miner import read_pairs
from evaluate.benchmarks.watched_work import Work, watch
from model.reading import Reading
from utils.runtime.precision import Precision

RELATIVE_MARGIN = 0.05
WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class LibraryRecipe:
    """What the library is told; `batch_size` of encoding is in texts, `samples` a training step are triplets."""

    checkpoint: str
    max_length: int
    negatives: int
    batch_size: int
    samples: int
    precision: Precision
    device: torch.device

    def load(self) -> SentenceTransformer:
        model = SentenceTransformer(self.checkpoint, device=str(self.device))
        model.max_seq_length = self.max_length
        return model

    def mine(self, collection_dir: Path, folder: Path) -> Work:
        """Mines for the training queries of a collection in MS MARCO's files; `folder` gets the triplets."""
        return watch(lambda: self._mine(collection_dir, folder))

    def train(self, mined: Path, folder: Path, steps: int, learning_rate: float, seed: int) -> Work:
        """Trains on what was mined; `folder` gets the model."""
        return watch(lambda: self._train(mined, folder, steps, learning_rate, seed))

    def _mine(self, collection_dir: Path, folder: Path) -> None:
        pairs, passages = read_pairs(collection_dir, Reading())
        with self.precision.autocast():
            mined = mine_hard_negatives(
                Dataset.from_dict(pairs),
                self.load(),
                corpus=passages,
                relative_margin=RELATIVE_MARGIN,
                num_negatives=self.negatives,
                sampling_strategy="top",
                batch_size=self.batch_size,
                use_faiss=True,
                verbose=False,
            )
        mined.save_to_disk(str(folder))

    def _train(self, mined: Path, folder: Path, steps: int, learning_rate: float, seed: int) -> None:
        model = self.load()
        settings = SentenceTransformerTrainingArguments(
            output_dir=str(folder.with_name(f"{folder.name}-trainer")),
            max_steps=steps,
            per_device_train_batch_size=self.samples,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            learning_rate=learning_rate,
            warmup_steps=WARMUP_SHARE,
            bf16=self.precision.dtype == torch.bfloat16,
            fp16=self.precision.dtype == torch.float16,
            use_cpu=self.device.type == "cpu",
            dataloader_pin_memory=self.device.type == "cuda",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model,
            args=settings,
            train_dataset=load_from_disk(str(mined)),
            loss=MultipleNegativesRankingLoss(model),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.save_pretrained(str(folder))
