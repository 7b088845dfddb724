"""The rows of the tables: the figures that they quote, and the settings that train them."""

from pathlib import Path

import pytest

from engine.config import Config
from engine.errors import UserError
from engine.methods import METHODS
from engine.tables import cells, rows
from engine.tables.cells import DECIDED
from engine.tables.rows import TABLES, TRICKS

# As the paper prints them: 20-way 1-shot, 5-shot, 5-way 1-shot, 5-shot.
OMNIGLOT = """
siamese       | 88.2         | 97.0         | 97.3         | 98.4
matching      | 93.8         | 98.5         | 98.1         | 98.9
statistician  | 93.2         | 98.1         | 98.1         | 99.5
memory        | 95.0         | 98.6         | 98.4         | 99.6
meta-sgd      | 95.93 ± 0.38 | 98.97 ± 0.19 | 99.53 ± 0.26 | 99.93 ± 0.09
metanet       | 97.00        |              | 98.95        |
maml-original | 95.8 ± 0.3   | 98.9 ± 0.2   | 98.70 ± 0.4  | 99.9 ± 0.1
maml          | 91.27 ± 1.07 | 98.78        | 98.57        | 99.82
maml++        | 97.65 ± 0.05 | 99.33 ± 0.03 | 99.47        | 99.85
"""
MINI = """
matching-context | 43.56        | 55.31
meta-sgd         | 50.47 ± 1.87 | 64.03 ± 0.94
metanet          | 49.21        |
maml-original    | 48.70 ± 1.84 | 63.11 ± 0.92
maml             | 48.64        | 64.78
maml++-1-step    | 51.05 ± 0.31 |
maml++-2-steps   | 51.49 ± 0.25 |
maml++-3-steps   | 51.11 ± 0.11 |
maml++-4-steps   | 51.65 ± 0.34 |
maml++           | 52.40 ± 1.13 | 67.15 ± 0.26
"""
ABLATION = """
maml           | 91.27 ± 1.07
maml+msl       | 91.53 ± 0.69
maml+lslr      | 95.77 ± 0.38
maml+bnwb+bnrs | 95.35 ± 0.23
maml+ca        | 93.03 ± 0.44
maml+da        | 92.3 ± 0.55
maml++         | 97.65 ± 0.05
"""
FIELDS = [name for name in Config.__dataclass_fields__ if name not in ("preset", "seed", "run")]


def printed(text: str, tasks: list[tuple[int, int]]) -> dict[str, dict[tuple[int, int], str]]:
    lines = [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]
    return {
        key: {task: figure for task, figure in zip(tasks, figures, strict=True) if figure}
        for key, *figures in lines
    }


def configs(name: str, seeds: int = 1, **given) -> dict[str, Config]:
    """By row and task, of seed 0."""
    found = cells.of(rows.of(name), Path("there"), seeds, given)
    return {cell.name: cell.members[0].cfg for cell in found if cell.members}


def differing(a: Config, b: Config) -> dict[str, tuple]:
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in FIELDS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize(
    ("name", "text", "tasks"),
    [
        ("omniglot-20way", OMNIGLOT, [(20, 1), (20, 5), (5, 1), (5, 5)]),
        ("omniglot-5way", OMNIGLOT, [(20, 1), (20, 5), (5, 1), (5, 5)]),
        ("mini", MINI, [(5, 1), (5, 5)]),
        ("ablation", ABLATION, [(20, 1)]),
    ],
)
def test_the_rows_of_the_paper_are_quoted_as_it_prints_them(name, text, tasks):
    table, paper = rows.of(name), printed(text, tasks)
    wanted = {
        key: {task: figure for task, figure in figures.items() if task in table.tasks}
        for key, figures in paper.items()
    }
    found = table.rows[: len(wanted)]
    assert [row.key for row in found] == [*wanted]
    for row in found:
        assert {task: q.text for task, q in row.quoted.items()} == wanted[row.key]
        assert {*row.tasks} == {*row.quoted}
        assert all(q.source.startswith("arXiv 1810.09502, ") for q in row.quoted.values())
    for row in table.rows[len(wanted) :]:  # of methods that the paper has not
        assert row.key not in paper
        assert all("1810.09502" not in q.source for q in row.quoted.values())


def test_a_quotation_is_numbers_and_says_whose():
    table = {row.key: row for row in rows.of("omniglot-20way").rows}
    original, ours = (table[key].quoted[20, 1] for key in ("maml-original", "maml++"))
    assert (original.accuracy, original.deviation) == (95.8, 0.3)
    assert original.source == "arXiv 1810.09502, which quotes Finn et al. 2017"
    assert (ours.accuracy, ours.source) == (97.65, "arXiv 1810.09502, its own runs")
    siamese = table["siamese"].quoted[20, 1]
    assert siamese.deviation is None and "not Koch" in siamese.source
    assert table["anil"].quoted == {} and table["reptile"].quoted[20, 5].text == "97.12 ± 0.32"


