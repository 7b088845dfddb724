"""Methods that answer by what they keep of a support set: their gradients by differences, their
answers by the plain formula, and where they are something simpler.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from engine import meta, unroll
from engine.config import Config
from engine.episodes import Episode
from engine.errors import UserError
from engine.methods import EMBEDDING, KEEPING, heads
from engine.methods.loops import loop
from engine.models import network
from engine.models.interface import Moments
from engine.models.koch import Koch
from engine.models.metanet import told
from engine.models.remember import MARGIN, by_turns, stream
from engine.models.statistician import Gaussian, divergence
from engine.scoring import with_ways
from tests import plain_loop
from tests.test_adjoint import random_problem
from tests.test_meta import random_episode
from tests.test_methods import SIZES, close, two_shots

OWN = {
    "siamese": {"network": "own", "image_size": 65, "filters": 2},
    "memory": {"filters": 2},
    "metanet": {"filters": 6},
    "statistician": {"filters": 2, "norm_statistics": "running", "eval_targets": 0},
}


def config(name: str, **explicit) -> Config:
    """Of the method with a network of its own."""
    sizes = {name: value for name, value in SIZES.items() if name != "stages"}
    explicit = sizes | {"ways": 2, "targets": 1, "precision": "fp32"} | OWN[name] | explicit
    return Config.of("maml", "folder", method=name, **explicit)


def problem(cfg: Config, seed: int = 0):
    """In float64: a model, parameters off their first values, tasks of two shots."""
    model, g = network(cfg), torch.Generator().manual_seed(seed)
    params = model.init(1, 1, 0.1, g, torch.float64)
    theta = params.theta + 0.02 * torch.randn(params.theta.shape, generator=g, dtype=torch.float64)
    twice = dataclasses.replace(cfg, targets=cfg.targets + 1)
    episode = random_episode(twice, seed).map(
        lambda values: values.double() if values.is_floating_point() else values
    )
    shape = 1, model.stat_width
    running = 0.1 * torch.randn(shape, generator=g, dtype=torch.float64)
    running = Moments(running, 1 + running.abs())
    return model, params._replace(theta=theta), two_shots(episode), running


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """One thread: the work of each operation is too little for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("name", [name for name in OWN if name != "memory"])
def test_gradients_are_differences_of_the_loss(name, use_running) -> None:
    cfg = config(name)
    model, params, episode, running = problem(cfg)
    of, given = loop(cfg, model), running if use_running else None

    def found(theta):
        torch.manual_seed(0)  # the same draws at each point
        return of.adjoint(model, params._replace(theta=theta), episode, [0.5], True, given)

    ours = found(params.theta)
    assert ours.gradient.theta.shape == (2, *params.theta.shape) and ours.rows == (0,)
    assert not ours.gradient.rates.any() and ours.moments.mean.shape == (2, 1, model.stat_width)
    close(ours.loss, 0.5 * ours.per_step[0])
    whole = ours.gradient.theta.sum(0)
    by_differences(model.sizes, params.theta, whole, lambda theta: found(theta).loss.sum())


def by_differences(sizes, theta, gradient, loss) -> None:
    """The gradient is the loss's, along directions that have length 1 in every tensor."""
    scale = sum(part.norm() for part in gradient.split(sizes))
    for _ in range(3):
        parts = [torch.randn(size, dtype=torch.float64) for size in sizes]
        direction = torch.cat([part / part.norm() for part in parts])
        ahead, behind = (loss(theta + sign * 1e-7 * direction) for sign in (1, -1))
        assert ((ahead - behind) / 2e-7 - gradient @ direction).abs() <= 1e-6 * scale + 1e-9


