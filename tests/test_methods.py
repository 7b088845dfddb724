"""Each method against the same loop in ordinary torch, by its neutral value, and on a machine."""

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from engine import meta, unroll
from engine.config import Config
from engine.errors import UserError
from engine.methods import METHODS, heads, once, prototypical, those
from engine.methods.loops import loop
from engine.methods.rates import adapted, by_tensor, initial
from engine.models import network
from engine.models.interface import Moments, Params
from tests import plain_loop
from tests.test_adjoint import random_problem
from tests.test_meta import random_episode

SIZES = dict(image_size=14, filters=4, stages=2, ways=3, shots=1, targets=2, tasks=2, channels=1)
INNER = ("reptile", "imaml", "lstm")  # with a loop of their own: tests.inner
NAMES = [name for name in those(lambda m: not m.remembers) if name != "maml++"]
CLOSED = those(lambda m: m.closed_form and not m.remembers)
LOOPS = [name for name in NAMES if name not in (*CLOSED, *INNER)]


def config(method: str, **explicit) -> Config:
    length = dict(epochs=4, iterations=3, precision="fp32")
    return Config.of("maml", "folder", method=method, **SIZES | length | explicit)


def problem(cfg: Config, seed: int = 0):
    """A model, parameters off their initial values in the shapes of the configuration's, tasks."""
    model = network(cfg)
    rows = cfg.steps if cfg.norm_weights == "per-step" else 1
    params, episode, running = random_problem(model, cfg.steps, cfg.tasks, rows, seed)
    state = meta.init_state(cfg)
    rates = state.params.rates.double()
    rates = rates + 0.05 * torch.randn(rates.shape, dtype=torch.float64)
    if cfg.adapt != "all":
        rates *= meta.adapted(cfg, rates)
    return model, params._replace(rates=rates), episode, running


def close(ours: torch.Tensor, exact: torch.Tensor, what: str = "") -> None:
    assert ours.shape == exact.shape, what
    assert (ours - exact).abs().max() <= 1e-10 * exact.abs().max().clamp(min=1e-12), what


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0], [0.3, 0.0, 0.7]], ids=len)
@pytest.mark.parametrize("name", LOOPS)
def test_gradients_are_those_of_the_plain_loop(name, weights, order, downsample) -> None:
    cfg = config(name, steps=len(weights), downsample=downsample)
    model, params, episode, _ = problem(cfg)
    episode = two_shots(episode)
    adjoint = loop(cfg, model).adjoint
    found = unroll.total([adjoint(model, params, episode, weights, order == 2)])
    options = {"adapt": cfg.adapt, "from_prototypes": name == "protomaml"}
    exact = plain_loop.meta_gradient(model, params, episode, weights, order=order, **options)
    close(found.loss, exact.loss)
    close(found.logits, exact.logits)
    ours = found.gradient if name == "maml" else meta.learned(found.gradient, cfg)
    pairs = {"theta": (ours.theta, exact.theta), "norm": (ours.norm, exact.norm)}
    if cfg.rates != "fixed":
        pairs["rates"] = ours.rates, exact.rates
    for what, (a, e) in pairs.items():
        close(a, e, what)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("rates", ["learned", "fixed", "per-parameter"])
def test_features_once_are_the_loop_whose_body_has_no_rate(rates, use_running, order) -> None:
    cfg = config("anil", steps=3, rates=rates)
    model, params, episode, running = problem(cfg)
    args = model, params, episode, [0.3, 0.0, 0.7], order == 2, running if use_running else None
    ours, whole = once.adjoint(*args), unroll.adjoint(*args)
    learned = cfg if rates == "per-parameter" else dataclasses.replace(cfg, rates="learned")
    masked = meta.learned(whole.gradient, learned)
    pairs = [(ours.loss, whole.loss), (ours.logits, whole.logits)]
    pairs += zip(ours.gradient, masked, strict=True)
    pairs += zip(ours.moments, whole.moments, strict=True)
    pairs += [(a, b) for a, b in zip(ours.per_step, whole.per_step, strict=True) if b is not None]
    for a, b in pairs:
        close(a, b)
    assert ours.rows == whole.rows and [s is None for s in ours.per_step] == [False, True, False]
    options = [{}, {"protocol": "inductive"}, {"norm_statistics": "running"}, {"every": True}]
    for option in options:
        predictions = (
            of.adapt_and_predict(model, params, running, episode, steps=4, **option)
            for of in (once, unroll)
        )
        close(*predictions)


