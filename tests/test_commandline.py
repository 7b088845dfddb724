"""Flags as people meet them: help with each default, near misses, settings from a file."""

import dataclasses
import json
import re
import sys

import pytest

from engine import settings
from engine.commandline import FIELDS, flag
from engine.config import DATASETS, GROUPS, Config
from engine.errors import UserError, nearest
from engine.presets import PRESETS
from engine.settings import resolve
from tests.tiny import call


def shown(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        resolve([*argv])
    assert ended.value.code == 0
    return capsys.readouterr().out


def flat(text: str) -> str:
    """With each run of white space as one space, but of a word that was broken."""
    return re.sub(r"\s+", " ", re.sub(r"(?<=\w-)\n\s+", "", text))


@pytest.mark.parametrize(
    ("module", "flag"),
    [("engine.train", "--help-all"), ("engine.evaluate", "--help"), ("engine.evaluate", "-h")],
)
def test_help_answers_at_once(module, flag):
    code, out, err = call(module, flag)
    assert (code, err) == (0, "")
    assert "--eval-steps" in out


def test_nothing_of_the_command_line_imports_torch():
    code = "import sys, engine.settings; assert not {'torch', 'numpy'} & sys.modules.keys()"
    assert call("timeit", "-n1", "-r1", code)[0] == 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_help_all_has_every_flag_once_in_its_group_with_its_value(preset, dataset, capsys):
    out = shown(capsys, "--help-all", "--preset", preset, "--dataset", dataset)
    assert f"--preset {preset} --dataset {dataset};" in flat(out)
    groups = re.split(r"^([a-z ]+):$", out, flags=re.MULTILINE)[1:]
    assert groups[::2] == ["options", *GROUPS]
    found = {}
    for title, text in zip(groups[::2], groups[1::2], strict=True):
        for entry in re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]:
            assert found.setdefault(entry.split()[0], (title, flat(entry))) == (title, flat(entry))
    values = Config.of(preset, dataset).to_dict()
    for name, f in FIELDS.items():
        title, entry = found[flag(name)]
        assert title == f.metadata["group"]
        by_preset = f.default is dataclasses.MISSING and name not in ("preset", "dataset")
        said = {f" (by {by}: {values[name]})" for by in ("preset", "method")}
        assert any(words in entry for words in said) or not by_preset


def test_help_is_short_and_follows_what_is_on_the_line(capsys):
    out = flat(shown(capsys, "--help"))
    assert 12 <= len(set(re.findall(r" (--[a-z-]+) (?!on)", out))) <= 18
    assert "--eval-steps" not in out and "--help-all" in out
    assert "(by preset: 150)" in out and "--preset maml++ --dataset mini;" in out
    out = flat(shown(capsys, "--help-all", "--epochs", "30", "--shots", "5"))
    for words in (
        "epochs without second derivatives, 0: none (by preset: 10)",
        "tasks per outer iteration (by preset: 2)",
        "support images per class (by preset: 1)",
    ):
        assert words in out
    with pytest.raises(UserError, match="--preset is 'mam': did you mean maml"):
        resolve(["--preset", "mam", "--help"])


@pytest.mark.parametrize("module", ["engine.train", "engine.evaluate"])
def test_a_wrong_flag_is_one_line_and_exit_code_2(module):
    code, out, err = call(module, "x.pt", "--unknown", "1")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--stpes 5", "there is no flag --stpes: did you mean --steps? see {} --help"),
        (
            "--eval_steps=5",
            "there is no flag --eval_steps: did you mean --eval-steps? see {} --help",
        ),
        ("-ways 5", "there is no flag -ways: did you mean --ways? see {} --help"),
        ("--ru", "there is no flag --ru: did you mean --run? see {} --help"),
        ("--sun", "there is no flag --sun: see {} --help"),
        ("--zzz", "there is no flag --zzz: see {} --help"),
        ("run", "'run' is one argument too many; see {} --help"),
        (
            "--dataset Omniglt",
            "--dataset is 'Omniglt': did you mean omniglot? choose one of omniglot, mini, folder",
        ),
        ("--ways x", "--ways is 'x': give a whole number; see {} --help"),
        ("--ways 5.5", "--ways is '5.5': give a whole number; see {} --help"),
        ("--lr=1e", "--lr is '1e': give a number; see {} --help"),
        ("--device quantum", "--device is 'quantum': choose one of auto, cpu, cuda"),
    ],
)
def test_what_was_meant(argv, message):
    with pytest.raises(UserError) as caught:
        resolve(argv.split())
    assert str(caught.value) == message.format("python -m engine.train")


