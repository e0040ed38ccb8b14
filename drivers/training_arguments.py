"""What drivers/run_ann.py can be asked for: one field a flag, and what cannot be asked for together."""

from dataclasses import dataclass
from pathlib import Path

from model.dro import make_objective, objective_name
from model.hyperparameters import PUBLISHED
from model.losses import LOSSES
from utils.runtime.arguments import LengthArguments, ModelArguments, check_at_least_one, option, required
from utils.runtime.errors import InputError

# The public code's, which no published command gives.
NUM_TRAINING_STEPS, TOTAL_TRAINING_STEPS = (
    PUBLISHED["base"][name] for name in ("NUM_TRAINING_STEPS", "TOTAL_TRAINING_STEPS")
)


@dataclass
class Arguments(ModelArguments, LengthArguments):
    data_dir: str = required("token stores, as data/beir_data.py or data/msmarco_data.py writes them")
    ann_dir: str = required("mined files, as drivers/run_ann_data_gen.py writes them")
    training_dir: str = option("", "checkpoints; the newest valid one is gone on from (default: output_dir)")
    output_dir: str = option("", "where checkpoints are saved (default: training_dir)")
    result_dir: str = option("", "ann_ndcg_N files of the mined episodes (default: ann_dir)")
    init_model_dir: str = option("", "checkpoint to begin with where training_dir holds none")
    model_name_or_path: str = option("", "the same, as a hub name or folder; used where init_model_dir is not given")
    model_size: str = option("base", "base or large: iDRO compares gradients over the last 3 or 2 layers")
    task_name: str = option("training", "name of the run in its log")
    triplet: bool = option(True, "train on what was mined for each query, the only form of mined files")
    loss: str = option(
        "pairwise",
        "pairwise: each negative by itself, as published; contrastive: all passages of a block of queries of one "
        "cluster (the miner's --queries_together)",
    )
    round: int = option(0, "the episode, from 0; -1: the newest that is mined, while another process mines on")
    max_steps: int = option(0, "optimizer steps of one episode; 0: one pass over its mined file (not with round -1)")
    per_gpu_train_batch_size: int = option(
        16, "triplets a process and backward pass; of a contrastive loss lines, whole blocks of them"
    )
    per_gpu_eval_batch_size: int = option(128, "taken for the miner's sake; training does not evaluate")
    gradient_accumulation_steps: int = option(1, "backward passes an optimizer step")
    optimizer: str = option("lamb", "lamb or adamW")
    learning_rate: float = option(5e-6, "peak learning rate of the first episode")
    weight_decay: float = option(0.0, "weight decay of matrices")
    adam_epsilon: float = option(1e-8, "epsilon in the optimizer's denominator")
    attention_dropout: float | None = option(
        None,
        "share of attention's weights that training drops (default: the checkpoint's own); 0: none, and GPUs then do "
        "without padding, in 16 bits",
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: never")
    warmup_steps: int = option(0, "steps of linear warm-up, from the episode's first one (round -1: the run's)")
    num_training_steps: int | None = option(
        None,
        f"the episode's step at which its rate is down to 0 (default: {NUM_TRAINING_STEPS}; with round -1 the "
        "run's step, by default its last)",
    )
    total_training_steps: int | None = option(
        None,
        "an episode that begins at step s of the run has the peak learning_rate * max(0.2, 1 - s / this) (default: "
        f"{TOTAL_TRAINING_STEPS}; with round -1 this is where training ends, and must be given)",
    )
    single_warmup: bool = option(
        False,
        "taken for the published command line's sake: a round warms up and decays once, with it or without. (Without "
        "it the public code decays over the mined file's number of lines, this code over num_training_steps still.)",
    )
    group: int = option(0, "1: use the clusters, or groups by name, of the mined file; 0: plain ERM")
    n_groups: int = option(50, "clusters or groups, as many as were mined with; 0: as many as those are")
    dro_type: str = option("idro", "idro, dro-greedy or balanced (clusters alike), in upper or lower case")
    absent: str = option(
        "drop",
        "iDRO, of a cluster that is absent from a step: drop: it falls to the least weight, as published; keep: it "
        "keeps its own",
    )
    normalize_weights: bool = option(
        False, "iDRO, DRO-greedy: a step's coefficients sum to 1, whichever clusters are in it"
    )
    alpha: float = option(0.25, "iDRO: power of the losses; DRO-greedy: share of the data that weighs most")
    ema: float = option(0.1, "iDRO: power of the old weights; DRO-greedy: decay of the running means")
    rho: float = option(0.05, "iDRO: step size of the weights")
    eps: float = option(0.01, "the least weight of a cluster; with iDRO above 0")
    idro_layers: int = option(0, "last layers that gradients are compared over; 0: by --model_size")
    idro_sketch_dim: int = option(0, "numbers a cluster's gradient is projected to before exchange; 0: exact")
    logging_steps: int = option(10, "steps between log entries")
    gradient_checkpointing: bool = option(False, "compute layers twice rather than keep their activations")
    save_steps: int = option(0, "steps between checkpoints; 0: only at the end of the episode")
    save_total_limit: int = option(0, "newest checkpoints of the episode that are kept, its last one too; 0: all")
    max_skipped_steps: int = option(50, "steps in a row whose gradient is not finite, after which training gives up")
    log_dir: str = option("", "TensorBoard folder (default: output_dir/logs)")
    seed: int = option(42, "seed of dropout")

    def __post_init__(self) -> None:
        self.training_dir = self.training_dir or self.output_dir
        self.output_dir = self.output_dir or self.training_dir
        self.result_dir = self.result_dir or self.ann_dir
        self.init_model_dir = self.init_model_dir or self.model_name_or_path
        self.log_dir = self.log_dir or str(Path(self.output_dir, "logs"))
        if self.absent not in ("drop", "keep"):
            raise InputError(f"--absent is {self.absent!r}; it can be drop or keep")
        kind, keep = self.dro_type if self.group else "erm", self.absent == "keep"
        try:
            self.objective = objective_name(kind, keep_absent=keep, normalize=self.normalize_weights)
        except ValueError as error:
            flags = [f"--dro_type {self.dro_type}" if self.group else "--group 0"]
            flags += ["--absent keep"] * keep + ["--normalize_weights"] * self.normalize_weights
            raise InputError(f"{' '.join(flags)}: {error}") from None
        self.constants = {name: getattr(self, name) for name in ("alpha", "ema", "rho", "eps")}
        try:
            make_objective(self.objective, 1, **self.constants)
        except ValueError as error:
            raise InputError(f"--{error}") from None
        if self.loss not in LOSSES:
            raise InputError(f"--loss {self.loss!r} is unknown; there are {', '.join(LOSSES)}")
        self.follow = self.round == -1
        if self.round < -1:
            raise InputError(f"--round is {self.round}; an episode counts from 0, and -1 follows the newest")
        if self.follow and (self.max_steps or not (self.total_training_steps and self.save_steps)):
            raise InputError(
                "--round -1 wants --total_training_steps, where it ends, and --save_steps, without which there is "
                "nothing new to mine with, but no --max_steps: an episode has no set length"
            )
        if self.follow and self.save_total_limit == 1:
            raise InputError("--save_total_limit 1 and --round -1: the miner may be reading the checkpoint before")
        if self.total_training_steps is None:
            self.total_training_steps = TOTAL_TRAINING_STEPS
        if self.num_training_steps is None:
            self.num_training_steps = self.total_training_steps if self.follow else NUM_TRAINING_STEPS
        if self.n_groups < 0:
            raise InputError(f"--n_groups is {self.n_groups}; a number of clusters, or 0: as many as were mined with")
        if not self.training_dir:
            raise InputError("give --training_dir or --output_dir: where checkpoints are and go")
        self.batch_sizes = self.per_gpu_train_batch_size, self.gradient_accumulation_steps
        if self.attention_dropout is not None and not 0 <= self.attention_dropout < 1:
            raise InputError(f"--attention_dropout is {self.attention_dropout}; a share from 0 to below 1 is needed")
        if not self.triplet:
            raise InputError("--triplet false: mined files hold triplets only")
        check_at_least_one(
            self,
            *("per_gpu_train_batch_size", "gradient_accumulation_steps", "logging_steps"),
            *("max_skipped_steps", "num_training_steps", "total_training_steps"),
        )
