"""Parts for other loops: each step a batch norm of torch's own, learned rates as plain SGD, in
loops of every style.
"""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from kernels.nn import LSLR, PerStepBatchNorm1d, PerStepBatchNorm2d, at_step
from tests.ops import assert_close, randn

OPTIONS = [
    {"momentum": m, "affine": a, "track_running_stats": t}
    for m, a, t in product((0.1, None), (True, False), (True, False))
]
KINDS = [
    (PerStepBatchNorm1d, nn.BatchNorm1d, (4, 3)),
    (PerStepBatchNorm1d, nn.BatchNorm1d, (4, 3, 2)),
    (PerStepBatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 2)),
]


def randomized(module: nn.Module) -> nn.Module:
    for i, p in enumerate(module.parameters()):
        p.data.add_(randn(90 + i, *p.shape, dtype=p.dtype), alpha=0.3)
    return module


def equal(ours: nn.Module, theirs: nn.Module, row: int) -> bool:
    """Whether a row of ours is theirs."""
    state, expected = ours.state_dict(), theirs.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name][row], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("kind", "of_torch", "shape"), KINDS, ids=["2", "3", "4"])
def test_one_step_is_torchs_batch_norm_to_the_bit(kind, of_torch, shape, options) -> None:
    ours = randomized(kind(3, 1e-3, **options, dtype=torch.float64, steps=1))
    theirs = randomized(of_torch(3, 1e-3, **options, dtype=torch.float64))
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: (1, 3) for n, _ in theirs.named_parameters()
    }
    for i, mode in enumerate((True, True, False, True)):
        results = []
        for module in (ours.train(mode), theirs.train(mode)):
            x = randn(i, *shape).requires_grad_()
            y = module(x)
            inputs = [x, *module.parameters()]
            first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
            second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)
            results.append([t.squeeze(0) for t in (y, *first, *second)])
        assert all(map(torch.equal, *results)) and equal(ours, theirs, 0)
    ours.reset_running_stats(), theirs.reset_running_stats()
    assert equal(ours, theirs, 0)


def test_each_step_has_gains_biases_and_running_statistics_of_its_own() -> None:
    ours = PerStepBatchNorm2d(3, steps=3)
    theirs = [nn.BatchNorm2d(3) for _ in range(3)]
    for i, k in enumerate((0, 2, 2, 7)):  # a later step is as the last
        x = randn(i, 4, 3, 2, 2, dtype=torch.float32)
        with at_step(ours, k):
            assert torch.equal(ours(x), theirs[min(k, 2)](x))
    assert [equal(ours, theirs[k], k) for k in range(3)] == [True] * 3
    assert ours.num_batches_tracked.tolist() == [1, 0, 3]
    assert repr(ours) == (
        "PerStepBatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
        "track_running_stats=True, steps=3)"
    )
    assert PerStepBatchNorm2d(3, bias=False, steps=2).bias is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "shape"), [(k, s) for k, _, s in KINDS], ids=["2", "3", "4"])
def test_batch_norm_to_second_order(kind, shape, training: bool) -> None:
    module = kind(3, dtype=torch.float64, steps=3).train(training)
    rows = (randn(1, 3, 3).requires_grad_(), randn(2, 3, 3).requires_grad_())

    def f(x, weight, bias):
        state = {"weight": weight, "bias": bias}
        if training:  # which a check by differences must not change
            state |= {name: b.clone() for name, b in module.named_buffers()}
        with at_step(module, 1):
            return functional_call(module, state, (x,))

    inputs = randn(0, *shape).requires_grad_(), *rows
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)
    d_weight = torch.autograd.grad(f(*inputs).sum(), rows[1])[0]
    assert d_weight[1].abs().min() > 0 and not d_weight[[0, 2]].any()


