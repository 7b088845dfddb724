"""``python -m engine.sweep``: a file of settings becomes runs, trained, listed or looked at."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import settings, sweep, train
from engine.config import Config
from engine.runs import checkpoint, locks
from engine.runs.interrupt import Interrupt
from engine.runs.log import Report
from engine.settings import resolve
from engine.sweep import expand
from tests.tiny import ROOT, call, environment, flags, same

SWEEP = "engine.sweep"
needs_toml = pytest.mark.skipif(settings.tomllib is None, reason="Python before 3.11 has no TOML")
TOML = """
runs = "there"
seeds = [0, 1]
[base]
dataset = "folder"
[vary]
shots = [1, 5]
lr = [1e-3, 1]
[[extra]]
preset = "maml"
[[extra]]
shots = 1
seed = 7
"""
PARTS = {
    "runs": "there",
    "seeds": [0, 1],
    "base": {"dataset": "folder"},
    "vary": {"shots": [1, 5], "lr": [1e-3, 1]},
    "extra": [{"preset": "maml"}, {"shots": 1, "seed": 7}],
}


@pytest.fixture
def written(tmp_path):
    """A function that writes a sweep of these parts, or this text."""

    def write(content: object, name: str = "some.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def base(images: Path, *more: object) -> dict:
    """The settings of a tiny run, to stand in a file."""
    argv = flags(images, images, *more)
    cfg = Config.resolve(argv).to_dict()
    names = [word[2:].replace("-", "_") for word in argv if word.startswith("--")]
    return {name: cfg[name] for name in names if name != "run"}


@pytest.mark.parametrize(
    ("name", "content"), [pytest.param("a.toml", TOML, marks=needs_toml), ("a.json", PARTS)]
)
def test_a_file_is_each_combination_with_each_seed_and_what_is_extra(name, content, written):
    members = expand(written(content, name))
    assert [member.name for member in members] == [
        "shots-1_lr-0.001_seed-0",
        "shots-1_lr-0.001_seed-1",
        "shots-1_lr-1.0_seed-0",
        "shots-1_lr-1.0_seed-1",
        "shots-5_lr-0.001_seed-0",
        "shots-5_lr-0.001_seed-1",
        "shots-5_lr-1.0_seed-0",
        "shots-5_lr-1.0_seed-1",
        "preset-maml_seed-0",
        "preset-maml_seed-1",
        "shots-1_seed-7",
    ]
    run = "there/shots-5_lr-1.0_seed-1"
    expected = Config.of(dataset="folder", shots=5, lr=1.0, seed=1, run=run)
    assert members[7].cfg == expected and members[7].folder == Path(run)
    run = "there/preset-maml_seed-1"
    assert members[9].cfg == Config.of("maml", "folder", seed=1, run=run)


@needs_toml
def test_the_example_that_is_described(written):
    described = (ROOT / "engine" / "README.md").read_text()
    example = described.partition("```toml\n")[2].partition("```")[0]
    members = expand(written(example, "example.toml"))
    assert len(members) == 15 and members[-1].name == "preset-maml_seed-2"
    assert members[0].folder == Path("runs/shots/shots-1_inner-rate-0.1_seed-0")


def test_a_name_says_what_varies_whatever_its_order(written, tmp_path):
    vary = {"split_ratio": [None, "64/16/20"], "skip_small_classes": [True], "data": ["~/my birds"]}
    found = {"base": {"dataset": "folder", "split_ratio": "1/1/1", "seed": 3}, "vary": vary}
    members = expand(written(found), runs=str(tmp_path / "mine"))
    head = "data-my-birds_split-ratio"
    names = [
        "data-my-birds_split-ratio-None_skip-small-classes-True_seed-3",
        "data-my-birds_split-ratio-64-16-20_skip-small-classes-True_seed-3",
    ]
    assert [m.name for m in members] == names and names[0].startswith(head)
    assert [m.cfg.split_ratio for m in members] == [None, "64/16/20"]
    assert members[0].folder == tmp_path / "mine" / names[0]
    found["vary"] = dict(reversed(vary.items()))
    assert [m.name for m in expand(written(found))] == names
    (only,) = expand(written({"base": {}}))
    assert only.cfg == Config.of(run="runs/some/seed-0")


def test_each_listed_line_is_the_run_to_a_shell(written, capsys):
    path = written(
        {
            "runs": "it's $HOME/a",
            "base": {"skip_small_classes": True, "strict_data": False, "clamp": 0},
            "vary": {"data": ["a b", "`c`;\\", '"d"', "-e"], "skip_small_classes": [True, False]},
        }
    )
    assert sweep.main([str(path), "--list"]) == 0
    lines, members = capsys.readouterr().out.splitlines(), expand(path)
    assert len(lines) == len(members) == 8
    for line, member in zip(lines, members, strict=True):
        words = subprocess.run(
            ["sh", "-c", f'printf "%s\\0" {line}'], capture_output=True, check=True, text=True
        ).stdout.split("\0")[:-1]
        assert words == shlex.split(line) and words[:3] == ["python", "-m", "engine.train"]
        assert resolve(words[3:]).cfg == member.cfg
    assert [m.cfg.skip_small_classes for m in members[:2]] == [True, False]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\udc80"])
def test_a_path_that_no_line_holds_is_not_listed(name, written, capsys):
    assert sweep.main([str(written({"base": {"data": name}})), "--list"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "no line of this console" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "some.json is empty: give [base] or [vary]"),
        ({"runs": "there"}, "some.json has runs alone: give [base] or [vary]"),
        ({"bases": {}}, "there is no part 'bases': did you mean base? a sweep has runs, seeds,"),
        ({"ways": 5}, "no part 'ways': settings stand below [base] or [vary]"),
        ({"base": {"wayz": 5}}, "there is no setting 'wayz': did you mean ways?"),
        ({"vary": {"shotz": [1]}}, "there is no setting 'shotz': did you mean shots?"),
        ({"extra": [{"seeds": 1}]}, "there is no setting 'seeds': did you mean seed?"),
        ({"vary": {"dataset": ["mini", "mnii"]}}, "--dataset is 'mnii': did you mean mini?"),
        ({"vary": {"shots": ["1"]}}, "shots is '1', of type str: it takes int"),
        ({"vary": {"shots": 1}}, "[vary] shots is 1: give a list of values"),
        ({"vary": {"shots": []}}, "[vary] shots is []: give a list of values"),
        ({"vary": [1]}, "vary is [1]: give a table"),
        ({"extra": {"shots": 1}}, "extra is {'shots': 1}: give a list"),
        ({"extra": [1]}, "[[extra]] 1 is 1: give a table of settings"),
        ({"seeds": 3}, "seeds is 3: give a list"),
        ({"seeds": []}, "seeds is []: give a list of values"),
        ({"seeds": [-1]}, "--seed is -1: give a number >= 0"),
        ({"seeds": [True]}, "seed is True, of type bool"),
        ({"seeds": [0], "base": {"seed": 0}}, "[base] has seed: leave it out, and give seeds"),
        ({"vary": {"seed": [0]}}, "[vary] has seed: leave it out, and give seeds"),
        ({"runs": ""}, "--runs is empty"),
        ({"runs": 5}, "runs is 5: give a path"),
        ({"base": {"run": "a"}}, "[base] has run: a sweep names the folders itself"),
        ({"vary": {"fresh": [True]}}, "[vary] fresh has fresh: a sweep names"),
        ({"seeds": [0, 0]}, "two runs have the folder runs/some/seed-0, the second by seed = 0"),
        ({"vary": {"lr": [1, 1.0]}}, "two runs have the folder runs/some/lr-1.0_seed-0"),
        ({"vary": {"data": ["a/b", "A-b"]}}, "the folder runs/some/data-A-b_seed-0"),
        ({"vary": {"shots": [1, 2]}, "extra": [{"shots": 2}]}, "folder runs/some/shots-2_seed-0"),
        ({"vary": {"data": ["a" * 300]}}, "is too long for a folder's name"),
        (
            {"vary": {n: list(range(1, 101)) for n in ("shots", "tasks", "steps")}},
            "[vary] and seeds make 1000000 runs: give at most 10000",
        ),
        (
            {"vary": {"lr": [1e-3, 1e-6], "shots": [1, 5]}},
            "lr = 1e-06, shots = 1: --min-lr is 1e-05, above --lr 1e-06",
        ),
        ("[1]", "is no table of names and values"),
        ('{"seeds": [0], "seeds": [1]}', "'seeds' is there twice"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(content, words, written, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", None)
    assert sweep.main([str(written(content))]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err, err


def test_a_file_or_a_flag_that_cannot_be(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, "tomllib", None)
    some = str(written({"base": {}}))
    for argv, words in [
        ([str(tmp_path / "a.toml")], "a.toml: Python reads TOML from 3.11 on; give the same as"),
        ([str(tmp_path / "a.yaml")], "give a file whose name ends in .toml or .json"),
        ([str(tmp_path / "no.json")], "no.json: No such file or directory; correct the sweep"),
        ([], "required: FILE"),
        ([some, "--stats"], "there is no flag --stats: did you mean --status?"),
        ([some, "--list", "--status"], "not allowed with argument --list"),
        ([some, "--runs="], "--runs is empty"),
    ]:
        assert sweep.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and words in err and err.count("\n") == 1, err


def test_stopped_and_continued_it_leaves_what_straight_runs_leave(
    written, images, tmp_path, monkeypatch, capsys
):
    path = written({"runs": str(tmp_path / "runs"), "seeds": [0, 1], "base": base(images)})
    members = expand(path)
    progress = Report.progress

    def interrupted(report, iteration, interval):
        progress(report, iteration, interval)
        if report._folder == members[1].folder and iteration == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "progress", interrupted)
        assert sweep.main([str(path)]) == 130
    out, err = capsys.readouterr()
    assert "Ctrl-C: the sweep is stopped; the same command continues\n" in err
    assert out.startswith("run 1 of 2: seed-0\n") and "run 2 of 2: seed-1\n" in out
    assert sweep.state(members[0])[0] == "finished"
    word, where = sweep.state(members[1])
    assert word == "stopped" and where in [
        f"at epoch 1 of 3, iteration {done} of 12" for done in (7, 8)
    ]

    code, out, err = call(SWEEP, path)
    assert (code, err) == (0, ""), err
    first = json.loads((members[0].folder / "result.json").read_text())["best"]
    scores = f"best {100 * first['accuracy']:6.2f} % ± {100 * first['interval']:.2f}, ensemble "
    assert out.startswith(f"run 1 of 2: seed-0, already finished: {scores}")
    assert "run 2 of 2: seed-1\n" in out and "continuing after iteration" in out
    for member in members:
        alone = images.parent / f"alone-{member.name}"
        assert train.main(flags(images, alone, "--seed", member.cfg.seed)) == 0
        result = (member.folder / "result.json").read_bytes()
        assert result == (alone / "result.json").read_bytes()
        ours, theirs = (
            torch.load(folder / "latest.pt", weights_only=True) for folder in (member.folder, alone)
        )
        assert same(ours["state"], theirs["state"])


def test_a_listed_line_trains_the_run_that_the_sweep_passes_by(written, images, capsys):
    short = base(images, "--epochs", 1, "--iterations", 1)
    path = written({"runs": str(images.parent / "a 'b'"), "base": short})
    assert sweep.main([str(path), "--list"]) == 0
    shell = environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    line = capsys.readouterr().out
    subprocess.run(["sh", "-c", line], env=shell, cwd=ROOT, check=True, capture_output=True)
    assert sweep.main([str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("run 1 of 1: seed-0, already finished: ") and out.count("\n") == 1
    # trained on, as the same command with more epochs does
    path = written({"runs": str(images.parent / "a 'b'"), "base": short | {"epochs": 2}})
    assert sweep.state(*expand(path)) == ("shorter", "finished 1 epochs, to be trained on to 2")
    assert sweep.main([str(path)]) == 0
    assert "training on after 1 epochs" in capsys.readouterr().out
    word, told = sweep.state(*expand(path))
    assert word == "finished" and told.endswith(", trained on after 1 epochs")


def test_finished_runs_of_other_data_are_none_of_the_sweep(written, images, tmp_path, capsys):
    short = base(images, "--epochs", 1, "--iterations", 1)
    parts = {"runs": str(tmp_path / "runs"), "base": short}
    assert sweep.main([str(written(parts))]) == 0
    assert sweep.main([str(written(parts)), "--status"]) == 0
    name = f"folder:{images.name} ("
    assert f"\n1 of 1 finished, on {name}" in capsys.readouterr().out
    moved = shutil.copytree(images, tmp_path / "moved")  # the same content
    assert sweep.main([str(written(parts | {"base": short | {"data": str(moved)}}))]) == 0
    assert "already finished" in capsys.readouterr().out
    next(moved.rglob("*.png")).unlink()
    changed = parts | {"base": short | {"data": str(moved)}, "seeds": [0, 1]}
    assert sweep.main([str(written(changed))]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"seed-0 was trained on {name}" in err and err.count("\n") == 1
    assert not (tmp_path / "runs" / "seed-1").exists()
    shutil.rmtree(moved)
    assert sweep.main([str(written(parts | {"base": short | {"data": str(moved)}}))]) == 0
    out, err = capsys.readouterr()
    assert "already finished" in out and "of the same data is not known: " in err


def test_a_length_that_varies_scales_the_schedule_of_a_whole_base(written):
    whole = Config.of("maml++", "omniglot").to_dict() | {"run": None}
    members = expand(written({"base": whole, "vary": {"epochs": [15, 30]}}))
    assert [member.cfg.first_order_epochs for member in members] == [5, 10]


def test_a_run_that_fails_is_told_and_the_others_go_on(written, images, tmp_path, capsys):
    other = [{"inner_rate": 1e30}, {"init": str(tmp_path / "none.pt")}, {"norm_eps": 1e-3}]
    short = base(images, "--epochs", 1)
    del short["inner_rate"]
    path = written({"runs": str(tmp_path / "runs"), "base": short, "extra": other})
    members = expand(path)
    assert sweep.main([str(path)]) == 3
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 3, err
    assert lines[0].startswith("error: inner-rate-1e+30_seed-0: iteration 1: ")
    assert lines[1].startswith(f"error: {members[2].name}: ") and "none.pt" in lines[1]
    assert lines[2] == f"2 of 4 runs failed: inner-rate-1e+30_seed-0, {members[2].name}"
    assert out.count("best model") == 2
    states = ["finished", "stopped", "not begun", "finished"]
    assert [sweep.state(member)[0] for member in members] == states


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: out of memory")]
)
def test_a_run_that_needs_too_much_memory_is_one_that_fails(error, written, monkeypatch, capsys):
    seen = []

    def broken(cfg, interrupt):
        seen.append(cfg.seed)
        raise error

    monkeypatch.setattr(train, "train", broken)
    path = written({"seeds": [0, 1], "runs": "none-such"})
    assert sweep.main([str(path)]) == 2 and seen == [0, 1]
    assert "error: seed-1: out of memory; lower --tasks" in capsys.readouterr().err
    error.args = ("a bug",)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="a bug"):
            sweep.main([str(path)])


def test_a_signal_at_the_end_of_a_run_stops_the_sweep_all_the_same(written, monkeypatch, capsys):
    seen = []

    def trained(cfg, interrupt):
        seen.append(cfg.seed)
        interrupt.phase = "finish"
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "train", trained)
    assert sweep.main([str(written({"seeds": [0, 1], "runs": "none-such"}))]) == 130
    assert seen == [0] and "the sweep is stopped" in capsys.readouterr().err


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_a_run_that_began_with_other_weights_is_not_finished(written, finished, tmp_path):
    other, copy = sorted(finished.glob("epoch-*.pt"))[0], tmp_path / "copy.pt"
    shutil.copy(finished / "latest.pt", copy)
    flags = base(finished.parent / "tiny") | {"init": str(finished / "latest.pt")}
    del flags["inner_rate"]
    parts = {"runs": str(tmp_path / "runs"), "base": flags}
    (member,) = expand(written(parts))
    train.train(member.cfg, Interrupt())
    for init, words in (
        (finished / "latest.pt", "finished   best"),
        (copy, "finished   best"),
        (other, "other      has other settings than the sweep: init: began with the weights of"),
    ):
        (member,) = expand(written(parts | {"base": flags | {"init": str(init)}}))
        line, _ = sweep.status([member])
        assert words in line and bool(sweep.finished(member)) == ("finished" in words)


def test_the_status_tells_every_state_and_changes_nothing(written, finished, tmp_path):
    images = finished.parent / "tiny"
    vary = {"log_every": [*range(1, 9)]}  # which a continued run may change
    parts = {"runs": str(tmp_path / "runs"), "base": base(images), "vary": vary}
    members = expand(written(parts | {"extra": [{"ways": 5}, {"ways": 4}]}))
    for member in (*members[:6], members[8]):
        shutil.copytree(finished, member.folder)
    for member in members[1:6]:
        (member.folder / "result.json").unlink()
    (members[2].folder / "result.json").write_text('{"best"')
    (members[1].folder / "config.json").write_text("[1]")
    (members[1].folder / "result.json").write_text('{"best": {"accuracy": 1e999}}')
    latest = members[3].folder / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:-200])
    (members[4].folder / "latest.pt").unlink()
    members[6].folder.mkdir()
    members[9].folder.write_text("no folder")
    before = files(tmp_path)
    with checkpoint.open_run(members[5].folder, fresh=False):
        lines = sweep.status(members)
    assert files(tmp_path) == before and not members[7].folder.exists()
    result = json.loads((finished / "result.json").read_text())
    best, ensemble = (
        f"{100 * result[k]['accuracy']:6.2f} % ± {100 * result[k]['interval']:.2f}"
        for k in ("best", "ensemble")
    )
    done = "at epoch 3 of 3, iteration 12 of 12"
    wanted = [
        f"finished   best {best}, ensemble {ensemble}",
        f"stopped    {done}",
        f"stopped    {done}",
        f"damaged    checkpoint {latest} is damaged (",
        "damaged    epoch-",
        f"running    {done}",
        "not begun",
        "not begun",
    ]
    wanted = [f"log-every-{n}_seed-0  {words}" for n, words in enumerate(wanted, 1)] + [
        "ways-5_seed-0       other      has other settings than the sweep: ways: 3 -> 5",
        f"ways-4_seed-0       damaged    cannot read run folder {members[9].folder}: Not a dir",
        f"1 of 10 finished, on {result['data']} ({result['identity']:.12}); ± is the 95 % interval "
        "over tasks",
    ]
    assert len(lines) == len(wanted)
    for line, words in zip(lines, wanted, strict=True):
        assert line.startswith(words), line
    assert lines[4].endswith(" without latest.pt") and "config.json" in lines[4]


def test_to_ask_for_a_lock_neither_takes_it_nor_stops_who_does(tmp_path):
    path = tmp_path / ".lock"
    assert not locks.held(path) and not path.exists()
    path.touch()
    with open(path) as ours, open(path) as theirs:
        assert not locks.held(path)
        assert locks.lock(ours.fileno()) and locks.held(path)
        assert not locks.lock(theirs.fileno())
    assert not locks.held(path)


def test_a_run_in_another_precision_is_not_finished(written, images, tmp_path):
    short = base(images, "--epochs", 1, "--precision", "bf16")
    parts = {"runs": str(tmp_path / "runs"), "base": short}
    (member,) = expand(written(parts))
    train.train(member.cfg, Interrupt())
    assert sweep.finished(member)
    for precision in ("auto", "fp32"):
        (other,) = expand(written(parts | {"base": short | {"precision": precision}}))
        assert sweep.finished(other) is None and sweep.state(other)[0] == "other"


def test_a_folder_that_cannot_be_is_told_and_the_others_go_on(written, images, tmp_path, capsys):
    short = base(images, "--epochs", 1)
    path = written({"runs": str(tmp_path / "runs"), "base": short, "seeds": [0, 1]})
    first, second = expand(path)
    first.folder.parent.mkdir()
    first.folder.symlink_to(first.folder.name)  # goes round
    assert sweep.main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {first.name}: ")
    assert sweep.finished(second)
