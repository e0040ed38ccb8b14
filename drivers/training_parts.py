"""What drivers/run_ann.py trains with, made from its arguments."""

import torch

from drivers.training_arguments import Arguments
from model.dro import ERM, make_objective
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.losses import LOSSES
from model.optimizers import make_optimizer
from model.retriever import Retriever
from model.training_step import TrainingStep
from model.watched_layers import watched_layers
from utils.batching import Sequences
from utils.runtime.precision import choose_precision
from utils.stores.known_passages import KnownPassages
from utils.stores.qrels import read_train_and_dev_qrels


def new_objective(args: Arguments) -> ERM:
    """The objective as every episode begins with it."""
    return make_objective(args.objective, args.n_groups if args.group else 1, **args.constants)


def make_step(args: Arguments, encoder: Encoder, device: torch.device) -> TrainingStep:
    """The training step of this objective on this encoder, which is moved to the device and put in training mode."""
    objective = new_objective(args)
    encoder = encoder.to(device).train()
    encoder.model.gradient_checkpointing = args.gradient_checkpointing
    if args.attention_dropout is not None:
        encoder.set_attention_dropout(args.attention_dropout)
    watch = None
    if objective.needs_gradient_products:
        layers = watched_layers(encoder, args.model_size, args.idro_layers)
        watch = GroupGradients(layers, args.n_groups, sketch_dim=args.idro_sketch_dim or None, seed=args.seed)
    model = Retriever(encoder, watch, LOSSES[args.loss])
    optimizer = make_optimizer(args.optimizer, model, args.learning_rate, args.weight_decay, args.adam_epsilon)
    precision = choose_precision(args.fp16, device)
    return TrainingStep(model, objective, optimizer, precision, args.max_grad_norm, device, watch)


def read_known(args: Arguments, queries: Sequences, passages: Sequences) -> list[KnownPassages]:
    """What the loss's samples are made from beside an episode: what is judged, or nothing. A minute of MS MARCO's."""
    if not LOSSES[args.loss].samples.asks_known:
        return []
    qrels, _ = read_train_and_dev_qrels(args.data_dir)
    return [KnownPassages(queries.store, passages.store, qrels)]