@pytest.mark.parametrize("name", OWN)
def test_a_task_is_answered_by_what_was_kept(name) -> None:
    """Whatever is asked beside, with the statistics that each protocol says."""
    cfg = config(name)
    model, params, episode, running = problem(cfg)
    of, theta = loop(cfg, model), params.theta.expand(2, -1)
    kept, moments = of.learn(model, params, episode.support_x, episode.support_y)
    once, each = of.keeps(model)
    assert kept.shape[0] == 2 and (kept.shape[1] - once) % each == 0
    images = model.prepare(episode.target_x, 1)
    for options, given in (
        ({}, None),
        ({"protocol": "inductive"}, moments),
        ({"norm_statistics": "running"}, Moments(*(m[0] for m in running))),
    ):
        if "norm_statistics" in options:
            kept, _ = of.learn(model, params, episode.support_x, episode.support_y, given)
        expected = of.answer(model, images, theta, kept, cfg.ways, params.norm[0], given)
        found = of.adapt_and_predict(model, params, running, episode, steps=1, **options)
        assert torch.equal(found, expected) and found.shape == (
            2,
            episode.target_y.shape[1],
            cfg.ways,
        )
        if given is not None:
            for i in range(found.shape[1]):
                one = model.prepare(episode.target_x[:, i : i + 1], 1)
                alone = of.answer(model, one, theta, kept, cfg.ways, params.norm[0], given)
                error = (alone[:, 0] - found[:, i]).abs().max()
                assert error <= 1e-12 * found.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", OWN)
def test_it_learns_by_a_function_of_seed_and_iteration(name) -> None:
    cfg = config(name, tasks=3)
    states, losses = [], []
    for _ in range(2):
        torch.manual_seed(len(states))  # of what the process drew before
        state = first = meta.init_state(cfg)
        for i in range(2):
            state, metrics = meta.meta_step(state, random_episode(cfg, i), cfg)
            assert metrics.nonfinite is None
            losses.append(metrics.loss)
        states.append(state)
    assert losses[:2] == losses[2:]
    for a, b in zip(*(s.params for s in states), strict=True):
        assert torch.equal(a, b)
    moved = (state.params.theta != first.params.theta).split(network(cfg).sizes)
    still = [name for name, of in zip(network(cfg).shapes, moved, strict=True) if not of.any()]
    assert not still
    assert torch.equal(state.params.rates, first.params.rates)
    other = meta.init_state(dataclasses.replace(cfg, seed=1))
    assert not torch.equal(other.params.theta, first.params.theta)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
def test_gradients_of_siamese_networks_on_the_backbone(use_running, downsample) -> None:
    cfg = Config.of("maml", "folder", method="siamese", downsample=downsample, **SIZES)
    model = network(cfg)
    params, _, running = random_problem(model, 1, 2, 1)
    _, episode, _ = random_problem(dataclasses.replace(model, ways=3), 1, 2, 1)
    episode = two_shots(episode)
    given = running if use_running else None
    found = unroll.total([loop(cfg, model).adjoint(model, params, episode, [0.5], True, given)])
    row = given and Moments(*(m[0] for m in given))
    theta, norm = (p.clone().requires_grad_() for p in params[:2])
    total = 0
    for x, y, target_x, target_y in zip(*vars(episode).values(), strict=True):
        weights = plain_loop.named(model, theta)
        h = plain_loop.features(model, weights, norm[0], torch.cat([x, target_x]), row)
        z = pair_odds(weights, h[: len(y)], h[len(y) :])
        kinds = {True: [], False: []}
        for q, label in enumerate(target_y):
            for i, other in enumerate(y):
                same = bool(label == other)
                kinds[same].append(F.softplus(-z[q, i] if same else z[q, i]))
        total = total + sum(torch.stack(losses).mean() / 2 for losses in kinds.values())
    exact = torch.autograd.grad(total, [theta, norm])
    close(found.loss, 0.5 * total.detach())
    close(found.gradient.theta, 0.5 * exact[0])
    close(found.gradient.norm, 0.5 * exact[1])
    logits = torch.stack([z[:, y == w].mean(1) for w in range(3)], 1)
    close(found.logits[-1], logits.detach())


def pair_odds(weights, h_s, h_q):  # [m, n]
    rows = [[weights["linear.weight"][0] @ (q - s).abs() for s in h_s] for q in h_q]
    return torch.stack([torch.stack(row) for row in rows]) + weights["linear.bias"]