def test_at_step_sets_at_once_and_in_a_with_gives_back() -> None:
    model = nn.Sequential(
        PerStepBatchNorm1d(3, steps=2), nn.Sequential(PerStepBatchNorm1d(3, steps=4))
    )
    inner = model[1][0]
    at_step(model, 1)
    with pytest.raises(KeyError), at_step(model, 3):
        assert (model[0].step, inner.step) == (3, 3)
        with at_step(model[1], 2):
            assert (model[0].step, inner.step) == (3, 2)
        assert copy.deepcopy(model)[1][0].step == inner.step == 3
        raise KeyError
    assert (model[0].step, inner.step) == (1, 1)
    for step in (-1, 1.0, True):
        with pytest.raises(ValueError, match=f"at_step: step must be an int .* got {step}"):
            at_step(model, step)
    assert (model[0].step, inner.step) == (1, 1)
    with pytest.raises(ValueError, match="at_step: Linear has no per-step batch norm"):
        at_step(nn.Linear(1, 1), 0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_checkpoint_tracks_as_torchs_batch_norm_does(momentum, reentrant: bool) -> None:
    ours = PerStepBatchNorm2d(3, momentum=momentum, steps=1, dtype=torch.float64)
    theirs = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    for shift in (0, 10):
        x = (shift + randn(shift, 4, 3, 2, 2)).requires_grad_()
        for module in (ours, theirs):
            checkpoint(module, x, use_reentrant=reentrant).sum().backward()
    assert equal(ours, theirs, 0)


@pytest.mark.parametrize("later", [0, 1])
def test_training_after_evaluation_does_not_change_its_gradient(later: int) -> None:
    ours = randomized(PerStepBatchNorm2d(3, steps=2, dtype=torch.float64)).eval()
    x = randn(0, 4, 3, 2, 2).requires_grad_()
    expected = torch.autograd.grad(ours(x).pow(2).sum(), x)
    y = ours(x).pow(2).sum()
    with at_step(ours.train(), later):
        ours(3 * x.detach() + 1)
    assert torch.equal(torch.autograd.grad(y, x)[0], expected[0])
    assert ours.num_batches_tracked.tolist() == [1 - later, later]


def test_what_does_not_fit_is_named() -> None:
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"PerStepBatchNorm1d: steps must be .* got {steps}"):
            PerStepBatchNorm1d(3, steps=steps)
        with pytest.raises(ValueError, match=f"LSLR: steps must be an int .* got {steps}"):
            LSLR(nn.Linear(1, 1), steps, 0.1)
    with pytest.raises(ValueError, match="PerStepBatchNorm2d: the input must have 4 axes, got 3"):
        PerStepBatchNorm2d(3, steps=1)(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="PerStepBatchNorm1d: .* 2 axes or 3 axes, got 4"):
        PerStepBatchNorm1d(3, steps=1)(torch.ones(2, 3, 4, 4))
    with pytest.raises(ValueError, match="LSLR: no parameter to learn a rate of"):
        LSLR(nn.Linear(1, 1).requires_grad_(False), 1, 0.1)
    lslr = LSLR({"a": torch.ones(2)}, 1, 0.1)
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(ValueError, match="grads has 'c', which is not in params"):
        lslr.update(params, {"c": torch.ones(2)}, 0)
    with pytest.raises(ValueError, match="grads has 'b', which is not in names, which have rates"):
        lslr.update(params, {"b": torch.ones(2)}, 0)
    with pytest.raises(ValueError, match=r"the gradient of a has shape \[5, 2\], and the param"):
        lslr.update(params, {"a": torch.ones(5, 2)}, 0)
    with pytest.raises(ValueError, match="LSLR.update: step must be an int of at least 0, got -1"):
        lslr.update(params, {}, -1)