@pytest.mark.parametrize("name", ["omniglot-20way", "omniglot-5way", "mini"])
def test_every_method_has_a_row_and_trains_in_each_task(name):
    found = cells.of(rows.of(name), Path("there"), 2, {})
    assert {cell.row.method for cell in found} >= {*METHODS}
    trained = {cell.row.method for cell in found if cell.members}
    assert {"maml++", "maml", "meta-sgd", "anil", "protonet", "matching"} <= trained
    for cell in found:  # a method that does not go with a task says so
        assert bool(cell.members) != bool(cell.untrained)
        assert {member.cfg.method for member in cell.members} <= {cell.row.method}
    for cell in found:
        for seed, member in enumerate(cell.members):
            cfg = member.cfg
            task = cfg.dataset, cfg.ways, cfg.shots, cfg.seed
            assert task == (rows.of(name).dataset, *cell.task, seed)
            assert cfg == Config.of(**member.settings)
            assert cfg.run == f"there/{cell.row.key}_{cfg.ways}w{cfg.shots}s_seed-{seed}"
    members = cells.members(found)
    assert len({member.name.casefold() for member in members}) == len(members)
    seeds = [member.cfg.seed for member in members]
    assert seeds == sorted(seeds) and seeds.count(0) == seeds.count(1)


def test_a_row_of_a_method_that_there_is_not_is_quoted_alone(monkeypatch):
    boil = METHODS["boil"]
    monkeypatch.delitem(METHODS, "boil")
    found = of_boil("mini")
    assert not found.members and found.untrained == "there is no method boil here"
    assert found.quoted.text == "49.61 ± 0.16"
    monkeypatch.setitem(METHODS, "boil", boil)
    assert of_boil("mini").members[0].cfg.method == "boil"


def test_a_row_follows_what_its_method_goes_with(monkeypatch):
    monkeypatch.setitem(METHODS, "boil", METHODS["boil"]._replace(presets=("htym-2019",)))
    monkeypatch.delitem(rows._OTHERS, "boil")  # one that the tables never heard of
    found = of_boil("omniglot-20way")
    assert (found.row.label, found.row.quoted, found.quoted) == ("boil", {}, None)
    assert found.members[0].cfg.preset == "htym-2019"
    fixed = METHODS["boil"]._replace(presets=("maml++",), fixed={"ways": 7})
    monkeypatch.setitem(METHODS, "boil", fixed)
    found = of_boil("omniglot-20way")
    assert not found.members and found.untrained.startswith("--ways is 20 with --method boil")


def of_boil(name: str) -> cells.Cell:
    return next(c for c in cells.of(rows.of(name), Path("there"), 1, {}) if c.row.key == "boil")


def test_each_trick_alone_is_maml_with_that_of_maml_plus_plus():
    found = configs("ablation")
    without, *single, whole = found.values()
    assert without == Config.of("maml", "omniglot", ways=20, run=without.run)
    assert whole == Config.of("maml++", "omniglot", ways=20, run=whole.run)
    all_tricks = {}
    for cfg, names in zip(single, TRICKS.values(), strict=True):
        tricks = differing(without, cfg)
        assert {*tricks} == {*names}
        all_tricks |= tricks
    assert all_tricks == differing(without, whole)
    assert {name: pair[1] for name, pair in all_tricks.items()} == {
        "msl_epochs": 10,
        "rates": "learned",
        "norm_weights": "per-step",
        "norm_stats": "per-step",
        "min_lr": 1e-5,
        "first_order_epochs": 50,
    }


def test_schedules_shrink_alike_with_the_length():
    found = configs("ablation", epochs=30, iterations=7)
    assert {(cfg.epochs, cfg.iterations) for cfg in found.values()} == {(30, 7)}
    msl = {name: cfg.msl_epochs for name, cfg in found.items() if cfg.msl_epochs}
    first = {name: cfg.first_order_epochs for name, cfg in found.items() if cfg.first_order_epochs}
    assert msl == {"maml+msl_20w1s": 2, "maml++_20w1s": 2}
    assert first == {"maml+da_20w1s": 10, "maml++_20w1s": 10}
    original = configs("mini", epochs=30)["maml-original_5w1s"]
    assert (original.preset, original.epochs, original.first_order_epochs) == ("finn-2017", 30, 0)
    with pytest.raises(UserError, match=r"MAML \+ DA, 20-way 1-shot: --epochs is 2: none of them"):
        configs("ablation", epochs=2)
    with pytest.raises(UserError, match=r"MAML \+ CA, 20-way 1-shot: --lr is 1e-05, where CA ends"):
        configs("ablation", lr=1e-5)


