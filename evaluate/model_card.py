"""Writes a checkpoint's model card: the README.md that the Hugging Face hub shows and takes its metadata from.

    python evaluate/model_card.py --checkpoint runs/demo/saved_models/checkpoint-80 --run_dir runs/demo --license mit

What stands in it is read from the run: its settings, the sizes of its token stores, and this checkpoint's metrics
from results/results.json, which the metadata carries too, as the hub shows them (model-index). A checkpoint that was
not evaluated says so. How vectors are made and compared is what the checkpoint's own files declare. Whatever the run
does not know is left out rather than guessed: the names that its data and its initial checkpoint have on the hub, and
the license, which follows from theirs; whoever publishes can tell.

Names come from folders and settings that anybody may have named. In the text they stand as code, where neither
Markdown nor HTML is read; in the metadata huggingface_hub writes them as YAML strings. Of a path only the last
folder's name is shown.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from evaluate.metrics_file import COLLAPSED, RunMetrics
from evaluate.reporting.loading_program import transformers_program
from evaluate.reporting.objectives import in_sentences, name_of
from evaluate.reporting.tables import markdown
from model.reading import HEAD_LAYERS, HeadLayer, Reading, declared_lengths, declared_reading
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.runtime.plain_text import printable, without_folders
from utils.stores.episode import METRICS
from utils.stores.files import atomic_file, read_json
from utils.stores.pretrained import pretrained_config
from utils.stores.run_folder import RunFolder
from utils.stores.sentence_modules import read_modules
from utils.stores.token_store import TokenStore

LICENSES = Path(__file__).with_name("licenses.txt")  # of https://huggingface.co/docs/hub/repositories-licenses
STORES = {"passages": "passages", "train-query": "training queries", "dev-query": "dev queries"}
OTHER_LICENSE = (
    "The license field says `other`: the weights inherit the terms of the checkpoint that training began with and of "
    "the data, and nobody has said yet which those are."
)


@dataclass
class Arguments:
    checkpoint: str = required("the folder that gets README.md")
    run_dir: str = required("the run of commands/run_ance.sh that it is from")
    license: str = option("other", "the hub's identifier of the license, like apache-2.0")
    hub_name: str = option("", "USER/NAME, under which the checkpoint will be on the hub, for the examples")
    base_model: str = option("", "the initial checkpoint's name on the hub (default: the run's, where it is one)")
    datasets: list[str] = field(default_factory=list, metadata={"help": "the training data's names on the hub"})

    def __post_init__(self) -> None:
        if self.license not in LICENSES.read_text(encoding="utf-8").splitlines():
            raise InputError(
                f"--license {self.license!r} is no identifier of the hub's list ({LICENSES}), like mit or "
                "apache-2.0; of a license that is not there, say other, and name it in the card"
            )
        for flag, name in (("hub_name", self.hub_name), ("base_model", self.base_model)):
            if name and not is_hub_name(name):
                raise InputError(f"--{flag} {name!r} is no name on the hub, which is like USER/NAME")
        for name in self.datasets:
            if not is_hub_name(name):
                raise InputError(f"--datasets {name!r} is no name on the hub, which is like USER/NAME")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself: its vectors' size, how it is read, and its lengths in tokens.

    `head` has the layers of a published type, too, which are not in its reading.
    """

    dimensions: int
    reading: Reading
    head: tuple[HeadLayer, ...]
    passage_length: int
    query_length: int

    @classmethod
    def of(cls, path: Path) -> "Checkpoint":
        """`InputError` where it is no checkpoint of this project."""
        name = str(path)
        reading, lengths = declared_reading(name), declared_lengths(name)
        if reading is None or lengths is None:
            raise InputError("does not say how it is read; is it one of this project's checkpoints?", path)
        head = tuple(HEAD_LAYERS[module.kind](module) for module in read_modules(name) if module.kind in HEAD_LAYERS)
        return cls(head[-1].out_features if head else pretrained_config(name).hidden_size, reading, head, *lengths)


def loss_of(run: RunFolder) -> str:
    """A sentence about what a query's positive was compared with; a version before losses by name has but one."""
    if run.settings.get("LOSS", "pairwise") == "pairwise":
        return "A query's positive was compared with one negative at a time."
    size = code(run.setting("QUERIES_TOGETHER"))
    return (
        f"A query's positive was compared with the passages of a block of up to {size} queries at once (InfoNCE, "
        "[arXiv:1807.03748](https://arxiv.org/abs/1807.03748))."
    )