def test_lslr_is_plain_sgd_with_a_rate_a_tensor_and_step_to_second_order() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    model[1].bias.requires_grad_(False)
    lslr = LSLR(model, steps=2, rate=0.25)
    assert lslr.names == ("0.weight", "0.bias", "1.weight")
    assert lslr.rates.dtype == torch.float64 and torch.equal(lslr.rates, torch.full((2, 3), 0.25))
    lslr.rates.data = randn(0, 2, 3)
    params, names = dict(model.named_parameters()), lslr.names

    def update(rates, *tensors):
        values, gradients = (dict(zip(names, t, strict=True)) for t in (tensors[:3], tensors[3:]))
        method = "update", values, gradients
        return tuple(functional_call(_Calls(lslr), {"module.rates": rates}, (*method, 1)).values())

    shapes = [params[n].shape for n in names] * 2
    inputs = [
        t.requires_grad_() for t in (randn(1, 2, 3), *(randn(i, *s) for i, s in enumerate(shapes)))
    ]
    for i, new in enumerate(update(*inputs)):
        assert torch.equal(new, inputs[1 + i] - inputs[0][1, i] * inputs[4 + i])
    assert gradcheck(update, inputs)
    assert gradgradcheck(update, inputs)

    grads = {"0.weight": randn(7, 3, 2), "0.bias": None}  # of 1.weight there is none either
    for step, row in ((0, 0), (1, 1), (9, 1)):
        new = lslr.update(params, grads, step)
        assert list(new) == list(params)
        expected = params["0.weight"] - lslr.rates[row, 0] * grads["0.weight"]
        assert torch.equal(new["0.weight"], expected)
        assert all(new[name] is params[name] for name in params if name != "0.weight")


def test_a_rate_changes_no_dtype_also_not_of_a_single_number() -> None:
    params = {"a": torch.ones(2, dtype=torch.float64), "b": torch.tensor(1.0), "c": torch.ones(2)}
    lslr = LSLR(params, 1, 0.5)
    assert lslr.rates.dtype == torch.float64
    new = lslr.update(params, params, 0)
    assert [t.dtype for t in new.values()] == [torch.float64, torch.float32, torch.float32]
    assert [t.tolist() for t in new.values()] == [[0.5, 0.5], 0.5, [0.5, 0.5]]


class _Calls(nn.Module):
    """A module whose call is that of a method."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *args):
        return getattr(self.module, method)(*args)


def network(steps: int) -> nn.Sequential:
    """With both batch norms; it has smooth derivatives."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        PerStepBatchNorm2d(3, steps=steps),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 4, bias=False),
        PerStepBatchNorm1d(4, steps=steps, momentum=None),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).double()


STEPS = 3


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    return randn(3, 6, 2, 4, 4), labels, randn(4, 6, 2, 4, 4), labels.flip(0)