LOG_P = {
    "protonet": plain_loop.by_distance,
    "matching": partial(plain_loop.by_attention, tau=3.0),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("ways", [3, 5])
@pytest.mark.parametrize("name", CLOSED)
def test_gradients_without_an_inner_loop(name, ways, use_running, downsample) -> None:
    """In training of as many classes as the classifier has outputs, or more."""
    temperature = 3.0 if name == "matching" else 1.0
    options = {"train_ways": 0 if ways == 3 else ways, "temperature": temperature}
    cfg = config(name, downsample=downsample, **options)
    model, params, _, running = problem(cfg)
    _, episode, _ = random_problem(dataclasses.replace(model, ways=ways), 1, 2, 1)
    episode = two_shots(episode)
    given = running if use_running else None
    adjoint = loop(cfg, model).adjoint
    found = unroll.total([adjoint(model, params, episode, [0.5], True, given)])
    row = given and Moments(*(m[0] for m in given))
    exact = plain_loop.embedding_gradient(model, params, episode, LOG_P[name], ways, row)
    close(found.loss, 0.5 * exact.loss)
    close(found.logits.log_softmax(2), exact.logits)
    for what in ("theta", "norm", "rates"):
        close(getattr(found.gradient, what), 0.5 * getattr(exact, what), what)
    assert found.rows == (0,) and found.moments.mean.shape == (2, 1, model.stat_width)
    for t in range(
        2
    ):  # of the first layer, over support and target set together, as torch has them
        images = torch.cat([episode.support_x[t], episode.target_x[t]])
        weight = plain_loop.named(model, params.theta)["conv0.weight"]
        z = F.conv2d(images, weight, stride=model.stride, padding=1)
        mean, var = torch.zeros(2, model.filters, dtype=torch.float64)
        F.batch_norm(z, mean, var, training=True, momentum=1.0)
        close(found.moments.mean[t, 0, : model.filters], mean)
        close(found.moments.var[t, 0, : model.filters], var)


def two_shots(episode):
    """A second image of each class, one of the targets."""
    n = episode.support_y.shape[1]
    x = torch.cat([episode.support_x, episode.target_x[:, :n]], 1)
    y = torch.cat([episode.support_y, episode.target_y[:, :n]], 1)
    return dataclasses.replace(
        episode,
        support_x=x,
        support_y=y,
        target_x=episode.target_x[:, n:],
        target_y=episode.target_y[:, n:],
    )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", CLOSED)
def test_predictions_without_an_inner_loop(name) -> None:
    """As the plain formula: one batch, the support set's statistics, or the running ones."""
    cfg = config(name, temperature=3.0 if name == "matching" else 1.0)
    model, params, episode, running = problem(cfg)
    episode, weights = two_shots(episode), plain_loop.named(model, params.theta)
    row = params.norm[0]
    _, moments = model.prepare(episode.support_x, 1).predict(params.theta.expand(2, -1), row)
    predict = partial(loop(cfg, model).adapt_and_predict, model, params, running, episode, steps=1)
    for options, statistics in (
        ({}, [None, None]),
        ({"protocol": "inductive"}, [Moments(*m) for m in zip(*moments, strict=True)]),
        ({"norm_statistics": "running"}, [Moments(*(m[0] for m in running))] * 2),
    ):
        found = predict(**options)
        for t, given in enumerate(statistics):
            x, y, target = episode.support_x[t], episode.support_y[t], episode.target_x[t]
            h = plain_loop.features(model, weights, row, torch.cat([x, target]), given)
            expected = LOG_P[name](h[: len(y)], y, h[len(y) :], 3)
            close(found[t].log_softmax(1), expected)
        assert torch.equal(predict(**options, every=True)[0], found)


@pytest.mark.parametrize("head", [heads.Prototypes(), heads.Matching(2.5)], ids=["proto", "match"])
def test_derivatives_of_closed_forms(head) -> None:
    labels = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    targets = torch.tensor([[0, 2, 1], [1, 1, 0]])
    h_s = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    h_q = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    logits, saved = head.fwd(h_s, labels, h_q, 3)
    loss, d_logits = heads.cross_entropy(logits, targets)
    close(loss, F.cross_entropy(logits.mT, targets, reduction="none").mean(1))
    expected = torch.autograd.grad(loss.sum(), (h_s, h_q))
    for ours, exact in zip(head.bwd(saved, d_logits), expected, strict=True):
        close(ours, exact)


def test_matching_of_a_feature_of_nothing_is_finite() -> None:
    h = torch.zeros(1, 2, 4)
    logits, saved = heads.Matching().fwd(h, torch.tensor([[0, 1]]), h, 2)
    assert torch.equal(logits, torch.zeros(1, 2, 2))
    for found in heads.Matching().bwd(saved, torch.zeros(1, 2, 2)):
        assert torch.equal(found, torch.zeros(1, 2, 4))


def test_matching_and_prototypes_agree_on_unit_features_of_one_shot() -> None:
    h_s, h_q = (F.normalize(torch.randn(2, n, 6, dtype=torch.float64), dim=2) for n in (3, 4))
    labels = torch.tensor([[0, 1, 2], [2, 0, 1]])
    a, b = (h.fwd(h_s, labels, h_q, 3)[0] for h in (heads.Prototypes(), heads.Matching(2.0)))
    close(a.log_softmax(2), b.log_softmax(2))


@pytest.mark.usefixtures("backend")
def test_protomaml_of_rates_of_0_is_protonet() -> None:
    """Statistics are given, so that it is all the same what is one batch."""
    cfg = config("protonet")
    model, params, episode, running = problem(cfg)
    params = params._replace(rates=torch.zeros_like(params.rates))
    args = model, params, episode, [1.0], True, running
    proto, start = loop(cfg, model).adjoint(*args), prototypical.adjoint(*args)
    close(start.loss, proto.loss)
    close(start.logits, proto.logits)
    for ours, exact in zip(start.gradient[:2], proto.gradient[:2], strict=True):
        close(ours, exact)
    assert not start.gradient.theta[:, -sum(model.sizes[-2:]) :].any()


def same_bits(a: Params, b: Params) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.usefixtures("backend")
def test_meta_sgd_of_equal_fixed_rates_is_maml_bit_for_bit() -> None:
    cfg = config("meta-sgd")
    model, params, episode, _ = random_problem_of(cfg, 1)
    each = params._replace(rates=torch.full((1, sum(model.sizes)), 0.3))
    alike = params._replace(rates=torch.full((1, len(model.sizes)), 0.3))
    ours, plain = (unroll.adjoint(model, p, episode, [1.0], True) for p in (each, alike))
    assert torch.equal(ours.loss, plain.loss) and torch.equal(ours.logits, plain.logits)
    assert same_bits(ours.gradient[:2], plain.gradient[:2])


def random_problem_of(cfg: Config, steps: int):
    """In float32."""
    model = network(cfg)
    params, episode, running = random_problem(model, steps, 2, 1)
    params = Params(*(p.float() for p in params))
    return model, params, episode.map(lambda v: v.float() if v.is_floating_point() else v), running


def test_a_mask_of_ones_is_maml_bit_for_bit() -> None:
    sizes, like = (6, 2, 3, 1), torch.empty(0)
    assert torch.equal(initial(sizes, 5, 0.3, False, "all", like), torch.full((5, 4), 0.3))
    assert torch.equal(initial(sizes, 5, 0.3, True, "all", like), torch.full((1, 12), 0.3))
    assert adapted(sizes, False, "head", like.dtype, like.device).tolist() == [0, 0, 1, 1]
    assert adapted(sizes, True, "body", like.dtype, like.device).tolist() == [1] * 8 + [0] * 4


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["anil", "boil"])
def test_the_inner_loop_leaves_what_is_masked_as_it_is(name) -> None:
    cfg = config(name, steps=3)
    model, params, episode, _ = problem(cfg)
    support = episode.support_x, episode.support_y
    (*_, last) = unroll.inner_loop(model, params, *support, 3)
    moved = (last.adapted != params.theta).any(0)
    mask = adapted(model.sizes, True, cfg.adapt, torch.float32, torch.device("cpu")).bool()
    assert not moved[~mask].any() and moved[mask].float().mean() > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_does_not_learn_stays_as_it_was(name) -> None:
    cfg = config(name)
    first = state = meta.init_state(cfg)
    for i in range(3):
        state, metrics = meta.meta_step(state, random_episode(cfg, i), cfg)
        assert metrics.nonfinite is None
    assert not torch.equal(state.params.theta, first.params.theta)
    mask = meta.adapted(cfg, first.params.rates)
    left = (first.params.rates * (1 - mask), state.params.rates * (1 - mask))
    assert not left[0].any() and not left[1].any()
    assert (cfg.rates == "fixed") is torch.equal(state.params.rates, first.params.rates)
    head = sum(network(cfg).sizes[-2:])
    same_head = torch.equal(state.params.theta[-head:], first.params.theta[-head:])
    assert same_head is METHODS[name].any_ways
    rows = state.params.norm[:, : 2 * network(cfg).stat_width]
    rows = rows.view(-1, cfg.stages, 2, cfg.filters)
    assert rows[:, :, 1].any()
    assert bool((rows[:, :, 0] == 1).all()) is (name == "maml")


