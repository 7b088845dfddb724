"""A folder of pictures end to end: train on its classes, teach the network new ones, ask it.

    python -m engine.examples.own_folder FOLDER NEW PICTURES [flags of engine.train]

FOLDER has <split>/<class>/<image> or <class>/<image>, in any form that `python -m engine.data info`
knows; NEW a few pictures of each new class, <class>/<image>; PICTURES is a folder of those to be
labelled. The same command continues a training that was stopped. In a shell it is

    python -m engine.train --dataset folder --data FOLDER --run runs/own-folder
    python -m engine.adapt runs/own-folder NEW -o new.pt
    python -m engine.predict new.pt PICTURES
"""

import sys
from pathlib import Path

from engine import FewShotClassifier, train
from engine.errors import UserError
from engine.examples import script

RUN = Path("runs/own-folder")


def main(folder: str, new: str, pictures: str, *flags: str, run: Path = RUN) -> dict[Path, str]:
    """The answer to each picture."""
    paths = sorted(path for path in Path(pictures).rglob("*") if path.is_file())
    if not paths:
        raise UserError(f"{pictures} holds no file: name a folder of pictures")
    argv = ["--dataset", "folder", "--data", str(folder), "--run", str(run), *flags]
    script.require_ways(argv, new)  # now, and not after the training
    if code := train.main(argv):
        sys.exit(code)  # what was wrong has been said

    classifier = FewShotClassifier.load(run).fit_folder(new)
    print(f"learned {', '.join(classifier.classes_)}")
    classifier.save(run / "new.pt")  # all that is needed elsewhere, and no picture

    classifier = FewShotClassifier.load(run / "new.pt")
    odds = classifier.predict_proba(paths)  # [N, classes]
    answers = dict(zip(paths, classifier.classes_[odds.argmax(1)], strict=True))
    for (path, answer), row in zip(answers.items(), odds, strict=True):
        print(f"{path}: {answer} ({row.max():.0%})")
    return answers


if __name__ == "__main__":
    script.run(main, __doc__, "FOLDER", "NEW", "PICTURES")