def by_hand(model: nn.Sequential, rates: Tensor) -> tuple[Tensor, list[nn.Module]]:
    """The loss after the steps, written without any part: a network of torch's own for each step,
    which share what is not of the step.
    """
    x, y, target_x, target_y = data()
    own = [[], []]  # batch norms by layer and step
    for at, layer, kind in ((1, model[1], nn.BatchNorm2d), (5, model[5], nn.BatchNorm1d)):
        for _ in range(STEPS):
            own[at // 5].append(kind(layer.num_features, momentum=layer.momentum).double())
    params = dict(model.named_parameters())
    fast = dict(params)
    names = list(params)

    def run(k: int, inputs: Tensor) -> Tensor:
        layers = list(model)
        layers[1], layers[5] = own[0][k], own[1][k]
        state = {n: p[k] if n[0] in "15" else p for n, p in fast.items()}
        return functional_call(nn.Sequential(*layers), state, (inputs,))

    for k in range(STEPS):
        gradient = torch.autograd.grad(
            F.cross_entropy(run(k, x), y), [fast[n] for n in names], create_graph=True
        )
        for i, name in enumerate(names):
            fast[name] = fast[name] - rates[k, i] * gradient[i]
    return F.cross_entropy(run(STEPS - 1, target_x), target_y), own


def functional_loop(model: nn.Module, lslr: LSLR) -> Tensor:
    x, y, target_x, target_y = data()
    fast = dict(model.named_parameters())
    for k in range(STEPS):
        with at_step(model, k):
            loss = F.cross_entropy(functional_call(model, fast, (x,)), y)
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = lslr.update(fast, dict(zip(fast, grads, strict=True)), k)
    with at_step(model, STEPS - 1):
        return F.cross_entropy(functional_call(model, fast, (target_x,)), target_y)


def loop_of_clones(model: nn.Module, lslr: LSLR) -> Tensor:
    """As learn2learn: a copy of the module whose parameters are tensors with a history."""
    x, y, target_x, target_y = data()

    def put(module: nn.Module, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            path, _, last = name.rpartition(".")
            module.get_submodule(path)._parameters[last] = tensor

    clone = copy.deepcopy(model)
    for name, buffer in model.named_buffers():  # learn2learn shares them as well
        path, _, last = name.rpartition(".")
        clone.get_submodule(path)._buffers[last] = buffer
    fast = {name: p.clone() for name, p in model.named_parameters()}
    put(clone, fast)
    for k in range(STEPS):
        at_step(clone, k)
        loss = F.cross_entropy(clone(x), y)
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = lslr.update(fast, dict(zip(fast, grads, strict=True)), k)
        put(clone, fast)
    return F.cross_entropy(clone(target_x), target_y)


def loop_of_an_optimiser(model: nn.Module, lslr: LSLR) -> Tensor:
    """As higher: a stateless network that is called with its parameters, and an optimiser that
    makes new ones of a loss.
    """
    x, y, target_x, target_y = data()

    class Network:
        params = dict(model.named_parameters())
        step = 0

        def __call__(self, inputs: Tensor) -> Tensor:
            with at_step(model, self.step):
                return functional_call(model, self.params, (inputs,))

    class Optimiser:
        def step(self, loss: Tensor) -> None:
            tensors = list(network.params.values())
            grads = torch.autograd.grad(loss, tensors, create_graph=True)
            grads = dict(zip(network.params, grads, strict=True))
            network.params = lslr.update(network.params, grads, network.step)

    network, optimiser = Network(), Optimiser()
    for network.step in range(STEPS):
        optimiser.step(F.cross_entropy(network(x), y))
    return F.cross_entropy(network(target_x), target_y)


LOOPS = (functional_loop, loop_of_clones, loop_of_an_optimiser)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda f: f.__name__)
def test_in_loops_of_every_style(loop) -> None:
    model = randomized(network(STEPS))
    lslr = LSLR(model.named_parameters(), STEPS, 0.3)
    lslr.rates.data += randn(5, *lslr.rates.shape) * 0.1
    leaves = [*model.parameters(), lslr.rates]
    expected, batch_norms = by_hand(model, lslr.rates)
    expected_grads = torch.autograd.grad(expected, leaves)
    loss = loop(model, lslr)
    assert_close(loss, expected, 1e-13)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), expected_grads, strict=True):
        assert_close(ours, theirs, 1e-12)
        assert theirs.abs().max() > 1e-3
    for at, layer in enumerate((model[1], model[5])):
        assert layer.num_batches_tracked.tolist() == [1, 1, 2]
        for k, of_torch in enumerate(batch_norms[at]):
            assert_close(layer.running_mean[k], of_torch.running_mean, 1e-12)
            assert_close(layer.running_var[k], of_torch.running_var, 1e-12)


def test_vmap_over_tasks_is_a_loop_over_them() -> None:
    model = randomized(network(2))
    model[1].track_running_stats = model[5].track_running_stats = False
    lslr, params = LSLR(model, 2, 0.2), dict(model.named_parameters())
    x, y = randn(6, 3, 6, 2, 4, 4), data()[1]

    def loss_after(params, x):
        def loss(fast):
            return F.cross_entropy(functional_call(model, fast, (x,)), y)

        fast = params
        for k in range(2):
            with at_step(model, k):
                fast = lslr.update(fast, grad(loss)(fast), k)
        return loss(fast)

    losses, gradients = vmap(grad_and_value(loss_after), (None, 0))(params, x)[::-1]
    for t in range(3):
        expected, alone = grad_and_value(loss_after)(params, x[t])[::-1]
        assert_close(losses[t], expected, 1e-12)
        for name, value in alone.items():
            assert_close(gradients[name][t], value, 1e-12)
    assert losses[0] != losses[1]


def test_vmap_over_models_with_buffers_of_their_own() -> None:
    models = [randomized(PerStepBatchNorm2d(3, steps=2).double()) for _ in range(2)]
    params, buffers = stack_module_state(models)
    x, module = randn(7, 2, 4, 3, 2, 2), models[0]
    at_step(module, 1), at_step(models[1], 1)
    y = vmap(lambda p, b, x: functional_call(module, (p, b), (x,)))(params, buffers, x)
    for i, model in enumerate(models):
        assert_close(y[i], model(x[i]), 1e-12)
        for name, buffer in model.named_buffers():
            assert_close(buffers[name][i], buffer, 1e-12)