@pytest.mark.usefixtures("backend")
def test_siamese_networks_of_equal_weights_take_the_nearest() -> None:
    cfg = Config.of("maml", "folder", method="siamese", **SIZES)
    model = network(cfg)
    params, _, running = random_problem(model, 1, 2, 1)
    _, episode, _ = random_problem(dataclasses.replace(model, ways=3), 1, 2, 1)
    width = model.sizes[-2]
    params.theta[-width - 1 : -1] = -1
    params.theta[-1] = 0
    options = {"steps": 1, "norm_statistics": "running"}
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, **options)
    row, theta = Moments(*(m[0] for m in running)), params.theta.expand(2, -1)
    h_s, h_q = (
        model.prepare(x, 1).embed(theta, params.norm[0], row).features
        for x in (episode.support_x, episode.target_x)
    )
    nearest = torch.cdist(h_q, h_s, p=1).argmin(2)
    assert torch.equal(found.argmax(2), episode.support_y.gather(1, nearest))


def test_kochs_network_is_as_large_as_the_paper_has_it() -> None:
    cfg = Config.of("maml++", "omniglot", method="siamese", network="own")
    assert (cfg.image_size, cfg.filters) == (105, 64)
    assert sum(meta.layout(cfg).params.theta.shape) == 38_951_745
    with pytest.raises(UserError, match="--image-size is 64 with --network own: Koch's takes 65"):
        Koch(1, 64, 2)


@pytest.mark.parametrize("name", [name for name in KEEPING if name in EMBEDDING])
@pytest.mark.parametrize("which", ["own", "conv4"])
def test_a_state_for_other_ways_is_the_same_one(name, which) -> None:
    cfg = config(name)
    if which == "conv4":
        cfg = Config.of("maml", "folder", method="siamese", **SIZES)
    state = meta.init_state(cfg)
    other = with_ways(state, cfg, dataclasses.replace(cfg, ways=5))
    assert all(torch.equal(a, b) for a, b in zip(other.params, state.params, strict=True))


def test_the_memory_network_is_as_large_as_the_code_has_it() -> None:
    cfg = Config.of("maml++", "omniglot", method="memory")
    assert sum(meta.layout(cfg).params.theta.shape) == 1_930_432
    with pytest.raises(UserError, match="--image-size is 3 with --method memory: its network hal"):
        network(dataclasses.replace(cfg, image_size=3))


def test_a_stream_shows_each_class_once_before_any_twice() -> None:
    assert by_turns(torch.tensor([1, 1, 1, 0, 0, 2])).tolist() == [0, 3, 5, 1, 4, 2]
    assert by_turns(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_what_is_written_to_a_memory() -> None:
    """As a list of (key, value) that grows."""
    q = F.normalize(torch.randn(14, 3, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])
    keys, values, pulls = stream(q, labels, 8)
    entries, merged = [], 0
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8, 10, 12, 9, 11, 13]
    for count, i in enumerate(order):
        if count == 8:
            kept = [(k.clone(), y) for k, y in entries]
        y = int(labels[i])
        of = {True: None, False: None}
        for place, (key, value) in enumerate(entries):
            best = of[value == y]
            if best is None or key @ q[i] > entries[best][0] @ q[i]:
                of[value == y] = place
        expected = sum(
            sign * entries[of[kind]][0]
            for sign, kind in ((1, False), (-1, True))
            if of[kind] is not None
        )
        close(pulls[i], expected + torch.zeros(3, dtype=torch.float64))
        mine, other = of[True], of[False]
        nearest = mine is not None and (
            other is None or entries[mine][0] @ q[i] >= entries[other][0] @ q[i]
        )
        if nearest:
            entries[mine] = F.normalize(entries[mine][0] + q[i], dim=0), y
            merged += 1
        else:
            entries.append((q[i], y))
    assert 2 < merged < 11
    written = values >= 0
    assert values[written].tolist() == [y for _, y in kept]
    close(keys[written], torch.stack([key for key, _ in kept]))


