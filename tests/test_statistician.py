"""The neural statistician: its size, and its bound by the distributions of torch."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from engine import meta
from engine.config import Config
from engine.episodes import Episode
from engine.methods.loops import loop
from engine.models import network
from engine.models.statistician import Gaussian, divergence
from tests.own_networks import alone, config, filled, problem
from tests.test_meta import random_episode
from tests.test_methods import close

__all__ = ["alone"]


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


def test_an_image_unlike_all_others_is_far_from_every_class_and_no_overflow() -> None:
    classes = Gaussian(torch.ones(3, 512), torch.ones(3, 512))
    unlike = Gaussian(torch.zeros(512), torch.full((512,), -138.0))
    apart = divergence(classes, unlike)
    assert apart.isfinite().all() and (apart > 1e30).all()


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


def test_a_class_is_told_by_its_divergence_from_an_image_and_not_the_other_way_round(
    monkeypatch,
) -> None:
    cfg = config("statistician", ways=2)
    net = network(cfg).module
    wide, narrow = (torch.full((1, 3), v, dtype=torch.float64) for v in (2.0, -2.0))
    classes = Gaussian(torch.zeros(2, 3).double(), torch.cat([wide, narrow]))
    alone = Gaussian(torch.ones(1, 3).double(), torch.zeros(1, 3).double())
    by_class = divergence(classes, alone.rows(torch.tensor([0, 0])))
    by_image = divergence(alone.rows(torch.tensor([0, 0])), classes)
    assert by_class.argmin() != by_image.argmin()
    monkeypatch.setattr(net, "contexts", lambda h, labels: alone)
    found = net._answer(classes, torch.zeros(1, 1))
    close(found[0], -by_class)


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
