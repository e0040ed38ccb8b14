"""sentence-transformers' own trainer as a contender that takes turns with the others.

Its loop cannot be asked for a single step. So it runs as it is, and waits for its turn in a callback between its
steps, while its clock stands. Nothing of it is changed but the order of the batches, which is that of the data set.
Its loader makes a batch while the one before waits, so a step pays for making one batch, that of the next step.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from evaluate.benchmarks.contenders import ADAM_EPSILON, LEARNING_RATE, MAX_GRAD_NORM, Taken, now
from model.losses import pairwise_nll
from model.optimizers import make_optimizer
from utils.runtime.precision import Precision


class PairwiseLoss(nn.Module):
    """The mean pairwise loss of dot products times `scale`, in the form that the library asks of a loss.

    It keeps what the last step saw.
    """

    def __init__(self, model: SentenceTransformer, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        query, positive, negative = (self.model(column)["sentence_embedding"] for column in features)
        query = self.scale * query
        loss = pairwise_nll((query * positive).sum(-1), (query * negative).sum(-1)).mean()
        self.masks, self.last = [column["attention_mask"] for column in features], loss.detach()
        return loss


class TakeTurns(TrainerCallback):
    """Waits before every step of the trainer and gives what it took; the last step's time says nothing."""

    def __init__(
        self,
        loss: PairwiseLoss,
        device: torch.device,
        wait: Callable[[], object],
        give: Callable[[Taken], object],
    ) -> None:
        self.loss, self.device, self.wait, self.give = loss, device, wait, give

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.wait()
        self.start = now(self.device)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.input_seconds = time.perf_counter() - self.start

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == state.max_steps:  # without a next batch to make
            return
        self.give(
            Taken(
                seconds=now(self.device) - self.start,
                input_seconds=self.input_seconds,
                loss=float(self.loss.last),
                tokens=sum(int(mask.sum()) for mask in self.loss.masks),
                positions=sum(mask.numel() for mask in self.loss.masks),
            )
        )
        self.wait()
        self.start = now(self.device)


def _in_order(dataset: Dataset, **settings) -> DefaultBatchSampler:
    return DefaultBatchSampler(SequentialSampler(dataset), **settings)


def _first_linear(model: nn.Module) -> nn.Linear:
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


def train_in_turns(
    model: SentenceTransformer,
    columns: Mapping[str, list[str]],
    folder: Path,
    *,
    triplets: int,
    scale: float,
    optimizer: str,
    precision: Precision,
    device: torch.device,
    wait: Callable[[], object],
    give: Callable[[Taken], object],
) -> None:
    """Trains on batches of `triplets` rows of `columns` (anchor, positive, negative) in order.

    The texts are as the tokenizer gets them, prompts included. The loss multiplies scores with `scale`.
    `wait` is called before each step, and `give` with what it took. The last batch is there to be made only: what its
    step took is not given. With `optimizer` adamW, AdamW is the library's default one. Raises RuntimeError where the
    matrix products ran in another type than `precision` says.
    """
    loss = PairwiseLoss(model, scale)
    turns = TakeTurns(loss, device, wait, give)
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=len(columns["anchor"]) // triplets,
        per_device_train_batch_size=triplets,
        batch_sampler=_in_order,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        bf16=precision.dtype == torch.bfloat16,
        fp16=precision.dtype == torch.float16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    own = make_optimizer(optimizer, model, LEARNING_RATE, 0.0, ADAM_EPSILON) if optimizer != "adamW" else None
    trainer = SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict(dict(columns)),
        loss=loss,
        callbacks=[turns],
        optimizers=(own, None),
    )
    trainer.remove_callback(PrinterCallback)
    seen: set[torch.dtype] = set()
    hook = _first_linear(model).register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.train()
    hook.remove()
    if seen != {precision.dtype}:
        raise RuntimeError(f"the library's matrix products ran in {seen}, and {precision.dtype} was asked for")