def test_figure_1_is_of_convolutions_of_stride_2():
    maml, plus = configs("figure1").values()
    for cfg, preset in ((maml, "maml"), (plus, "maml++")):
        assert {*differing(cfg, Config.of(preset, "omniglot", ways=20))} == {"downsample"}
        assert cfg.downsample == "stride"


def test_the_steps_of_mini_imagenet():
    found = configs("mini")
    keys = ["maml++-1-step", "maml++-2-steps", "maml++-3-steps", "maml++-4-steps", "maml++"]
    assert [found[f"{key}_5w1s"].steps for key in keys] == [1, 2, 3, 4, 5]
    assert "maml++-1-step_5w5s" not in found and found["meta-sgd_5w5s"].steps == 1


def test_matching_networks_of_mini_imagenet_are_those_with_context_embeddings(monkeypatch):
    of_matching = [row for row in rows.of("mini").rows if row.method == "matching"]
    with_context, plain, warm = of_matching
    assert warm.key == "matching-10" and warm.settings["temperature"] == 10
    assert with_context.settings["context"] == 3 and with_context.settings["class_scores"] == "sum"
    assert plain.key == "matching" and plain.quoted[5, 5].text == "51.09 ± 0.71"
    fields = {name: f for name, f in cells.FIELDS.items() if name != "context"}
    monkeypatch.setattr(cells, "FIELDS", fields)
    found = cells.of(rows.of("mini"), Path("there"), 1, {})
    bare = next(cell for cell in found if cell.row is not plain and cell.row.method == "matching")
    assert not bare.members and bare.untrained.startswith("there is no setting context")


def test_flags_go_to_every_row_and_rows_can_be_chosen():
    found = cells.of(rows.of("mini"), Path("there"), 1, {"filters": 8}, ("maml", "boil"))
    trained = [cell for cell in found if cell.members]
    assert {cell.row.key for cell in trained} == {"maml", "boil"}
    assert all(cell.members[0].cfg.filters == 8 for cell in trained)
    assert {cell.untrained for cell in found if cell.row.method == "anil"} == {"left out by --rows"}
    with pytest.raises(UserError, match="5-way 1-shot: --filters is 0: give a number >= 1"):
        cells.of(rows.of("mini"), Path("there"), 1, {"filters": 0})


def test_a_flag_is_left_out_where_it_has_no_effect():
    given = {"protocol": "inductive", "inner_rate": 0.3}
    found = cells.of(rows.of("mini"), Path("there"), 1, given)
    of = {cell.row.key: cell.members[0] for cell in found if cell.members}
    assert given.items() <= of["maml++"].settings.items()
    assert not given.keys() & of["memory"].settings.keys()
    assert not given.keys() & of["protonet"].settings.keys()
    given |= {"norm_statistics": "batch"}
    found = cells.of(rows.of("mini"), Path("there"), 1, given)
    (first, *_) = (cell for cell in found if cell.row.key == "protonet")
    assert first.members[0].cfg.protocol == "inductive"


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("proximal", 1.0, {"imaml"}),
        ("cg_steps", 3, {"imaml"}),
        ("inner_batch", 2, {"reptile"}),
        ("inner_optimizer", "sgd", {"reptile"}),
        ("train_ways", 10, {"protonet", "matching", "siamese", "statistician"}),
    ],
)
@pytest.mark.parametrize("table", ["omniglot-20way", "mini"])
def test_a_flag_goes_to_the_rows_in_which_it_means_something(table, name, value, meant):
    found = cells.of(rows.of(table), Path("there"), 1, {name: value})
    took = {c.row.key for c in found if c.members and name in c.members[0].settings}
    assert meant <= took and not took & {"maml", "maml++", "metanet", "protomaml", "lstm"}


@pytest.mark.parametrize(
    ("table", "given", "keys"),
    [
        ("mini", {"eval_steps": 7}, {"maml", "maml++", "boil"}),
        ("mini", {"precision": "bf16"}, {"maml", "maml++", "protonet"}),
        ("mini", {"network": "resnet12", "widths": "8,8,8,8"}, {"maml", "maml++"}),
    ],
)
def test_what_a_method_or_network_fixes_stays_in_its_row(table, given, keys):
    found = cells.of(rows.of(table), Path("there"), 1, given)
    settings = {cell.row.key: cell.members[0].settings for cell in found if cell.members}
    took = {key for key, of_row in settings.items() if given.items() <= of_row.items()}
    assert keys <= took and "memory" not in took


def test_a_flag_that_means_nothing_in_any_row_is_refused():
    for table, given in (("ablation", {"proximal": 1.0}), ("figure1", {"train_ways": 10})):
        with pytest.raises(UserError, match="--.* is 1.*, which means nothing in any row of "):
            cells.of(rows.of(table), Path("there"), 1, given)


def test_no_flag_can_change_what_a_row_is():
    for name in TABLES:
        for row in rows.of(name).rows:
            assert {*row.settings, *row.tricks} <= {*DECIDED}