def objective_of(run: RunFolder) -> str:
    """Sentences about what was weighed, and how."""
    groups = run.settings.get("QUERY_GROUPS", "clusters")  # a version before groups by name has none
    return in_sentences(name_of(run), "cluster" if groups == "clusters" else "named group")


def is_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def code(text: str) -> str:
    """The text as a code span, which a table's cell may hold too; of what would end either, a look-alike."""
    shown = printable(text).replace("`", "'").replace("|", "¦")
    return f"`{shown}`" if shown else "none"


def table(rows: list[list[str]]) -> str:
    return markdown(rows, numbers=False).strip()


def base_model(run: RunFolder) -> str | None:
    """The initial checkpoint's name on the hub; None where it was a folder."""
    name = run.setting("CHECKPOINT")
    is_folder = Path(name).is_absolute() or (run.path / name).exists()
    return name if not is_folder and is_hub_name(name) else None


def read_metrics_of(checkpoint: Path, results: Path, initial: str) -> list[tuple[str, RunMetrics]]:
    """(split, metrics) of this checkpoint on each collection, from results.json; none where it was not evaluated.

    A run that was moved is still found: of the checkpoint's path, the names of the two last folders count. The row of
    the `initial` checkpoint, which may be called alike, is another's.
    """
    if not results.exists():
        return []
    own = checkpoint.resolve().parts[-2:]
    found: list[tuple[str, RunMetrics]] = []
    try:
        for row in read_json(results)["rows"]:
            dev, zero_shot = RunMetrics(**row["dev"]), [RunMetrics(**metrics) for metrics in row["zero_shot"]]
            zero_shot = [RunMetrics(**row["test"]), *zero_shot] if row.get("test") else zero_shot
            if dev.checkpoint not in (None, initial) and Path(dev.checkpoint).parts[-2:] == own:
                found = [("dev", dev), *(("test", metrics) for metrics in zero_shot)]
        for _, metrics in found:
            if not all(isinstance(value, float | int) for value in metrics.metrics.values()):
                raise TypeError(f"a metric of {metrics.collection!r} is no number")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"is not what evaluate/results_table.py writes ({error}); make it again", results) from None
    return found


def eval_results(metrics: list[tuple[str, RunMetrics]]) -> list[EvalResult]:
    """The same as the hub reads it. A collection is told by `dataset_config`: its name on the hub is not known."""
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type="unknown",
            dataset_name=printable(on.collection),
            dataset_config=printable(on.collection),
            dataset_split=split,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 5),
        )
        for split, on in metrics
        for name, value in on.metrics.items()
    ]


def metadata(args: Arguments, run: RunFolder, name: str, metrics: list[tuple[str, RunMetrics]]) -> ModelCardData:
    """What the hub filters and shows by; None is left out."""
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        license=args.license,
        tags=["sentence-transformers", "feature-extraction", "dense-retrieval", "ance"],
        base_model=args.base_model or base_model(run),
        datasets=args.datasets or None,
        model_name=name,
        eval_results=eval_results(metrics) or None,
    )


def loading(checkpoint: Checkpoint, path: str) -> str:
    """Both ways to load the checkpoint, as programs that run in its folder, or anywhere by its name on the hub."""
    reading = checkpoint.reading
    comparison = (
        "Vectors have length 1 and are compared by cosine, which is then their dot product."
        if reading.normalized
        else "Vectors are compared by dot product; they are not of length 1."
    )
    return f"""{comparison} They are read by: {code(str(reading))}.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
queries = model.encode_query(["how do I sort a list"])
passages = model.encode_document(["Return a new sorted list."])
print(model.similarity(queries, passages))
```

The same with transformers alone:

```python
{transformers_program(reading, checkpoint.head, path, checkpoint.query_length, checkpoint.passage_length)}
```

transformers may warn of weights that it leaves aside, and of a `pooler` that starts at random: it is not used."""


def data_table(run: RunFolder) -> str:
    rows = [["", "texts", "tokens of a text at most", "file"]]
    for name, label in STORES.items():
        meta = TokenStore(run.tokens / name).meta
        rows.append([label, f"{meta.rows:,}", f"{meta.max_length:,}", code(meta.source_file)])
    return table(rows)


