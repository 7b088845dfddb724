"""ResNet-12: its meta-gradient against torch.autograd over ordinary torch ops, and over the same
network written of torch's own modules, in float64.
"""

from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import kernels
from bench.baselines.resnet12 import TorchResNet12
from engine import evaluate, train, unroll
from engine.config import Config
from engine.episodes import Episode
from engine.errors import UserError
from engine.models.interface import Moments, Params
from engine.models.resnet12 import WIDTHS, ResNet12
from engine.runs import checkpoint
from engine.runtime.machine import machine
from engine.runtime.workers import over_blocks
from kernels import reference
from tests.ops import assert_close, randn
from tests.tiny import flags, without_rate

BACKEND = pytest.mark.parametrize("backend", ["plain", "auto"])
ORDER = pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])


def small(**options) -> ResNet12:
    return ResNet12(3, 16, 3, (4, 6, 8, 10), **options)


def problem(
    model: ResNet12, steps: int, rows: int, tasks: int = 2
) -> tuple[Params, Episode, Moments]:
    """Parameters off their initial values, a gain below 0, and random episodes."""
    params = model.init(steps, rows, 0.1, torch.Generator().manual_seed(1), torch.float64)
    norm = params.norm + 0.2 * randn(2, *params.norm.shape)
    norm[:, 0] = -0.7
    theta = params.theta + 0.02 * randn(3, *params.theta.shape)
    params = Params(theta, norm, params.rates + 0.02 * randn(4, *params.rates.shape))
    x = [randn(5 + n, tasks, n, 3, model.image_size, model.image_size) for n in (3, 6)]
    y = [torch.arange(n).remainder(3).expand(tasks, -1) for n in (3, 6)]
    mean, var = (randn(20 + i, rows, model.stat_width) for i in range(2))
    return params, Episode(x[0], y[0], x[1], y[1]), Moments(0.1 * mean, 1 + 0.1 * var.abs())


def assert_same(ours: unroll.MetaGradient, exact: unroll.MetaGradient) -> None:
    pairs = [("loss", ours.loss, exact.loss), ("logits", ours.logits, exact.logits)]
    pairs += zip(Params._fields, ours.gradient, exact.gradient, strict=True)
    pairs += zip(Moments._fields, ours.moments, exact.moments, strict=True)
    for name, a, e in pairs:
        assert a.shape == e.shape and (a - e).abs().max() <= 1e-10 * e.abs().max(), name
    assert ours.rows == exact.rows


@BACKEND
@ORDER
@pytest.mark.parametrize(
    ("weights", "rows", "given"),
    [([0.2, 0.0, 0.8], 3, False), ([0.0, 1.0], 1, False), ([0.5, 0.5], 2, True)],
    ids=["msl", "last", "running"],
)
def test_the_adjoint_is_the_gradient_of_the_unrolled_loop(
    backend: str, second_order: bool, weights: list[float], rows: int, given: bool
) -> None:
    model = small()
    params, episode, running = problem(model, len(weights), rows)
    arguments = model, params, episode, weights, second_order, running if given else None
    with kernels.use(backend):
        ours = unroll.total([unroll.adjoint(*arguments)])
        by_ops = unroll.total([unroll.autograd(*arguments)])
    exact = unroll.total([unroll.autograd(*arguments, ops=reference)])
    assert_same(ours, exact)
    assert_same(by_ops, exact)


@BACKEND
def test_a_first_convolution_so_light_that_it_is_run_again(backend: str) -> None:
    model = ResNet12(1, 8, 3, (8, 16))
    params, episode, _ = problem(model, 2, 2)
    episode = Episode(
        episode.support_x[:, :, :1], episode.support_y, episode.target_x[:, :, :1], episode.target_y
    )
    images, theta = model.prepare(episode.support_x, 1), params.theta.expand(2, -1)
    with kernels.use(backend):
        kept = images.loss_and_gradient(theta, params.norm[0], episode.support_y, keep=True).kept
        assert [[z is None for z in b.z] for b in kept.blocks] == [
            [True, False, False, True],
            [False, False, False, True],
        ]
        arguments = model, params, episode, [0.3, 0.7], True
        assert_same(
            unroll.total([unroll.adjoint(*arguments)]),
            unroll.total([unroll.autograd(*arguments, ops=reference)]),
        )


@BACKEND
def test_sides_that_pooling_leaves_pixels_of(backend: str) -> None:
    model = ResNet12(1, 21, 3, (3, 5), negative_slope=0.0)
    params, episode, _ = problem(model, 2, 2)
    episode = Episode(
        episode.support_x[:, :, :1], episode.support_y, episode.target_x[:, :, :1], episode.target_y
    )
    arguments = model, params, episode, [0.3, 0.7], True
    with kernels.use(backend):
        assert_same(
            unroll.total([unroll.adjoint(*arguments)]),
            unroll.total([unroll.autograd(*arguments, ops=reference)]),
        )