def test_first_order_maml_takes_the_gradient_at_the_end_of_the_loop() -> None:
    """θ's gradient is that of the target loss at φ_K, added over the tasks."""
    cfg = config("fomaml", steps=2)
    model, params, episode, _ = problem(cfg)
    found = unroll.total([unroll.adjoint(model, params, episode, [0.0, 1.0], False)])
    (*_, last) = unroll.inner_loop(model, params, episode.support_x, episode.support_y, 2)
    target = model.prepare(episode.target_x, 1)
    at_end = target.loss_and_gradient(last.adapted, last.row, episode.target_y)
    close(found.gradient.theta, at_end.gradient.sum(0))
    assert not any(meta.second_order(epoch, cfg) for epoch in range(cfg.epochs))


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "protomaml"])
def test_autograd_of_the_engine_agrees(name) -> None:
    cfg = config(name, steps=2)
    model, params, episode, running = problem(cfg)
    state = meta.init_state(cfg)._replace(params=params, running=running)
    schedule = meta.Schedule([0.4, 0.6], name != "fomaml", (1.0, 1.0))
    ours, autograds = (
        meta.meta_gradient(state, episode, c, schedule, model)
        for c in (cfg, dataclasses.replace(cfg, unroll="autograd"))
    )
    close(ours.loss, autograds.loss)
    pairs = (meta.learned(found.gradient, cfg) for found in (ours, autograds))
    for a, b in zip(*pairs, strict=True):
        close(a, b)