def filled(model, theta):
    """The network itself, in float64."""
    net = copy.deepcopy(model.module).double()
    torch.nn.utils.vector_to_parameters(theta, net.parameters())
    return net.requires_grad_(False)


def test_the_loss_of_a_memory_is_the_margin_of_each_image_at_its_time() -> None:
    cfg = config("memory")
    model, params, episode, _ = problem(cfg)
    episode, net = episode.slice(0, 1), filled(model, params.theta)
    x, y, target_x, target_y = (values[0] for values in vars(episode).values())
    found = loop(cfg, model).adjoint(model, params, episode, [1.0], True)
    q = net.queries(torch.cat([x, target_x]))
    keys, values, pulls = stream(q, torch.cat([y, target_y]), len(x))
    margins = [max(0.0, float(a @ b) + MARGIN) - MARGIN for a, b in zip(q, pulls, strict=True)]
    assert abs(float(found.loss) - sum(margins) / len(margins)) < 1e-12
    likeness = q[len(x) :] @ keys.T
    right = torch.stack([likeness[:, values == w].max(1).values for w in range(cfg.ways)], 1)
    close(found.logits[0], right)

    def loss(theta):
        """With the keys as they are."""
        q = filled(model, theta).queries(torch.cat([x, target_x]))
        return ((q * pulls).sum(1) + MARGIN).relu().mean()

    by_differences(model.sizes, params.theta, found.gradient.theta[0], loss)


def test_a_memory_of_one_image_a_class_answers_as_matching_networks_do() -> None:
    cfg = config("memory", ways=4)
    model, params, _, running = problem(cfg)
    episode = random_episode(cfg).map(lambda v: v.double() if v.is_floating_point() else v)
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=1)
    net = filled(model, params.theta)
    for t in range(2):
        h_s, h_q = (net.queries(x[t])[None] for x in (episode.support_x, episode.target_x))
        expected, _ = heads.Matching().fwd(h_s, episode.support_y[t : t + 1], h_q, 4)
        close(found[t], expected[0])


def test_the_neural_statistician_is_as_large_as_the_code_has_it() -> None:
    """But for two layers of latents of latents, which it does not use, and the variance."""
    cfg = Config.of("maml++", "omniglot", method="statistician")
    assert (cfg.targets, cfg.eval_targets, cfg.clamp) == (4, 1, 0.5)
    convolutions = conv(1, 64, 9) + 2 * conv(64, 64, 9) + conv(64, 128, 9) + 2 * conv(128, 128, 9)
    convolutions += conv(128, 256, 9) + 2 * conv(256, 256, 9)
    decoder = 2 * conv(256, 256, 9) + conv(256, 256, 4) + conv(256, 128, 9) + conv(128, 128, 9)
    decoder += conv(128, 128, 4) + conv(128, 64, 9) + conv(64, 64, 9) + conv(64, 64, 4) + 65
    full, context = conv(256, 256, 1), 512 * 256 + 256
    statistics = conv(4096, 256, 1) + 2 * full + 257 * 1024 + 2
    latents = 4097 * 256 + 2 * (context + 3 * full + 257 * 32 + 2)
    observed = 17 * 256 + context + 257 * 4096
    total = convolutions + decoder + statistics + latents + observed
    assert sum(meta.layout(cfg).params.theta.shape) == total + 1 == 8_361_544


def conv(inputs: int, outputs: int, area: int) -> int:
    """Weights, biases, gains and biases of batch norm."""
    return inputs * outputs * area + 3 * outputs


@pytest.mark.parametrize("side", [1, 5, 13, 28, 84])
def test_pictures_of_any_size_are_made_anew_in_their_size(side) -> None:
    net = network(config("statistician", image_size=side)).module
    x, z, c = torch.rand(2, 1, side, side), torch.randn(2, 1), torch.randn(2, 16)
    assert net.log_likelihood(x, z, c).shape == (2,)