def test_the_nearest_name_is_told_as_it_is_written():
    assert nearest("TARIN", ["Train", "Test"]) == "did you mean Train? "
    assert nearest("fetch", ["train"]) == ""


@pytest.fixture
def written(tmp_path):
    """A function that writes a file of settings."""

    def write(name: str, content: object):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


needs_toml = pytest.mark.skipif(settings.tomllib is None, reason="Python before 3.11 has no TOML")
TOML = 'dataset = "folder"\nways = 7\nlr = 1\nskip_small_classes = true\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.toml", TOML, marks=needs_toml),
        ("a.json", {"dataset": "folder", "ways": 7, "lr": 1, "skip_small_classes": True}),
        ("A.JSON", '\ufeff{"dataset":"folder","ways":7,"lr":1,"skip_small_classes":true}'),
    ],
)
def test_flags_win_over_the_file_and_the_file_over_the_preset(name, content, written):
    path = written(name, content)
    found = resolve(["--config", path, "--ways", "9", "--preset", "maml"])
    expected = Config.of("maml", "folder", ways=9, lr=1.0, skip_small_classes=True)
    assert found.cfg == expected and type(found.cfg.lr) is float
    wanted = {"ways": "flag", "preset": "flag", "dataset": "file", "lr": "file", "data": "default"}
    wanted |= {"shots": "preset", "min_lr": "preset", "threads": "default"}
    assert {name: found.sources[name] for name in wanted} == wanted
    assert found.sources.keys() == FIELDS.keys() and str(found.file) == path


def test_the_configuration_of_a_run_is_a_file_of_settings(written):
    cfg = Config.of("maml", "omniglot", ways=20, seed=4, run="somewhere", precision="bf16")
    path = written("config.json", cfg.to_dict())
    assert resolve(["--config", path]).cfg == cfg
    assert resolve(["--seed", "5", "--config", path]).cfg == dataclasses.replace(cfg, seed=5)


@pytest.mark.parametrize("preset", ["maml++", "maml"])
def test_a_file_under_flags_keeps_the_shape_of_its_schedule(preset, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(Config.of(preset, "omniglot", halving_epochs=20).to_dict()))

    def asked(*argv: str) -> Config:
        return resolve(["--config", str(path), *argv]).cfg

    assert asked("--epochs", "30") == Config.of(preset, "omniglot", epochs=30)
    assert asked("--epochs", "30", "--msl-epochs", "7").msl_epochs == 7
    sources = resolve(["--config", str(path), "--epochs", "30"]).sources
    changed = preset == "maml++"  # the other has none of these epochs
    assert sources["first_order_epochs"] == ("followed" if changed else "file")
    assert sources["lr"] == "file" and sources["epochs"] == "flag"
    assert asked("--lr", "0.01") == Config.of(preset, "omniglot", lr=0.01)
    assert asked("--preset", preset) == asked()
    with pytest.raises(UserError, match="--preset is htym-2019 with --config .*config.json, which"):
        asked("--preset", "htym-2019")
    path.write_text('{"epochs": 100, "first_order_epochs": 40, "min_lr": 1e-4}')
    assert asked("--epochs", "10") == Config.of(epochs=10, first_order_epochs=4, min_lr=1e-4)