@ORDER
def test_the_meta_gradient_of_torchs_own_modules(second_order: bool) -> None:
    model, loss_weights = small(), [0.4, 0.6]
    params, episode, _ = problem(model, 2, 2, tasks=1)
    network = TorchResNet12(model).double()
    leaves = Params(*(p.clone().requires_grad_() for p in params))
    names, norms = network.adapted(), network.norms()
    fast = dict(zip(names, [w[0] for w in model.weights(leaves.theta[None])], strict=True))

    def loss_of(k: int, x: Tensor, y: Tensor) -> Tensor:
        affine = [v[0] for v in chain(*model.affine(leaves.norm[k]))]
        state = fast | dict(zip(norms, affine, strict=True))
        return F.cross_entropy(functional_call(network, state, (x[0],)), y[0])

    total = torch.zeros((), dtype=torch.float64)
    for k, weight in enumerate(loss_weights):
        loss = loss_of(k, episode.support_x, episode.support_y)
        gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=second_order)
        steps = zip(fast.items(), gradient, leaves.rates[k], strict=True)
        fast = {name: value - rate * g for (name, value), g, rate in steps}
        total = total + weight * loss_of(k, episode.target_x, episode.target_y)
    expected = torch.autograd.grad(total, leaves)
    ours = unroll.total([unroll.adjoint(model, params, episode, loss_weights, second_order)])
    assert_close(ours.loss, total.detach(), 1e-12)
    for a, e in zip(ours.gradient, expected, strict=True):
        assert (a - e).abs().max() <= 1e-10 * e.abs().max()


def test_it_predicts_as_it_trains_and_as_torchs_modules_evaluate() -> None:
    model = small()
    params, episode, running = problem(model, 1, 1)
    trained = unroll.adjoint(model, params, episode, [1.0], False)
    logits = unroll.adapt_and_predict(model, params, running, episode, steps=1)
    assert_close(logits, trained.logits, 1e-13)
    network = TorchResNet12(model).double().eval()
    weights = [w[0] for w in model.weights(params.theta[None])]
    affine = [v[0] for v in chain(*model.affine(params.norm[0]))]
    state = dict(zip(network.adapted() + network.norms(), weights + affine, strict=True))
    moments = zip(*(m[0].split(model.norm_widths) for m in running), strict=True)
    for (mean, var), name in zip(moments, network.norms()[::2], strict=True):
        at = name.removesuffix("weight")
        state |= {f"{at}running_mean": mean, f"{at}running_var": var}
    given = Moments(*(m[0] for m in running))
    images = model.prepare(episode.target_x, 1)
    theta = params.theta.expand(2, -1)
    ours = images.predict(theta, params.norm[0], given)[0]
    for t in range(2):
        assert_close(ours[t], functional_call(network, state, (episode.target_x[t],)), 1e-12)


def test_a_task_depends_neither_on_its_batch_nor_on_the_threads(threads) -> None:
    model, bits = small(), []
    params, episode, _ = problem(model, 2, 2)
    params = Params(*(p.float() for p in params))
    episode = Episode(
        episode.support_x.float(), episode.support_y, episode.target_x.float(), episode.target_y
    )

    def gradient(of: Episode) -> unroll.MetaGradient:
        return unroll.adjoint(model, params, of, [0.5, 0.5], True)

    for count in (1, 2, 4):
        torch.set_num_threads(count)
        with kernels.only_kernels():
            found = unroll.total(over_blocks(gradient, episode, model, keeps=True))
        bits.append((found.loss, found.logits, *found.gradient))
    for other in bits[1:]:
        assert all(map(torch.equal, other, bits[0]))