def test_divergences_are_those_of_torch() -> None:
    p, q = (Gaussian(torch.randn(3, 4), torch.randn(3, 4)) for _ in range(2))
    of = [Independent(Normal(g.mean, (g.logvar / 2).exp()), 1) for g in (p, q)]
    torch.testing.assert_close(divergence(p, q), kl_divergence(*of))


@pytest.mark.parametrize("dataset", ["folder", "omniglot"])
def test_the_bound_of_the_neural_statistician(dataset) -> None:
    """As distributions of torch have it, by the same draws."""
    cfg = dataclasses.replace(config("statistician"), dataset=dataset)
    model, params, episode, _ = problem(cfg)
    episode, net = episode.slice(0, 1).map(lambda v: v.clamp(min=0)), filled(model, params.theta)
    x, y, target_x, target_y = (values[0] for values in vars(episode).values())
    if dataset == "omniglot":
        x, target_x = (x > 0.5).to(x), (target_x > 0.5).to(x)
        episode = Episode(x[None], y[None], target_x[None], target_y[None])
    torch.manual_seed(2)
    found = loop(cfg, model).adjoint(model, params, episode, [1.0], True)
    torch.manual_seed(2)
    images, sets = torch.cat([x, target_x]), torch.cat([y, target_y])
    h = net.encoder(images)
    e = net.before_pool(h)
    pooled = torch.stack([e[sets == w].mean(0) for w in range(cfg.ways)])
    q_c = normal(net.context(net.after_pool(pooled)))
    c = q_c.mean + q_c.stddev * torch.randn_like(q_c.mean)
    q_z = normal(net.latent(F.elu(net.latent_h(h) + net.latent_c(c)[sets])))
    z = q_z.mean + q_z.stddev * torch.randn_like(q_z.mean)
    p_z = net.prior(F.elu(net.prior_c(c)))
    p_z = Normal(p_z.mean[sets], (p_z.logvar / 2).exp()[sets])
    made = net.decoder(F.elu(net.decoder_z(z) + net.decoder_c(c)[sets]))[..., :14, :14]
    p_x = Normal(made, (net.logvar / 2).exp())
    if dataset == "omniglot":
        p_x = Bernoulli(logits=made)
    bound = p_x.log_prob(images).sum() - kl_divergence(q_c, Normal(0.0, 1.0)).sum()
    bound = bound - kl_divergence(q_z, p_z).sum()
    close(found.loss, -bound[None] / len(images))


def normal(of: Gaussian) -> Normal:
    return Normal(of.mean, (of.logvar / 2).exp())


def test_the_context_of_an_image_is_at_no_distance_of_itself() -> None:
    cfg = config("statistician", ways=4)
    model, params, _, running = problem(cfg)
    episode = random_episode(cfg).map(lambda v: v.double() if v.is_floating_point() else v)
    episode = dataclasses.replace(episode, target_x=episode.support_x.flip(1))
    options = {"steps": 1, "norm_statistics": "running"}
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, **options)
    assert torch.equal(found.argmax(2), torch.tensor([[3, 2, 1, 0]] * 2))
    close(found.amax(2) + 1, torch.ones(2, 4, dtype=torch.float64))
    assert (found.flip(2).diagonal(dim1=1, dim2=2).abs() < 1e-12).all()


def test_each_meta_network_is_as_large_as_the_port_has_it() -> None:
    net = network(Config.of("maml++", "omniglot", method="metanet")).module
    assert [sum(p.numel() for p in of) for of in (net.embedder, net.base)] == [152_448] * 2
    with pytest.raises(UserError, match="--image-size is 7 with --method metanet: its networks"):
        network(config("metanet", image_size=7))