def test_a_single_row_of_rates_gathers_the_gradients_of_all_steps() -> None:
    """Meta-SGD of more steps: the same numbers in a row a step have gradients that add up to it."""
    cfg = config("meta-sgd", steps=3)
    model, params, episode, _ = problem(cfg)
    rows = params._replace(rates=params.rates.repeat(3, 1))
    one, three = (unroll.adjoint(model, p, episode, [0, 0, 1.0], True) for p in (params, rows))
    close(one.gradient.rates[:, 0], three.gradient.rates.sum(1))
    assert (three.gradient.rates.abs().amax((0, 2)) > 0).all()


def test_the_mean_rate_of_a_tensor_is_what_the_log_has() -> None:
    rates = torch.tensor([[1.0, 3.0, 5.0, 7.0, 2.0]])
    assert by_tensor(rates, (2, 2, 1)).tolist() == [[2.0, 6.0, 2.0]]
    assert by_tensor(rates[:, :3], (2, 2, 1)).tolist() == [[1.0, 3.0, 5.0]]


@pytest.mark.parametrize(("name", "wrong", "words"), [
    ("meta-sgd", {"rates": "learned"}, "--rates is learned with --method meta-sgd, which is"),
    ("meta-sgd", {"steps": 0}, "--steps is 0"),
    ("meta-sgd", {"inner_rate": -1.0}, "--inner-rate is -1.0"),
    ("anil", {"adapt": "all"}, "--adapt is all with --method anil, which is --adapt head"),
    ("anil", {"norm_weights": "per-step"}, "--norm-weights is per-step with --method anil"),
    ("anil", {"norm_stats": "per-step"}, "--norm-stats is per-step with --method anil"),
    ("boil", {"adapt": "head"}, "--adapt is head with --method boil, which is --adapt body"),
    ("boil", {"adapt": "tail"}, "--adapt is 'tail': choose one of all, head, body"),
    ("boil", {"rates": "none"}, "--rates is 'none': choose one of"),
    ("fomaml", {"first_order_epochs": 1}, "--first-order-epochs is 1 with --method fomaml"),
    ("fomaml", {"rates": "learned"}, "--rates is learned with --method fomaml"),
    ("fomaml", {"epochs": 0}, "--epochs is 0"),
    ("maml", {"norm_gains": "learned"}, "--norm-gains is learned with --method maml, which is"),
    ("maml", {"rates": "per-parameter"}, "--rates is per-parameter with --method maml"),
    ("maml", {"eval_targets": -1}, "--eval-targets is -1"),
    ("protonet", {"steps": 5}, "--steps is 5 with --method protonet, which is --steps 1"),
    ("protonet", {"train_ways": 1}, "--train-ways is 1 with --method protonet: give 2 or more"),
    ("protonet", {"network": "resnet12"}, "--network is resnet12 with --method protonet"),
    ("matching", {"temperature": 0.0}, "--temperature is 0.0: give a number > 0"),
    ("matching", {"unroll": "autograd"}, "--unroll is autograd with --method matching"),
    ("matching", {"eval_steps": 3}, "--eval-steps is 3 with --method matching"),
    ("protomaml", {"train_ways": 5}, "--train-ways is 5 with --method protomaml: give 2 or more"),
    ("protomaml", {"temperature": 2.0}, "--temperature is 2.0 with --method protomaml, which has"),
    ("protomaml", {"adapt": "head"}, "--adapt is head with --method protomaml"),
    ("protomaml", {"network": "own"}, "--network is own with --method protomaml"),
    ("anil", {"network": "own"}, "--network is own with --method anil, which has none"),
    ("siamese", {"network": "resnet12"}, "--network is resnet12 with --method siamese, which is"),
    ("siamese", {"network": "own", "stages": 4, "downsample": "stride"}, "--downsample is stride"),
    ("siamese", {"steps": 5}, "--steps is 5 with --method siamese, which is --steps 1"),
    ("memory", {"stages": 2}, "--stages is 2 with --method memory, which has none: leave it"),
    ("protonet", {"widths": "1,2,3,4"}, "--widths is 1,2,3,4 with --method protonet, which"),
    ("maml", {"widths": "1,2,3,4"}, "--widths is 1,2,3,4 with --network conv4, which has none"),
    ("memory", {"network": "conv4"}, "--network is conv4 with --method memory, which is --network"),
    ("memory", {"adapt": "head"}, "--adapt is head with --method memory, which is --adapt all"),
    ("statistician", {"norm_statistics": "batch"}, "--norm-statistics is batch with --method stat"),
    ("statistician", {"stages": 4, "widths": "1,2,3,4"}, "--widths is 1,2,3,4 with --meth"),
    ("statistician", {"rates": "learned"}, "--rates is learned with --method statistician"),
    ("metanet", {"train_ways": 5}, "--train-ways is 5 with --method metanet: give 2 or more with"),
    ("metanet", {"network": "resnet12"}, "--network is resnet12 with --method metanet, which is"),
    ("metanet", {"eval_steps": 2}, "--eval-steps is 2 with --method metanet, which is --eval-step"),
    ("siamese", {"temperature": 2.0}, "--temperature is 2.0 with --method siamese, which has none"),
])  # fmt: skip
def test_what_contradicts_a_method_is_one_line(name, wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        config(name, **wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("preset", "name"), [
    ("htym-2019", "anil"), ("htym-head", "maml"), ("finn-2017", "meta-sgd"),
    ("finn-2017", "maml++"),
])  # fmt: skip
def test_a_protocol_of_one_method_refuses_others(preset, name) -> None:
    with pytest.raises(UserError, match=rf"--preset is '{preset}' with --method .*: it goes with "):
        Config.of(preset, "mini", method=name)
    with pytest.raises(UserError, match="--method is 'anli': did you mean|--method is 'anli'"):
        Config.of(preset, "mini", method="anli")


@pytest.mark.parametrize(
    ("name", "options"), [*((n, {}) for n in INNER), ("matching", {"context": 2})]
)
def test_an_iteration_has_the_same_bits_on_any_number_of_threads(name, options, threads) -> None:
    cfg = config(name, tasks=3, **options)
    state, found = meta.init_state(cfg), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(meta.meta_step(state, two_shots(random_episode(cfg)), cfg)[0])
    for one, two in zip(found[0][:4], found[1][:4], strict=True):
        assert all(map(torch.equal, one, two))
