"""What a run trains: a model and its tasks, of a data set or of anybody's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from engine import data, meta, scoring
from engine.config import Config
from engine.data import Dataset
from engine.data.preparation import Preparation
from engine.episodes import Episode, EpisodeSampler, Source
from engine.errors import UserError, say
from engine.fingerprints import Fingerprint
from engine.meta import State
from engine.methods.rates import by_tensor
from engine.models import network
from engine.models.interface import Model
from engine.models.module import Module
from engine.models.shareable import bound_to_threads, require_shareable
from engine.runs import seen
from engine.runs.details import details
from engine.runs.seen import Seen
from engine.scoring import Score, StepAccuracy

# The classes of a data set are divided, and the stand-in is drawn, the same for every run: two
# runs, whatever their seeds, are tested on classes that neither has seen.
SPLIT_SEED = 0


class Tested(NamedTuple):
    result: dict[str, Any]  # for result.json
    details: dict[str, Any] | None  # for details.json; None: there is no more to tell


class Problem(Protocol):
    """By a configuration, of which it may need the network, the task or the evaluation."""

    name: str  # of the data, for people
    identity: str  # of data and network: a run continues with no other

    metric: str  # accuracy, or loss: a score is then its negative
    own_model: Model | None  # where it is not the network of the configuration
    # Of tasks and a loss that the identity knows nothing of.
    fingerprints: Mapping[str, Fingerprint]

    def seen(self, before: Seen | None) -> Seen | None:
        """Classes that a training sees, and those that its first weights have seen; of the latter
        those are told of that are to test it. None where classes have no names.
        """

    def bound(self, cfg: Config) -> tuple[str, ...]:
        """Settings that a run keeps, though they are free for others."""

    def names(self, cfg: Config) -> tuple[str, ...]:
        """Of the adapted tensors."""

    def rates(self, cfg: Config, state: State) -> list[list[float]]:
        """The inner rate of each, or the mean of its numbers' rates, at each step; one for all
        steps where all have the same."""

    def preparation(self, cfg: Config) -> Preparation | None:
        """How a picture becomes what the network sees; None if that is not ours."""

    def layout(self, cfg: Config) -> State:
        """Shapes and dtypes of a state, without values."""

    def source(self, cfg: Config, part: str, seed: int) -> Source: ...

    def validate(
        self, cfg: Config, state: State, between: Callable[[], None]
    ) -> tuple[Score, StepAccuracy]:
        """The score of an epoch, the more the better, and what it is after each inner step."""

    def test(self, cfg: Config, members: dict[int, State], between: Callable[[], None]) -> Tested:
        """What is saved of the final test of states by epoch, best on validation first."""


class Pictures(NamedTuple):
    """The engine's own network on a data set: what the command line trains."""

    dataset: Dataset

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def identity(self) -> str:
        return self.dataset.identity

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def own_model(self) -> None:
        return None

    @property
    def fingerprints(self) -> Mapping[str, Fingerprint]:
        return {}

    def preparation(self, cfg: Config) -> Preparation:
        data, binary = self.dataset, cfg.dataset == "omniglot"
        return Preparation(cfg.image_size, cfg.channels, binary, data.scale, data.mean, data.std)

    def seen(self, before: Seen | None) -> Seen:
        seen.tell(before, self.dataset.banks["test"].names, "test")
        return seen.of(self.dataset, before)

    def bound(self, cfg: Config) -> tuple[str, ...]:
        model = network(cfg)
        many = isinstance(model, Module) and bound_to_threads(model, self._task(cfg))
        return ("threads",) if many else ()

    def require_shareable(self, cfg: Config, own: int) -> None:
        """Raises UserError where the bits of tasks, so many a rank, depend on the number of
        ranks."""
        if isinstance(model := network(cfg), Module):
            require_shareable(model, self._task(cfg), own, cfg.threads)

    def _task(self, cfg: Config) -> Episode:
        return self.source(cfg, "train", cfg.seed).episode(0, 1)

    def names(self, cfg: Config) -> tuple[str, ...]:
        return tuple(network(cfg).shapes)

    def rates(self, cfg: Config, state: State) -> list[list[float]]:
        return by_tensor(state.params.rates, network(cfg).sizes).T.tolist()

    def layout(self, cfg: Config) -> State:
        return meta.layout(cfg)

    def source(self, cfg: Config, part: str, seed: int) -> EpisodeSampler:
        return EpisodeSampler.of(cfg, self.dataset, part, seed, evaluation=part != "train")

    def validate(
        self, cfg: Config, state: State, between: Callable[[], None]
    ) -> tuple[Score, StepAccuracy]:
        return scoring.validate(cfg, state, self.dataset, between=between)

    def test(self, cfg: Config, members: dict[int, State], between: Callable[[], None]) -> Tested:
        states, tasks = [*members.values()], cfg.eval_tasks
        found = scoring.predictions(cfg, states, self.dataset, "test", tasks, between=between)
        result = scoring.summary(cfg, [*members], self.dataset, "test", found)
        more = details(cfg, members, self.dataset, "test", found, result, between)
        return Tested(result, more)


def load_dataset(
    cfg: Config, *parts: str, preparation: Preparation | None = None, evaluation: bool = False
) -> Dataset:
    """The data, its notice shown; its parts checked, so that none fails only when it is needed:
    train for training, unless all are for ``evaluation``. ``preparation``: that of a network which
    was trained on another kind of data."""
    dataset = data.load(
        cfg.dataset,
        cfg.data,
        image_size=cfg.image_size,
        channels=cfg.channels,
        split=cfg.split,
        seed=SPLIT_SEED,
        strict=cfg.strict_data,
        cache=cfg.cache,
        split_ratio=cfg.split_ratio,
        skip_small=cfg.skip_small_classes,
        preparation=preparation,
    )
    if dataset.notice:
        say("", *dataset.notice.splitlines(), "")
    say(*(f"{dataset.name}: {note}" for note in dataset.notes))
    wanted = [cfg.image_size, cfg.image_size, cfg.channels]
    wrong = []
    for part in parts:
        try:
            for note in EpisodeSampler.of(
                cfg, dataset, part, 0, evaluation or part != "train"
            ).notes:
                say(f"{dataset.name}: {note}")
        except UserError as error:
            wrong.append(error)
            continue
        found = list(dataset.banks[part].images.shape[1:])
        if found != wanted:
            raise UserError(
                f"images of {dataset.name} ({part}) are {found}, the network takes {wanted} "
                "(height, width, channels); give --image-size and --channels in training, or other "
                "--data"
            )
    if wrong:
        raise UserError("; ".join(map(str, wrong)))
    return dataset
