"""Masked layers: plain without holes, blind to what is hidden, statistics of the visible alone."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ce_model.feature_networks import padded_alexnet
from ce_model.feature_targets import whole_cells
from ce_model.masked import hide, masked_batch_norm, masked_layer, visible_positions
from ce_model.networks import NetworkConfig, build_generator, init_weights


def _hidden(batch: int = 2, cells: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, cells, cells, generator=generator) < 0.6


def _maps(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3
    return x.contiguous(memory_format=torch.channels_last)


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(5)
    nn.init.normal_(norm.weight, 1, 0.3, generator=generator)
    nn.init.normal_(norm.bias, 0, 0.3, generator=generator)
    return norm


def test_batch_norm_with_nothing_hidden_is_the_plain_layer() -> None:
    plain, masked = _norm(6), _norm(6)
    x, y = _maps(3, 6, 8, 8).requires_grad_(), _maps(3, 6, 8, 8).requires_grad_()
    weight = _maps(3, 6, 8, 8, seed=1)
    expected = plain(x)
    (expected * weight).sum().backward()
    result = masked_batch_norm(masked, y, torch.ones(3, 1, 8, 8))
    (result * weight).sum().backward()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(y.grad, x.grad)
    for name, parameter in plain.named_parameters():
        mine = masked.get_parameter(name).grad
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-3)  # sums of 192
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(masked.get_buffer(name), buffer)


@pytest.mark.parametrize("channels_last", [True, False])
def test_batch_norm_takes_the_statistics_of_visible_positions(channels_last: bool) -> None:
    norm, x, hidden = _norm(5), _maps(2, 5, 8, 8), _hidden()
    if not channels_last:
        x = x.contiguous()
    result = masked_batch_norm(norm, x, visible_positions(hidden, 8)).detach().numpy()

    shown = ~np.repeat(np.repeat(hidden.numpy(), 2, 1), 2, 2)
    seen = x.permute(0, 2, 3, 1).numpy()[shown]
    mean, variance = seen.mean(0), seen.var(0)
    expected = (seen - mean) / np.sqrt(variance + norm.eps)
    expected = expected * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    np.testing.assert_allclose(result.transpose(0, 2, 3, 1)[shown], expected, atol=1e-5)
    assert (result.transpose(0, 2, 3, 1)[~shown] == 0).all()
    assert norm.running_mean is not None and norm.running_var is not None
    np.testing.assert_allclose(norm.running_mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * seen.var(0, ddof=1), rtol=1e-5)


def test_statistics_keep_their_digits_in_mixed_precision() -> None:
    """The activations are bfloat16 there; sums over thousands of positions are not."""
    visible, x = visible_positions(_hidden(), 64), _maps(2, 6, 64, 64).bfloat16()
    plain, mixed = _norm(6), _norm(6)
    expected = masked_batch_norm(plain, x.float(), visible)
    with torch.autocast("cpu", torch.bfloat16):
        result = masked_batch_norm(mixed, x, visible)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected.bfloat16())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(mixed.get_buffer(name), buffer, rtol=0, atol=0)


def test_gradients_of_batch_norm_are_those_of_the_formula() -> None:
    norm = _norm(3)
    visible = visible_positions(_hidden(), 4)

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count = visible.sum()
        mean = (x * visible).sum((0, 2, 3), keepdim=True) / count
        variance = ((x - mean).square() * visible).sum((0, 2, 3), keepdim=True) / count
        normal = (x - mean) / torch.sqrt(variance + norm.eps)
        return (normal * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)) * visible

    x = _maps(2, 3, 4, 4).requires_grad_()
    weight = _maps(2, 3, 4, 4, seed=2)
    inputs = (x, norm.weight, norm.bias)
    expected = torch.autograd.grad((formula(*inputs) * weight).sum(), inputs)
    result = torch.autograd.grad((masked_batch_norm(norm, x, visible) * weight).sum(), inputs)
    for mine, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_two_ranks_with_unequal_holes_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, hidden = _maps(3, 4, 8, 8), _maps(3, 4, 8, 8, seed=2), _hidden(3)
    hidden[0] = True
    hidden[0, 0, 0] = False

    def run(part: slice) -> tuple[list[Tensor], nn.BatchNorm2d]:
        norm, mine = _norm(4), x[part].clone().requires_grad_()
        y = masked_batch_norm(norm, mine, visible_positions(hidden[part], 8))
        (y * weight[part]).sum().backward()
        assert mine.grad is not None
        return [y.detach(), mine.grad], norm

    whole, plain = run(slice(None))
    barrier, sent = threading.Barrier(2, timeout=60), {}

    def all_reduce(tensor: Tensor) -> None:
        sent[threading.current_thread().name] = tensor.clone()
        barrier.wait()
        tensor.copy_(sent["rank-0"] + sent["rank-1"])
        barrier.wait()

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    found: dict[int, tuple[list[Tensor], nn.BatchNorm2d]] = {}

    def rank(number: int) -> None:
        found[number] = run(slice(0, 1) if number == 0 else slice(1, 3))

    ranks = [threading.Thread(target=rank, args=(n,), name=f"rank-{n}") for n in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    for expected, parts in zip(whole, zip(found[0][0], found[1][0], strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-4, atol=1e-4)
    for name, parameter in plain.named_parameters():
        grads = [norm.get_parameter(name).grad for _, norm in found.values()]
        assert grads[0] is not None and grads[1] is not None
        torch.testing.assert_close(grads[0] + grads[1], parameter.grad, rtol=1e-4, atol=1e-3)
    for name, buffer in plain.named_buffers():
        for _, norm in found.values():
            torch.testing.assert_close(norm.get_buffer(name), buffer)


def test_all_hidden_gives_zero_and_no_nan() -> None:
    norm, x = _norm(3), _maps(2, 3, 4, 4).requires_grad_()
    result = masked_batch_norm(norm, x, torch.zeros(2, 1, 4, 4))
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert (result == 0).all() and x.grad is not None and (x.grad == 0).all()
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


def test_plain_average_of_statistics_weighs_every_batch_alike() -> None:
    plain, masked = nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for seed in range(3):
        x = _maps(2, 3, 4, 4, seed=seed)
        plain(x)
        masked_batch_norm(masked, x, torch.ones(2, 1, 4, 4))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(masked.get_buffer(name), buffer)


def _encode(encoder: nn.Sequential, x: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    maps = {}
    x = hide(x, hidden)
    for name, layer in list(encoder.named_children())[:-1]:  # pool5 is for use without masks
        x = masked_layer(layer, x, hidden)
        maps[name] = x.clone()
    return maps


def _encoder() -> nn.Sequential:
    encoder = padded_alexnet()
    init_weights(encoder, None, torch.Generator().manual_seed(0))
    return encoder


def test_encoder_with_nothing_hidden_is_the_plain_encoder() -> None:
    encoder, x = _encoder(), _maps(2, 3, 128, 128)
    expected = encoder[:-1](x)
    nothing = torch.zeros(2, 8, 8, dtype=torch.bool)
    conv5 = _encode(encoder, x, nothing)["relu5"]
    torch.testing.assert_close(conv5, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_no_activation_depends_on_a_hidden_pixel(training: bool) -> None:
    encoder, hidden = _encoder().train(training), _hidden(cells=8)
    x = _maps(2, 3, 128, 128).requires_grad_()
    maps = _encode(encoder, x, hidden)
    (gradient,) = torch.autograd.grad([y.sum() + y.square().sum() for y in maps.values()], [x])
    pixels = whole_cells(hidden).unsqueeze(1).expand_as(gradient)
    assert (gradient[pixels] == 0).all()
    assert (gradient[~pixels] != 0).float().mean() > 0.9
    for name in ("relu1", "pool1", "relu2", "pool2", "relu5"):
        y = maps[name]
        assert (y[visible_positions(hidden, y.shape[-1]).eq(0).expand_as(y)] == 0).all(), name


def test_prediction_sees_holes_only_as_holes() -> None:
    network = build_generator(NetworkConfig(preset="features", output="full"))
    torch.nn.init.normal_(network.decoder.predict.weight)  # zero in a fresh network
    hidden, x = _hidden(cells=8), _maps(2, 3, 128, 128)
    other = torch.where(whole_cells(hidden).unsqueeze(1), -x, x)
    with torch.no_grad():
        assert torch.equal(network(x, hidden), network(other, hidden))
        assert not torch.equal(network(x, hidden), network(-x, hidden))


def test_side_that_is_no_multiple_of_the_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="side 12; masked layers need a multiple or a divisor of"):
        visible_positions(_hidden(cells=8), 12)