def test_that_of_an_older_version_has_neutral_values(written, monkeypatch):
    metadata = {**FIELDS["threads"].metadata, "neutral": 3}
    other = dataclasses.field(default=0, metadata=metadata)
    other.name, other.type = "threads", "int"
    older = {k: v for k, v in Config.of().to_dict().items() if k not in ("threads", "precision")}
    monkeypatch.setattr(
        "engine.config.fields",
        lambda cls: [other if f.name == "threads" else f for f in dataclasses.fields(cls)],
    )
    assert settings.read(settings.Path(written("old.json", older)))["threads"] == 3
    assert "threads" not in settings.read(settings.Path(written("own.json", {"ways": 5})))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", {"wayz": 5}, "there is no setting 'wayz': did you mean ways?"),
        ("a.json", {"eval-steps": 5}, "'eval-steps': did you mean eval_steps?"),
        ("a.json", {"\x1b[2J": 5}, r"there is no setting '\x1b[2J': python -m"),
        ("a.json", {"ways": "5"}, "ways is '5', of type str: it takes int"),
        ("a.json", {"ways": None}, "ways is None, of type NoneType: it takes int"),
        ("a.json", {"fresh": 1}, "fresh is 1, of type int: it takes bool"),
        ("a.json", {"ways": 1}, "--ways is 1: give a number >= 2"),
        ("a.json", {"lr": float("nan")}, "--lr is nan"),
        ("a.json", {"run": ""}, "--run is empty"),
        ("a.json", {"dataset": "min"}, "did you mean mini?"),
        ("a.json", {"task": {"ways": 5}}, "there is no setting 'task'"),
        ("a.json", "[1]", "no table of names and values"),
        ("a.json", '{"ways": 5, "ways": 6}', "'ways' is there twice"),
        ("a.json", "{", "cannot be read as JSON: "),
        ("a.json", "[" * 100_000, "cannot be read as JSON: nested too deeply"),
        ("a.json", '{"ways": ' + "9" * 5000 + "}", "cannot be read as JSON: "),
        pytest.param("a.toml", "ways = ", "cannot be read as TOML: ", marks=needs_toml),
        pytest.param("a.toml", "[task]\nways = 5", "no setting 'task'", marks=needs_toml),
        ("a.yaml", "ways: 5", "ends in .toml or .json"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(name, content, words, written):
    path = written(name, content)
    with pytest.raises(UserError) as caught:
        resolve(["--config", path])
    message = str(caught.value)
    assert path in message and words in message and "\n" not in message, message


def test_a_file_that_is_not_there_or_none(tmp_path, monkeypatch):
    (tmp_path / "folder.json").mkdir()
    for argv, words in [
        (["--config", str(tmp_path / "no.json")], "cannot read .*no.json: No such file"),
        (["--config", str(tmp_path / "folder.json")], "no regular file"),
        (["--config="], "--config is empty"),
        (["--config"], "expected one argument"),
    ]:
        with pytest.raises(UserError, match=words):
            resolve(argv)
    monkeypatch.setattr(settings, "tomllib", None)
    with pytest.raises(UserError, match="a.toml: Python reads TOML from 3.11 on; give .* JSON"):
        resolve(["--config", "a.toml"])
    assert sys.version_info < (3, 11) or "tomllib" in sys.modules


def test_the_schedule_of_a_file_without_a_length_is_of_the_preset_s(written):
    path = written("some.json", {"msl_epochs": 15, "first_order_epochs": 50})
    found = resolve(["--config", path, "--epochs", "15"]).cfg
    usual = Config.of().epochs
    assert (found.msl_epochs, found.first_order_epochs) == (-(-15 * 15 // usual), 50 * 15 // usual)


def test_a_preset_that_is_not_known_is_told_beside_a_file_too(written):
    path = written("some.json", {"msl_epochs": 15})
    with pytest.raises(UserError, match="--preset is 'foo'"):
        resolve(["--config", path, "--preset", "foo", "--epochs", "3"])


def test_a_method_is_not_asked_for_what_it_has_not(written):
    path = written("config.json", Config.of(dataset="omniglot", method="protonet").to_dict())
    with pytest.raises(UserError) as caught:
        resolve(["--config", path, "--dataset", "mini"])
    assert "inner_rate" not in str(caught.value) and "image_size" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "asked", "words", "also"),
    [
        ("mini", "--shots 5", "--shots 5 with .*: tasks 4, where .* has tasks 2", "tasks 4"),
        ("mini", "--network resnet12", "negative_slope 0.01, where", "negative-slope 0.01"),
        ("omniglot", "--dataset mini", "--dataset mini with .*image_size 28", None),
    ],
)
def test_a_whole_file_does_not_follow_a_flag_by_halves(given, asked, words, also, written):
    path = written("config.json", Config.of(dataset=given).to_dict())
    argv = ["--config", path, *asked.split()]
    with pytest.raises(UserError, match=words):
        resolve(argv)
    if also:
        name, value = also.split()
        assert f"{vars(resolve([*argv, f'--{name}', value]).cfg)[name.replace('-', '_')]}" == value