def test_a_gradient_is_told_by_its_size_and_sign() -> None:
    least = math.exp(-7)
    g = torch.tensor([0.0, 1.0, -math.exp(-3.5), least / 2], dtype=torch.float64)
    expected = [[-1, 0], [0, 1], [-0.5, -1], [-1, 0.5]]
    close(told(g), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("order", [1, 2])
def test_meta_networks_are_their_plain_algorithm(order) -> None:
    """An image at a time, layer by layer, differentiated by autograd."""
    cfg = config("metanet")
    model, params, episode, _ = problem(cfg)
    episode = episode.slice(0, 1)
    found = loop(cfg, model).adjoint(model, params, episode, [1.0], order == 2)
    net = filled(model, params.theta).requires_grad_()
    x, y, target_x, target_y = (values[0] for values in vars(episode).values())
    by_images = [
        [
            torch.autograd.grad(loss, [*weights], create_graph=True)
            for loss in (
                F.cross_entropy(plain_meta(weights, None, one)[1], label[None])
                for one, label in zip(x, y, strict=True)
            )
        ]
        for weights in (net.embedder, net.base)
    ]
    if order == 1:
        by_images = [[[g.detach() for g in of] for of in images] for images in by_images]
    of_u, of_b = by_images
    fast_u = [
        plain_lstm(net.d[i > 4], [g[i].flatten() for g in of_u]).view(weight.shape)
        for i, weight in enumerate(net.embedder[:-1])
    ]
    fast_b = [
        [net.m[i > 4](told(part.flatten())).view(part.shape) for i, part in enumerate(of)]
        for of in of_b
    ]
    keys = [plain_meta(net.embedder, fast_u, one)[0] for one in x]
    rows = []
    for one in target_x:
        r, _ = plain_meta(net.embedder, fast_u, one)
        a = torch.stack([F.cosine_similarity(r, k)[0] for k in keys]).softmax(0)
        mixed = [
            sum(w * part for w, part in zip(a, of, strict=True)) for of in zip(*fast_b, strict=True)
        ]
        rows.append(plain_meta(net.base, mixed, one)[1][0])
    loss = F.cross_entropy(torch.stack(rows), target_y)
    close(found.logits[0], torch.stack(rows).detach())
    close(found.loss[0], loss.detach())
    exact = torch.autograd.grad(loss, [*net.parameters()], materialize_grads=True)
    close(found.gradient.theta[0], torch.cat([g.flatten() for g in exact]))


def plain_meta(weights, fast, x):
    """Key and logits of an image."""
    x = x.clone(memory_format=torch.contiguous_format).view(1, 1, 14, 14)
    for i in range(5):
        slow = F.conv2d(x, weights[i], padding=1)
        x = slow.relu() if fast is None else slow.relu() + F.conv2d(x, fast[i], padding=1).relu()
        x = F.max_pool2d(x, 2) if i < 3 else x
    h = x.flatten(2).max(2).values
    h = h @ (weights[5] if fast is None else weights[5] + fast[5]).T
    last = weights[6] if fast is None or len(fast) == 6 else weights[6] + fast[6]
    return h, h @ last.T


def plain_lstm(d, gradients):
    """Of gradients [P] of the images in turn, a weight each."""
    w, u, b, c = (getattr(d.lstm, f"{n}_l0") for n in "weight_ih weight_hh bias_ih bias_hh".split())
    h = cell = torch.zeros(len(gradients[0]), 20, dtype=torch.float64)
    for g in gradients:
        i, f, new, o = (told(g) @ w.T + b + h @ u.T + c).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * new.tanh()
        h = o.sigmoid() * cell.tanh()
    return (h @ d.out.weight.T)[:, 0]


def test_meta_networks_without_fast_weights_are_a_plain_network() -> None:
    cfg = config("metanet")
    model, params, episode, running = problem(cfg)
    theta = dict(zip(model.shapes, params.theta.split(model.sizes), strict=True))
    for name in ("d.0.out.weight", "d.1.out.weight", "m.0.4.weight", "m.1.4.weight"):
        theta[name].zero_()
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=1)
    base = [theta[f"base.{i}"].view(model.shapes[f"base.{i}"]) for i in range(7)]
    for t in range(2):
        rows = [plain_meta(base, None, one)[1][0] for one in episode.target_x[t]]
        close(found[t], torch.stack(rows))
