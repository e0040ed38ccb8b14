"""How many training steps a budget leaves after mining, from what mining and a few steps took."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from evaluate.benchmarks.watched_work import Work
from utils.runtime.errors import InputError


@dataclass(frozen=True)
class Costs:
    """What mining an episode costs and what training does: `fixed_seconds` and, a step, seconds and texts encoded.

    `tokenizing_seconds` are spent once, before the first episode.
    """

    tokenizing_seconds: float
    mining_seconds: float
    mining_texts: float
    fixed_seconds: float
    step_seconds: float
    step_texts: float

    @classmethod
    def of(cls, mining: Work, training: Work, steps: int, tokenizing: float = 0.0, not_counted: int = 0) -> "Costs":
        """From the work of an episode's mining and of a training of `steps` steps.

        Of the texts that mining encodes, `not_counted` are no part of it.
        """
        step = training.seconds_a_step(steps)
        fixed = max(0.0, training.seconds - steps * step)
        return cls(tokenizing, mining.seconds, mining.texts - not_counted, fixed, step, training.texts / steps)

    def seconds(self, steps: int, episodes: int = 1) -> float:
        """Of mining and training, `steps` steps in all."""
        return (
            self.tokenizing_seconds
            + episodes * (self.mining_seconds + self.fixed_seconds)
            + steps * self.step_seconds
        )

    def texts(self, steps: int, episodes: int = 1) -> float:
        """The texts encoded meanwhile."""
        return episodes * self.mining_texts + steps * self.step_texts

    def steps_within(self, budget: str, limit: float, episodes: int = 1) -> int:
        """The most steps, as many in each episode, of which `seconds` or `texts` are within the limit."""
        each = {"seconds": self.step_seconds, "texts": self.step_texts}[budget]
        left = limit - getattr(self, budget)(0, episodes)
        return max(0, int(left / each)) // episodes * episodes


@dataclass(frozen=True)
class Budgets:
    """The budgets that the library's costs make, and the contenders' costs, as they were measured in sittings.

    A contender's steps follow from the library's costs in its own sitting: whatever the machine was like then, both
    had it.
    """

    sittings: Sequence[tuple[Costs, Mapping[str, Costs]]]
    library_steps: int
    episodes: int

    @classmethod
    def read(cls, content: Sequence[dict], library_steps: int, episodes: int) -> "Budgets":
        """From what `as_json` gave of each sitting."""
        sittings = [
            (Costs(**one["library"]), {name: Costs(**costs) for name, costs in one["contenders"].items()})
            for one in content
        ]
        return cls(sittings, library_steps, episodes)

    @property
    def library(self) -> Costs:
        """The library's costs as they were first measured."""
        return self.sittings[0][0]

    def costs(self, name: str) -> Costs:
        """A contender's costs."""
        return next(of_names[name] for _, of_names in self.sittings if name in of_names)

    @property
    def names(self) -> list[str]:
        """The contenders whose costs are known, in the order in which they were measured."""
        return [name for _, of_names in self.sittings for name in of_names]

    def seconds(self, name: str, steps: int) -> float:
        """What mining and so many steps take a contender, or, of a name that is not known, the library."""
        return self.costs(name).seconds(steps, self.episodes) if name in self.names else self.library.seconds(steps)

    def most_steps(self, budget: str, name: str) -> int:
        """A contender's steps under a budget; 0 where mining alone takes all of it."""
        library, costs = next((library, names[name]) for library, names in self.sittings if name in names)
        return costs.steps_within(budget, getattr(library, budget)(self.library_steps), self.episodes)

    def steps(self, budget: str, name: str) -> int:
        """Likewise; `InputError` where there would be none."""
        steps = self.most_steps(budget, name)
        if not steps:
            raise InputError(f"the budget of {budget} leaves {name} no step after mining; give more --steps")
        return steps


def as_json(library: Costs, contenders: Mapping[str, Costs]) -> dict:
    """A sitting as `Budgets.read` reads it."""
    return {"library": asdict(library), "contenders": {name: asdict(costs) for name, costs in contenders.items()}}