def test_copies_state_and_dtype_go_with_the_modules(tmp_path) -> None:
    model, lslr = randomized(network(2)), LSLR(network(2), 2, 0.2)
    with at_step(model, 1):
        model(data()[0])
    torch.save({"model": model.state_dict(), "lslr": lslr.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    assert {n: s.shape for n, s in saved["model"].items() if n.startswith("1.")} == {
        "1.weight": (2, 3),
        "1.bias": (2, 3),
        "1.running_mean": (2, 3),
        "1.running_var": (2, 3),
        "1.num_batches_tracked": (2,),
    }
    other, rates = network(2), LSLR(network(2), 2, 0.7)
    other.load_state_dict(saved["model"]), rates.load_state_dict(saved["lslr"])
    assert torch.equal(rates.rates, lslr.rates) and rates.rates[0, 0] == 0.2
    for copied in (other, copy.deepcopy(model)):
        assert torch.equal(copied.eval()(data()[0]), copy.deepcopy(model).eval()(data()[0]))
    single = copy.deepcopy(model).to(torch.float32)
    assert single[1].running_var.dtype == lslr.float().rates.dtype == torch.float32
    assert single(data()[0].float()).dtype == torch.float32
    assert single[1].num_batches_tracked.dtype == torch.int64
    with pytest.raises(RuntimeError, match="size mismatch for 1.weight"):
        network(3).load_state_dict(saved["model"])


def test_a_with_of_at_step_can_be_entered_again() -> None:
    model = nn.Sequential(PerStepBatchNorm1d(3, steps=4))
    second = at_step(model, 2)
    with second:
        assert model[0].step == 2
    at_step(model, 1)
    with second:
        with at_step(model, 3), second:
            assert model[0].step == 2
        assert model[0].step == 2
        with at_step(model, 3):
            with second:
                assert model[0].step == 2
            assert model[0].step == 3
    assert model[0].step == 1


def test_rates_are_loaded_by_the_names_of_their_tensors() -> None:
    tensors = {"body": torch.ones(2), "head": torch.ones(3)}
    saved = LSLR(tensors, 1, 0.0)
    saved.rates.data = torch.tensor([[0.1, 0.2]])
    other = LSLR(dict(reversed(tensors.items())), 1, 0.0)
    assert other.load_state_dict(saved.state_dict())
    assert torch.equal(other.rates, torch.tensor([[0.2, 0.1]]))
    with pytest.raises(RuntimeError, match="the rates are of body, head, here they are of a, b"):
        LSLR({"a": torch.ones(2), "b": torch.ones(3)}, 1, 0.0).load_state_dict(saved.state_dict())
    wrapped = LSLR({f"module.{name}": t for name, t in tensors.items()}, 1, 0.0)
    assert wrapped.load_state_dict(saved.state_dict())  # as of DataParallel
    assert torch.equal(wrapped.rates, saved.rates)
    outer = nn.ModuleDict({"rates": LSLR(tensors, 1, 0.0)})
    assert outer.load_state_dict({f"rates.{k}": v for k, v in saved.state_dict().items()})
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(saved.state_dict() | {"rates": torch.ones(2, 2)})
    older = {"rates": saved.rates.data}  # without names
    assert other.load_state_dict(older) and torch.equal(other.rates, saved.rates)


def test_names_that_a_wrapper_might_have_made_are_themselves_first() -> None:
    t = torch.ones(2)
    saved = LSLR({"weight": t, "module.weight": t}, 1, 0.0)
    saved.rates.data = torch.tensor([[0.1, 0.2]])
    other = LSLR({"module.weight": t, "weight": t}, 1, 0.0)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.rates, torch.tensor([[0.2, 0.1]]))
    both = LSLR({"module.weight": t, "_orig_mod.weight": t}, 1, 0.0)
    with pytest.raises(RuntimeError, match="the rates are of weight, module.weight, here they are"):
        both.load_state_dict(saved.state_dict())
