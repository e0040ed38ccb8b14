"""What a run's objective is called, and what its report and its model card say of it."""

from model.dro import objective_name
from utils.runtime.errors import InputError
from utils.stores.run_folder import RunFolder

IN_SHORT = {  # by kind; {} is what is weighed: cluster, named group
    "idro": "{}s re-weighted by iDRO",
    "dro-greedy": "{}s re-weighted by DRO-greedy",
    "balanced": "{}s alike in every step",
    "erm": "all queries alike (ERM)",
}
SENTENCES = {
    "idro": "The {}s of the training queries were re-weighted by iDRO (COCO-DR, "
    "[arXiv:2210.15212](https://arxiv.org/abs/2210.15212)).",
    "dro-greedy": "The {}s of the training queries were re-weighted by DRO-greedy (after "
    "[arXiv:1911.08731](https://arxiv.org/abs/1911.08731)).",
    "balanced": "In every step, all {}s of the training queries that were in it counted alike.",
    "erm": "All training queries counted alike (ERM).",
}
OPTIONS = {
    "keep": "A {} that was absent from a step kept its weight.",
    "normalized": "The weights of a step's queries were scaled to a sum of 1.",
}


def name_of(run: RunFolder) -> str:
    """The name of the run's objective, one of `model.dro.OBJECTIVES`; `InputError` where its settings are of none.

    A version before options has no settings of them.
    """
    kind, absent = run.setting("OBJECTIVE"), run.settings.get("ABSENT", "drop")
    normalize = run.settings.get("NORMALIZE_WEIGHTS", "0")
    if absent not in ("drop", "keep") or normalize not in ("0", "1"):
        raise InputError(
            f"ABSENT is {absent!r} and NORMALIZE_WEIGHTS {normalize!r} in settings.*; they were altered", run.path
        )
    try:
        return objective_name(kind, keep_absent=absent == "keep", normalize=normalize == "1")
    except ValueError as error:
        raise InputError(f"settings.* there were altered: {error}", run.path) from None


def in_short(name: str, kind: str) -> str:
    """Words for the report's head; `kind` is what is weighed, in the singular. The name too where it has options."""
    return IN_SHORT[name.split("+")[0]].format(kind) + (f" ({name})" if "+" in name else "")


def in_sentences(name: str, kind: str) -> str:
    """Sentences for the model card, in Markdown."""
    objective, *options = name.split("+")
    return " ".join(text.format(kind) for text in (SENTENCES[objective], *(OPTIONS[option] for option in options)))
