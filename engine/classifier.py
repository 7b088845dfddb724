"""``FewShotClassifier``: a trained network that learns classes of one's own from a few pictures.

    clf = FewShotClassifier.load("runs/mini-5w1s-maml++-seed0").fit_folder("pets")
    clf.predict(["who.jpg"])

It is an estimator as scikit-learn's are, and needs nothing of scikit-learn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import kernels
from engine.allowed import PATH, check, check_type
from engine.combinations import refuse_without_effect
from engine.config import Config
from engine.data import pictures
from engine.errors import UserError, as_arguments
from engine.models.interface import Model
from engine.runs import adapted
from engine.runs.adapted import Adapted, Classifier, moved
from engine.runs.adapting import adapt, one_by_one, predictor, together
from engine.runs.learned import Learned, learned_from
from engine.runs.packed import pack
from engine.runtime.machine import machine, settled
from engine.tasks import refuse_missing


class FewShotClassifier:
    """Classes are learned by the inner loop of a trained run, from ``fit``'s pictures.

    source: a run folder, a checkpoint, what ``save`` wrote, or the name of a network that comes
    with the package (engine/weights/README.md).
    ensemble: average the logits of all the best epochs that a run folder keeps, instead of taking
    the best one. What ``save`` wrote has the networks that it was made with, whatever is said here.
    steps: inner steps (None: as the run is evaluated). norm_statistics: what normalises, the
    "batch" or "running" statistics (None: as the run is evaluated).
    transductive: by batch statistics, the pictures of one call normalise each other, as in the
    authors' code. Else those of the support pictures normalise, and an answer is the same to the
    bit whatever is asked with it, as by running statistics always.
    device, threads, backend, precision: as of ``engine.train`` (precision None: the run's).

    The loss of the inner loop is the mean of the cross-entropy over all support pictures, as in
    training: a class with more pictures has more weight. A task with fewer classes than the network
    has outputs takes the first outputs, one a class in sorted order, and the others are left out of
    the loss, too: they would be classes without a picture, and the first steps would go into
    pushing them down. With as many classes as outputs it is what ``engine.evaluate`` does by the
    same statistics and protocol, but for protonet and matching, transductive by batch statistics:
    there both sets of a task normalise each other, here each itself. A run of protonet, matching,
    protomaml, siamese, memory or statistician makes its classifier of the support pictures, for any
    number of classes.

    Pictures are a list of paths, PIL images and arrays ([H, W], [H, W, C], [C, H, W]), or one array
    or tensor of [N, H, W], [N, H, W, C] or [N, C, H, W]; whole numbers from 0 to 255 or fractions
    from 0 to 1, of any size. They are prepared as those of the training. Methods raise UserError
    for a mistake, in one line.
    """

    _estimator_type = "classifier"  # for scikit-learn before 1.6
    by_flags = False  # whether messages are for a command line

    def __init__(
        self,
        source: str | os.PathLike | None = None,
        *,
        ensemble: bool = False,
        steps: int | None = None,
        norm_statistics: str | None = None,
        transductive: bool = False,
        device: str = "auto",
        threads: int = 0,
        backend: str = "auto",
        precision: str | None = None,
    ):
        self.source = source
        self.ensemble = ensemble
        self.steps = steps
        self.norm_statistics = norm_statistics
        self.transductive = transductive
        self.device = device
        self.threads = threads
        self.backend = backend
        self.precision = precision

    @classmethod
    def load(cls, source: str | os.PathLike, **options: Any) -> FewShotClassifier:
        """One whose source is read now; fitted, if the source is what ``save`` wrote. ``options``
        as of the class."""
        made = cls(source, **options)
        learned = made._learned()
        if learned.classes is not None:
            made.classes_ = np.array(learned.classes)
            made._fitted = learned, learned.adapted
        return made

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapts to pictures X and their labels y, of any kind that can be sorted."""
        learned = self._learned()
        given = pictures.several(X, learned.preparation)
        classes, labels = _labels(y, learned, len(given))
        images = pictures.decoded(given, learned.preparation)
        order = np.argsort(
            labels, kind="stable"
        )  # as in episodes: some methods read a set in order
        images, labels = images[order], labels[order]
        with self._told():
            cfg = self._config(learned)
        with self._running(cfg) as device:
            model = _model(cfg, device, learned, len(classes))
            x = learned.preparation.seen(images).to(device)[None]
            y = torch.from_numpy(labels).to(device)[None]
            found = [adapt(cfg, model, m, x, y) for m in learned.members]
        found = [moved(entry, "cpu") for entry in found]
        _refuse_diverged(found, cfg)
        self.classes_, self._fitted = classes, (learned._replace(cfg=cfg), found)
        return self

    def fit_folder(self, path: str | os.PathLike) -> FewShotClassifier:
        """Adapts to the pictures of a folder, zip or tar archive of ``<class>/<image>``; what else
        is there is left out, and ``notes_`` says what, a line each."""
        check("path", os.fspath(path), PATH)
        found = pictures.labelled(Path(path).expanduser())
        with of_folder(path):
            self.fit(found.pictures, found.labels)
        self.notes_ = found.notes
        return self

    def predict(self, X: Any) -> np.ndarray:  # [N]
        """The label of each picture."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:  # float64 [N, classes]
        """The probability of each label, in the order of ``classes_``."""
        return self.probabilities(pictures.prepared(X, self.fitted.preparation))

    def probabilities(
        self,
        images: np.ndarray,  # uint8 [N, size, size, channels], prepared
    ) -> np.ndarray:  # float64 [N, classes]
        """As ``predict_proba``, of pictures that are prepared; of an ensemble by the mean of the
        logits."""
        learned, found = self.fitted, self._fitted[1]
        check_type("transductive", self.transductive, "bool")
        with self._told():
            cfg = dataclasses.replace(learned.cfg, **self._machine())
        with self._running(cfg) as device:
            model = _model(cfg, device, learned, adapted.outputs(cfg, found[0].theta))
            whole = self.transductive and cfg.norm_statistics == "batch"
            answer = together if whole else one_by_one
            x, count = learned.preparation.seen(images).to(device), len(self.classes_)
            members = [
                answer(model, predictor(cfg, model, member, count), moved(a, device), x)
                for member, a in zip(learned.members, found, strict=True)
            ]
            logits = torch.stack(members).mean(0)
        logits = logits.cpu().numpy().astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(
                "the network's answers are not finite: give a network that was trained to its end"
            )
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of pictures whose label is right, weighted if weights are given."""
        labels, found = np.asarray(y), self.predict(X)
        if labels.shape != found.shape:
            raise UserError(
                f"y is {list(labels.shape)}: give {len(found)} labels, one for each picture of X"
            )
        right = found == labels
        return float(np.average(right, weights=sample_weight))

    def save(self, path: str | os.PathLike) -> None:
        """Writes what is needed to go on elsewhere, and ``load`` reads: the network as trained and
        as adapted, the classes and the preparation, but no picture and no path of this machine.
        Labels are texts, whole numbers, numbers or truth values."""
        learned, found = self.fitted, self._fitted[1]
        content = Classifier(
            config=learned.cfg.without_paths().to_dict(),
            data_name=learned.data_name,
            precisions=learned.precisions,
            preparation=learned.preparation.to_dict(),
            classes=self.classes_.tolist(),
            members=[pack(member) for member in learned.members],
            adapted=[pack(entry) for entry in found],
        )
        adapted.save(Path(path), content)

    @property
    def fitted(self) -> Learned:
        """What it was fitted from. Raises UserError while it is not."""
        if not self.__sklearn_is_fitted__():
            raise UserError("it knows no classes yet: call fit or fit_folder first")
        return self._fitted[0]

    def _learned(self) -> Learned:
        """What the source holds, read once."""
        check_type("ensemble", self.ensemble, "bool")
        asked = self.source, self.ensemble
        if getattr(self, "_read", (None,))[0] != asked:
            self._read = asked, learned_from(*asked)
        return self._read[1]

    def _config(self, learned: Learned) -> Config:
        """Of the run, with the settings that are given here."""
        given = {"eval_steps": self.steps, "norm_statistics": self.norm_statistics}
        given = {name: value for name, value in given.items() if value is not None}
        cfg = dataclasses.replace(learned.cfg, **given, **self._machine())
        refuse_without_effect(cfg, given, vars(learned.cfg))
        return cfg

    @contextlib.contextmanager
    def _running(self, cfg: Config) -> Iterator[torch.device]:
        with contextlib.ExitStack() as stack:
            with self._told():
                device = stack.enter_context(machine(cfg))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(kernels.only_kernels())
            yield device

    def _told(self) -> contextlib.AbstractContextManager[None]:
        """Has errors of the block name the arguments of this class."""
        return contextlib.nullcontext() if self.by_flags else as_arguments(eval_steps="steps")

    def _machine(self) -> dict[str, Any]:
        given = {"device": self.device, "threads": self.threads, "backend": self.backend}
        return given | ({} if self.precision is None else {"precision": self.precision})

    # What scikit-learn asks of an estimator.

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> FewShotClassifier:
        """Takes other arguments; those of the inner loop have an effect from the next fit on."""
        if unknown := params.keys() - {*self._names()}:
            raise UserError(
                f"FewShotClassifier has no {', '.join(sorted(map(str, unknown)))}: it has "
                f"{', '.join(self._names())}"
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
        )

    def __repr__(self) -> str:
        default = type(self)()
        given = {n: v for n, v in self.get_params().items() if v != getattr(default, n)}
        return f"FewShotClassifier({', '.join(f'{n}={v!r}' for n, v in given.items())})"


@contextlib.contextmanager
def of_folder(path: str | os.PathLike) -> Iterator[None]:
    """Has what ``fit`` says of its ``y`` name the folder that the labels are of."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("y "):
            raise UserError(f"{os.fspath(path)} {str(error)[2:]}") from error
        raise


def _labels(y: Any, learned: Learned, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted classes, and int64 [N] of each label its place among them."""
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    if isinstance(y, (list, tuple)) and len({isinstance(label, str) for label in y}) > 1:
        raise UserError("y mixes texts and other labels: give labels of one kind")
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise UserError(f"y is of shape {list(labels.shape)}: give one label a picture, [N]")
    if len(labels) not in (0, count):
        raise UserError(f"X has {count} pictures and y {len(labels)} labels: give as many")
    refuse_missing(labels)
    try:
        classes, places = np.unique(labels, return_inverse=True)
    except TypeError:
        raise UserError("y has labels that cannot be sorted: give labels of one kind") from None
    if len(classes) < 2:
        one = f"the class {classes[0]!s} alone" if len(classes) else "no label"
        raise UserError(f"y has {one}: give pictures of two classes or more")
    if len(classes) > learned.cfg.ways and not learned.cfg.any_ways:
        raise UserError(
            f"y has {len(classes)} classes, the network {learned.cfg.ways} outputs: give at most "
            f"so many, or train one with --ways {len(classes)} (--init takes over what this one "
            "has learned)"
        )
    return classes, places.astype(np.int64)


def _model(cfg: Config, device: torch.device, learned: Learned, classes: int) -> Model:
    return adapted.network(settled(cfg, device, learned.precisions), classes)


def _refuse_diverged(found: list[Adapted], cfg: Config) -> None:
    if not all(t.isfinite().all() for a in found for t in (a.theta, *a.statistics)):
        raise UserError(
            f"the parameters are not finite after {cfg.eval_steps or cfg.steps} inner steps on "
            "these pictures: give fewer steps, or a network that was trained to its end"
        )
