"""A folder of pictures end to end: train on its classes, teach the network new ones, ask it.

    python -m engine.examples.own_folder FOLDER NEW PICTURES [flags of engine.train]

FOLDER has <split>/<class>/<image>, or <class>/<image> with --split-ratio 64/16/20, in any form that
`python -m engine.data info` knows; NEW a few pictures of each new class, <class>/<image>; PICTURES
is a folder of those to be labelled. The same command continues a training that was stopped, in
--run if that is given. In a shell it is

    python -m engine.train --dataset folder --data FOLDER --run runs/own-folder
    python -m engine.adapt runs/own-folder NEW -o new.pt
    python -m engine.predict new.pt PICTURES
"""

import sys
from pathlib import Path

from engine import FewShotClassifier, train
from engine.data import pictures as of_pictures
from engine.data.preparation import Preparation
from engine.errors import say
from engine.examples import script
from engine.settings import resolve

RUN = Path("runs/own-folder")


def main(folder: str, new: str, pictures: str, *flags: str) -> dict[str, str]:
    """The answer to each picture."""
    argv = ["--dataset", "folder", "--data", str(folder), "--run", str(RUN), *flags]
    asked = resolve(argv)
    cfg = asked.cfg
    # what is wrong is told now, and not after the training
    script.require_ways(cfg, new)
    to_label, notes = of_pictures.asked([Path(pictures)])
    of_pictures.decoded(to_label, Preparation.of(cfg.dataset, cfg.image_size, cfg.channels))
    say(*notes)
    if code := train.main(argv):
        sys.exit(code)  # what was wrong has been said
    if asked.show:
        return {}

    run = Path(cfg.run).expanduser()
    classifier = FewShotClassifier.load(run).fit_folder(new)
    print(f"learned {', '.join(classifier.classes_)}")
    classifier.save(run / "new.pt")  # all that is needed elsewhere, and no picture

    classifier = FewShotClassifier.load(run / "new.pt")
    odds = classifier.predict_proba(to_label)  # [N, classes]
    names = [picture.where for picture in to_label]
    answers = dict(zip(names, classifier.classes_[odds.argmax(1)], strict=True))
    for (name, answer), row in zip(answers.items(), odds, strict=True):
        print(f"{name}: {answer} ({row.max():.0%})")
    return answers


if __name__ == "__main__":
    script.run(main, __doc__, "FOLDER", "NEW", "PICTURES")