def test_what_an_inner_step_holds_is_less_than_half_of_what_autograd_does() -> None:
    model = ResNet12(3, 32, 3, (8, 8, 8, 8))
    params, episode, _ = problem(model, 1, 1, tasks=1)
    x, y, theta = episode.support_x, episode.support_y, params.theta[None]
    with kernels.use("plain"):
        images = model.prepare(x, 1)
        kept = images.loss_and_gradient(theta, params.norm[0], y, keep=True).kept
        assert images.loss_and_gradient(theta, params.norm[0], y).kept is None
    of_block = [[z for z in b.z if z is not None] for b in kept.blocks]
    assert [len(zs) for zs in of_block] == [3, 3, 3, 3]  # shortcuts are run again
    held = [t for b in kept.blocks for t in (b.x, *b.z, *b.du, b.y, b.dy, b.index)]
    held = [t for t in held if t is not None]
    for b, zs in zip(kept.blocks, of_block, strict=True):
        assert sum(t.numel() for t in (*zs, *b.du)) == 5 * b.z[1].numel()

    saved = {}
    network = TorchResNet12(model).double()
    own = {p.data_ptr() for p in network.parameters()}

    def see(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        saved_tensors.append(t)  # or its place would be another's
        return t

    saved_tensors = []
    with torch.autograd.graph.saved_tensors_hooks(see, lambda t: t):
        loss = F.cross_entropy(network(x[0]), y[0])
        torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    theirs = sum(size for place, size in saved.items() if place not in own)
    ours = sum({t.data_ptr(): t.nbytes for t in held}.values())
    assert 0 < ours < theirs / 2.9, (ours, theirs)


def test_sizes_names_and_initial_values_are_those_of_the_papers() -> None:
    model = ResNet12.of(Config.of(dataset="mini"))
    assert (model.widths, model.image_size, model.image_sizes[-1]) == (WIDTHS, 84, 5)
    filters = sum(p.numel() for p in TorchResNet12(model).parameters() if p.dim() > 1)
    assert sum(model.sizes) == filters + 5 and model.stat_width == 4 * sum(WIDTHS)
    assert list(model.shapes)[:4] == [
        f"block0.{unit}.weight" for unit in ("conv0", "conv1", "conv2", "shortcut")
    ]
    params = small().init(2, 2, 0.3, torch.Generator().manual_seed(0))
    assert params.rates.shape == (2, 18) and params.norm.shape == (2, 2 * small().stat_width)
    gain, bias = small().affine(params.norm[1])[5]
    assert gain.tolist() == [[1.0] * 6] and bias.tolist() == [[0.0] * 6]
    weight = small().weights(params.theta[None])[9]
    assert weight.shape == (1, 8, 8, 3, 3)
    assert weight.std().item() == pytest.approx((2 / 1.01 / 72) ** 0.5, rel=0.1)
    with pytest.raises(UserError, match="image size is 15: .* takes 16 or more"):
        ResNet12(3, 15, 5)


@pytest.fixture(scope="module")
def argv(images) -> list[str]:
    """Of a training of it; conv4's own settings have their usual values."""
    more = "--filters 48 --stages 4 --network resnet12 --widths 4,6,8,10 --negative-slope 0.2"
    return flags(images, images.parent / "run", *more.split(), "--epochs", 1)


@pytest.fixture(scope="module")
def run(argv):
    assert train.main(argv) == 0
    return Path(argv[argv.index("--run") + 1])


def test_the_command_line_trains_and_tests_it(run, argv, tmp_path, capsys):
    capsys.readouterr()
    assert evaluate.main([str(run)]) == 0
    assert capsys.readouterr().out.count("ensemble of 1") == 1
    other = [*argv, "--run", str(tmp_path / "other")]
    for more, words in (
        (["--precision", "bf16"], "--precision is bf16 with --network resnet12"),
        (["--image-size", "8"], "4 stages of pooling need at least 16 pixels"),
    ):
        assert train.main([*other, *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_has_the_widths_and_the_slope(run, argv, capsys):
    saved = checkpoint.load(run / "latest.pt")
    cfg = Config.from_dict(saved.config)
    model = ResNet12.of(cfg)
    assert (model.widths, model.negative_slope) == ((4, 6, 8, 10), 0.2)
    assert saved.state["params"]["theta"].shape == (sum(model.sizes),)
    assert train.main([*argv, "--widths", "4,6,8,12"]) == 2
    assert "widths: 4,6,8,10 -> 4,6,8,12" in capsys.readouterr().err
    assert train.main([*argv, "--negative-slope", "0.1"]) == 2
    assert "negative_slope: 0.2 -> 0.1" in capsys.readouterr().err
    other = ["--run", str(run.parent / "new"), "--init", str(run), "--widths", "4,6,8,12"]
    argv = without_rate(argv) + other
    assert train.main(argv) == 2
    assert "of another network (widths: 4,6,8,10 -> 4,6,8,12)" in capsys.readouterr().err


@pytest.mark.parametrize(("network", "keeps"), [("conv4", True), ("resnet12", False)])
def test_freed_memory_is_kept_where_that_pays(network, keeps, monkeypatch):
    calls = []
    monkeypatch.setattr("engine.runtime.machine.keep_freed_memory", lambda: calls.append(network))
    with machine(Config.of(network=network, device="cpu", backend="plain")):
        assert calls == [network] * keeps


def test_what_a_version_without_these_settings_had():
    cfg = Config.of(network="resnet12")
    assert ResNet12.of(cfg) == ResNet12(3, 84, 5)
    older = {n: v for n, v in cfg.to_dict().items() if n != "widths"} | {"negative_slope": 0.01}
    assert Config.from_dict(older) == cfg and cfg.differences(older) == []
    conv4 = {n: v for n, v in Config.of().to_dict().items() if n != "widths"}
    assert Config.from_dict(conv4) == Config.of() and Config.of().negative_slope == 0.01
