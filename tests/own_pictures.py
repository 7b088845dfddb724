"""Pictures of one's own through the command lines, against the evaluation of the same tasks.

    python -m tests.own_pictures 200

A network is trained for a few iterations on Caltech-101. Then each of so many test tasks, as
``python -m engine.evaluate RUN --protocol inductive`` draws them, is asked as anybody would ask:
its support pictures are put into a folder a class, ``python -m engine.adapt`` adapts to them and
``python -m engine.predict`` labels its targets. In each both must have the same accuracy.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from engine import adapt, evaluate, predict, train
from engine.config import Config
from engine.data import Dataset
from engine.data.layout import split_folders
from engine.data.tree import open_tree
from engine.episodes import EpisodeSampler
from engine.runs.problem import load_dataset
from engine.runs.saved import load_best
from engine.scoring import TASK_SEED
from tests.golden import shared_folder

FLAGS = (
    "--dataset folder --image-size 84 --filters 8 --ways 5 --shots 1 --targets 5 --steps 3 "
    "--epochs 1 --iterations 60 --lr 0.003 --first-order-epochs 1 "
    "--eval-tasks 2 --ensemble 1 --device cpu"
).split()


class Asked:
    """Tasks drawn from the test classes of an archive, and a network trained on the others."""

    def __init__(self, place: Path, archive: Path, more: tuple[str, ...] = ()):
        self.place, self.run, self.archive = place, place / "run", archive
        paths = "--data", archive, "--run", self.run
        assert train.main([*FLAGS, *map(str, paths), *more]) == 0
        trained = Config.from_dict(load_best(self.run)[0].config)
        self.cfg = dataclasses.replace(trained, data=str(archive))
        self.dataset: Dataset = load_dataset(self.cfg)
        self.tree = open_tree(archive)
        classes, _, _ = split_folders(self.tree)
        # as they lie in the bank
        self.names = [n for _, names in sorted(classes["test"].items()) for n in names]

    def evaluated(self, tasks: int) -> list[int]:
        """How many targets of each task engine.evaluate has right."""
        file = self.place / "evaluation.json"
        flags = f"--protocol inductive --eval-tasks {tasks} --device cpu --json {file}".split()
        with contextlib.redirect_stdout(io.StringIO()):
            assert evaluate.main([str(self.run), "--data", str(self.archive), *flags]) == 0
        found = json.loads(file.read_text())
        shares = found["best"]["by_task"]
        assert (found["protocol"], len(shares)) == ("inductive", tasks)
        hits = [round(share * self.targets) for share in shares]
        assert sum(hits) == round(found["best"]["accuracy"] * self.targets * tasks)
        return hits

    @property
    def targets(self) -> int:
        return self.cfg.ways * self.cfg.targets

    def asked(self, tasks: int) -> list[int]:
        """How many the command lines have right, of one task after the other."""
        drawn = EpisodeSampler.of(self.cfg, self.dataset, "test", seed=TASK_SEED).draw(0, tasks)
        with contextlib.redirect_stdout(io.StringIO()):
            return list(map(self._one, drawn.rows))

    def _one(self, rows: np.ndarray) -> int:  # [ways, shots + targets]
        shots, folder = self.cfg.shots, self.place / "task"
        shutil.rmtree(folder, ignore_errors=True)
        # By the order of the classes outputs are theirs, here and in the evaluation.
        self._put(folder / "support", rows[:, :shots])
        self._put(folder / "targets", rows[:, shots:])
        saved, table = str(folder / "pets.pt"), str(folder / "answers.csv")
        assert adapt.main([str(self.run), str(folder / "support"), "-o", saved]) == 0
        assert predict.main([saved, str(folder / "targets"), "--csv", table]) == 0
        with open(table, newline="", encoding="utf-8") as file:
            answers = list(csv.DictReader(file))
        assert len(answers) == rows[:, shots:].size
        return sum(Path(a["path"]).parent.name == a["label"] for a in answers)

    def _put(self, folder: Path, rows: np.ndarray) -> None:
        """Each class in a folder, the files as they are."""
        for c, images in enumerate(rows):
            (folder / f"class {c}").mkdir(parents=True)
            for n, row in enumerate(images):
                content = self.tree.read(self.names[row])
                (folder / f"class {c}" / f"{n}.jpg").write_bytes(content)


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    archive = shared_folder("DATA_DIR") / "caltech101_84.zip"
    with tempfile.TemporaryDirectory() as place:
        both = Asked(Path(place), archive)
        asked, evaluated, all_ = both.asked(tasks), both.evaluated(tasks), both.targets * tasks
    print(f"{tasks} tasks: {sum(asked)} of {all_} right as asked, {sum(evaluated)} as evaluated")
    assert asked == evaluated


if __name__ == "__main__":
    main()
