"""Quantizers against torch's own, by hand at 2 bits, and their gradients."""

import math
import re

import pytest
import torch

from backbone.quantization import (
    GAUSSIAN_STEP,
    QUANTIZERS,
    LearnedActivations,
    MinMaxActivations,
    MinMaxWeights,
    OddWeights,
    StatisticalWeights,
    check_bitwidths,
    make_quantizer,
)

BITS = (2, 3, 4, 8, 10, 16)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def torch_fake_quantize(x: torch.Tensor, low: float, high: float, bits: int) -> torch.Tensor:
    scale = (high - low) / (2**bits - 1)
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 2**bits - 1)


def dequantized(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return pair[0] * pair[1]


# --- minmax


@pytest.mark.parametrize("bits", BITS)
def test_minmax_equals_torch_fake_quantize(bits):
    weight = gaussian(64, 9)
    expected = torch_fake_quantize(weight, weight.min().item(), weight.max().item(), bits)
    torch.testing.assert_close(dequantized(MinMaxWeights()(weight, bits)), expected)
    quantizer, x = MinMaxActivations(BITS, signed=True).eval(), 2 * weight
    quantizer.low[:], quantizer.high[:] = -1.2, 2.1
    assert x.min() < -1.2 < 2.1 < x.max()
    torch.testing.assert_close(dequantized(quantizer(x, bits)), torch_fake_quantize(x, -1.2, 2.1, bits))


def test_minmax_by_hand_at_two_bits():
    for weight, expected in (([-1.0, -0.4, 0.6, 2.0], [-1, 0, 1, 2]), ([1.0, 2.0, 3.0], [1, 2, 3])):  # 0 is exact
        levels, scale = MinMaxWeights()(torch.tensor(weight), 2)
        assert (levels.tolist(), scale) == (expected, 1)
    assert MinMaxWeights()(torch.zeros(3), 4).levels.tolist() == [0, 0, 0]


def test_minmax_range_is_running_mean_of_each_images_extremes():
    quantizer = MinMaxActivations((4, 8), signed=False)
    quantizer(torch.tensor([[-1.0, 3.0], [-3.0, 5.0]]), 8)
    assert (quantizer.low[1], quantizer.high[1]) == (-2, 4)
    quantizer(torch.tensor([[0.0, 14.0]]), 8)
    quantizer.eval()(torch.tensor([[-100.0, 100.0]]), 8)
    torch.testing.assert_close(torch.stack((quantizer.low[1], quantizer.high[1])), torch.tensor([-1.8, 5.0]))
    assert (quantizer.low[0], quantizer.high[0], quantizer.batches[0]) == (0, 3, 0), "4 bits have a range of their own"


# --- pact_sawb


def test_statistical_weights_by_hand_at_two_bits():
    weight = torch.tensor([-2.0, -0.1, 0.1, 1.3, 2.0, -1.5])
    rms = math.sqrt((4 + 0.01 + 0.01 + 1.69 + 4 + 2.25) / 6)  # 1.4117: a step of 1.4056
    levels, scale = StatisticalWeights()(weight, 2)
    assert levels.tolist() == [-3, -1, 1, 1, 3, -3]
    assert scale.item() == pytest.approx(rms * 0.9957 / 2)


@pytest.mark.parametrize("bits", GAUSSIAN_STEP)
def test_gaussian_step_is_the_least_error_optimum(bits, monkeypatch):
    count = 500_000
    weight = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    step = GAUSSIAN_STEP[bits]

    def error(factor: float) -> float:
        monkeypatch.setitem(GAUSSIAN_STEP, bits, step * factor)
        return (dequantized(StatisticalWeights()(weight, bits)) - weight).square().mean().item()

    assert error(1) < min(error(0.9), error(1.1))
    assert error(1) < 1.01 * min(error(0.98), error(1.02))


@pytest.mark.parametrize("bits", [10, 16])
@pytest.mark.parametrize(("quantizer", "highest_bits"), [(OddWeights, 0), (StatisticalWeights, 1)])
def test_weights_span_the_largest_weight_above_eight_bits(quantizer, highest_bits, bits):
    weight = gaussian(64, 9)
    levels, scale = quantizer()(weight, bits)
    assert levels.abs().max() == 2 ** (bits - highest_bits) - 1
    assert (levels * scale - weight).abs().max() <= scale * 1.01


@pytest.mark.parametrize("bits", range(2, 17))
def test_odd_levels_have_no_zero_and_those_for_integer_kernels_fit_their_bits(bits):
    weight = gaussian(64, 9)
    weight[0, 0] = 100.0  # beyond what a Gaussian's step reaches
    odd, fitting = OddWeights()(weight, bits).levels, StatisticalWeights()(weight, bits).levels
    assert (odd % 2 == 1).all()
    assert odd.abs().max() <= 2**bits - 1
    if bits <= 4:
        assert torch.equal(fitting, odd)
        assert fitting.abs().max() <= 127
    else:
        assert fitting.abs().max() == 2 ** (bits - 1) - 1
        assert StatisticalWeights()(torch.tensor([0.0, 1.0]), bits).levels[0] == 0


@pytest.mark.parametrize("quantizer", ["pact_sawb_int8", "minmax"])
@pytest.mark.parametrize("signed", [False, True])
def test_bounds_are_the_extreme_levels(quantizer, signed):
    activations = make_quantizer(quantizer).activations((2, 4, 8), signed).eval()
    wide = torch.linspace(-1000, 1000, 4001)[None]
    for bits in (2, 4, 8):
        levels = activations(wide, bits).levels
        assert activations.bounds(bits) == (levels.min(), levels.max())


def test_learned_activations_by_hand_at_two_bits():
    unsigned, signed = LearnedActivations((2,), signed=False).eval(), LearnedActivations((2,), signed=True).eval()
    x = torch.tensor([[-4.0, -0.6, 0.4, 1.6, 2.4, 9.0]])
    assert unsigned(x, 2).levels.tolist() == [[0, 0, 0, 2, 2, 3]]  # clip 3, step 1
    assert signed(x, 2).levels.tolist() == [[-1, 0, 0, 1, 1, 1]]  # clip 3, step 3
    assert (unsigned.scale(2), signed.scale(2)) == (1, 3)


def test_learned_bound_has_lsqs_gradient():
    quantizer = LearnedActivations((2,), signed=False).eval()
    x = torch.tensor([[-2.0, 0.3, 1.6, 5.0], [0.0, 0.0, 0.9, 0.0]], requires_grad=True)
    (dequantized(quantizer(x, 2)) * torch.tensor([7.0, 1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.tolist() == [[0, 1, 10, 0], [0, 0, 10, 0]]
    by_hand = 1 * (0 - 0.3) + 10 * (2 - 1.6) + 100 * 3 + 10 * (1 - 0.9)  # d(quantized)/d(step), weighted
    lsq_scale = 1 / math.sqrt(4 * 3)  # 4 features of an image, whatever the batch; highest level 3
    # clip = 3 steps: its gradient is 3 times as large as the step's, so that it moves by the same share of itself.
    assert quantizer.clip.grad.item() == pytest.approx(by_hand * lsq_scale * 3, rel=1e-5)


def test_learned_bound_starts_from_the_first_training_batch_only():
    quantizer = LearnedActivations((2, 4), signed=False)
    quantizer.eval()(gaussian(4, 9), 2)
    assert quantizer.clip.tolist() == [3, 3]
    quantizer.train()(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), 2)
    torch.testing.assert_close(quantizer.clip.detach(), torch.tensor([2 * 1.5 * 3**0.5, 3.0]))
    quantizer(torch.full((2, 2), 50.0), 2)
    assert quantizer.clip[0].item() == pytest.approx(2 * 1.5 * 3**0.5)


def test_learned_bound_does_not_die():
    quantizer = LearnedActivations((2,), signed=False)
    quantizer(torch.zeros(2, 2), 2)  # a batch of zeros says nothing about the range
    quantizer(torch.ones(2, 2), 2)
    assert quantizer.clip.item() == pytest.approx(2 * 3**0.5)
    with torch.no_grad():
        quantizer.clip.fill_(-0.01)
    dequantized(quantizer(torch.ones(2, 2), 2)).sum().backward()
    assert quantizer.clip.grad.item() > 0  # a larger bound would let more through


# --- both


@pytest.mark.parametrize("name", QUANTIZERS)
def test_scale_method_is_the_forward_scale(name):
    for signed in (False, True):
        quantizer = QUANTIZERS[name]().activations((2, 8), signed)
        quantizer(gaussian(8, 9), 8)
        assert quantizer.scale(8) == quantizer(gaussian(8, 9), 8).scale or name == "minmax"
        assert quantizer.eval().scale(8) == quantizer(gaussian(8, 9), 8).scale
        assert quantizer.scale(2) != quantizer.scale(8)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_gradients_of_weights_and_of_minmax_activations_are_straight_through(name, bits):
    weight, upstream = gaussian(16, 9).requires_grad_(), gaussian(16, 9, seed=1)
    (dequantized(QUANTIZERS[name]().weights()(weight, bits)) * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, upstream)
    if name == "minmax":
        (dequantized(MinMaxActivations((bits,), signed=True)(weight, bits)) * upstream).sum().backward()
        torch.testing.assert_close(weight.grad, 2 * upstream)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_levels_are_integers_that_fit_the_bits_and_rounding_is_deterministic(name):
    quantizer, x = QUANTIZERS[name](), gaussian(64, 9)
    before = torch.get_rng_state()
    for bits in (2, 4, 8):
        for part, of in (
            (quantizer.weights(), x),
            (quantizer.activations((bits,), False), x.relu()),
            (quantizer.activations((bits,), True), x),
        ):
            part.train()(of, bits)  # sets the range
            levels = part(of, bits).levels
            assert torch.equal(levels, levels.round())
            assert 1 < len(levels.unique()) <= 2**bits
            assert torch.equal(part(of, bits).levels, levels) or name == "minmax"  # whose range moves in training
            assert torch.equal(part.eval()(of, bits).levels, part(of, bits).levels)
    assert torch.equal(torch.get_rng_state(), before)


def test_quantizers_by_name():
    assert make_quantizer("backbone.quantization:minmax") == make_quantizer("minmax")
    with pytest.raises(ValueError, match=r"'dorefa'.*minmax, pact_sawb, pact_sawb_int8"):
        make_quantizer("dorefa")


@pytest.mark.parametrize(
    ("bad", "culprit"),
    [
        *(((0, 1), "1"), ((0, 17), "17"), ((0, 8, 33), "33"), ((-2, 8), "-2"), ((0, "4"), "'4'"), ((0, 4.0), "4.0")),
        *(((False, 8), "False"), ((0, True), "True"), ((0, 8, 8), "(0, 8, 8)"), ((8, 4, 0), "(8, 4, 0)")),
        *(((), "()"), ((0,), "(0,)"), ("48", "'48'"), (8, "8")),
    ],
)
def test_impossible_bitwidths_are_refused_by_name(bad, culprit):
    with pytest.raises(ValueError, match=re.escape(culprit)):
        check_bitwidths(bad)
    assert check_bitwidths([0, 8]) == (0, 8)