def metrics_table(metrics: list[tuple[str, RunMetrics]], mixed_precision: bool) -> str:
    if not metrics:
        return "This checkpoint was not evaluated: no metrics are known."
    names = [name for name in METRICS if any(name in on.metrics for _, on in metrics)]
    rows = [["collection", "split", "queries", *names]]
    for split, on in metrics:
        values = [f"{on.metrics[name]:.4f}" if name in on.metrics else "-" for name in names]
        collapsed = f" {COLLAPSED}" if on.collapsed else ""
        rows.append([f"{code(on.collection)}{collapsed}", split, f"{on.queries:,}", *values])
    encoded = " Texts were encoded in mixed precision, which moves a metric a little." if mixed_precision else ""
    return f"""{table(rows)}

Measured by trec_eval's code on exact search over the whole collection.{encoded} The *dev* queries ask of the training
collection and were not trained on; those of split *test* ask of other collections."""


def body(
    args: Arguments, run: RunFolder, name: str, checkpoint: Checkpoint, metrics: list[tuple[str, RunMetrics]]
) -> str:
    settings = [["setting", "value"], *([code(k), code(without_folders(v))] for k, v in run.settings.items())]
    license = OTHER_LICENSE if args.license == "other" else f"The license is {code(args.license)}."
    initial = args.base_model or run.setting("CHECKPOINT")
    scores = "cosines" if checkpoint.reading.normalized else "dot products"
    documents = run.setting("MODEL_TYPE") == "rdot_nll_multi_chunk"
    lengths = (
        f"A passage is read up to {checkpoint.passage_length:,} tokens, a query up to {checkpoint.query_length:,}"
    )
    limits = [
        f"{lengths}.",
        "A score orders the passages of one query. It is no probability, and scores of two queries do not compare.",
        "How good it is on texts and languages unlike those above is not known.",
    ]
    if checkpoint.query_length != checkpoint.passage_length:
        limits.append(
            "sentence-transformers before version 6 cannot load it: it knows no lengths of queries' and of passages' "
            "own. Without `query_length` and `document_length` in `sentence_bert_config.json` it can, and cuts both "
            "at the greater length."
        )
    if documents:
        limits.append(
            "In training and evaluation a document was cut into chunks, of which the best one scored. Loaded as "
            "above, the model encodes a document's beginning only."
        )
    if checkpoint.reading.query_prompt or checkpoint.reading.passage_prompt:
        limits.append("`encode_query` and `encode_document` put prompts before a text; plain `encode` does not.")
    if checkpoint.reading.lowercase:
        limits.append("Texts are lowercased before they are tokenized.")
    return f"""# {code(name)}

A dense retriever: a text becomes a vector of {checkpoint.dimensions} numbers, and the passages whose vectors have the
largest {scores} with a query's are its answers. It was trained from {code(without_folders(initial))} on hard
negatives from its own nearest neighbours (ANCE, [arXiv:2007.00808](https://arxiv.org/abs/2007.00808)).
{loss_of(run)}
{objective_of(run)}

## Load it

{loading(checkpoint, args.hub_name or ".")}

## Training data

{data_table(run)}

## Metrics

{metrics_table(metrics, run.setting("MIXED_PRECISION") == "1")}

## Settings

{table(settings)}

## Limits and license

{chr(10).join(f"- {limit}" for limit in limits)}

{license}
"""


def model_card(args: Arguments) -> ModelCard:
    """The card. Raises `InputError` where the folders are no checkpoint and no run."""
    run, path = RunFolder(Path(args.run_dir)), Path(args.checkpoint)
    checkpoint = Checkpoint.of(path)
    metrics = read_metrics_of(path, run.path / "results" / "results.json", run.setting("CHECKPOINT"))
    name = printable(args.hub_name or f"{run.path.resolve().name}/{path.resolve().name}")
    data = metadata(args, run, name, metrics)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body(args, run, name, checkpoint, metrics)}")


def main() -> None:
    args = parse(Arguments, __doc__)
    card = model_card(args)
    path = Path(args.checkpoint) / "README.md"
    with atomic_file(path) as handle:
        handle.write(str(card))
    say(f"model card: {path}")


if __name__ == "__main__":
    run(main)
