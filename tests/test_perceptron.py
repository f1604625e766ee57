"""The perceptron of the whole spectrum that a model may have beside its encoder of patches."""

import numpy as np
import pytest
import torch

from configuration_xrf import XRFMaskedConfig
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression, XRFModel

NUM_PATCHES, PATCH_SIZE, WIDTH = 6, 4, 10
FIELDS = {
    "spectrum_length": NUM_PATCHES * PATCH_SIZE,
    "patch_size": PATCH_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
    "initializer_range": 0.2,
    "perceptron_size": WIDTH,
    "target_names": ["CaCO3"],
}


def build(model_class, **fields):
    torch.manual_seed(0)
    return model_class(XRFMaskedConfig(**{**FIELDS, **fields})).eval()


@pytest.fixture
def values():
    return torch.rand(3, FIELDS["spectrum_length"], generator=torch.Generator().manual_seed(1))


@pytest.fixture
def attention_mask():
    return torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0]])


def normalised(x, layernorm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * layernorm.weight.detach().numpy() + layernorm.bias.detach().numpy()


def affine(x, linear):
    return x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()


def gelu(x):
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


@torch.no_grad()
def test_it_adds_to_the_state_of_the_cls_token_what_the_formula_says(values, attention_mask):
    model, without = build(XRFModel, perceptron_num_layers=1), build(XRFModel, perceptron_size=0)
    without.load_state_dict(model.state_dict(), strict=False)
    states, plain = (m(values, attention_mask=attention_mask).last_hidden_state for m in (model, without))
    perceptron, given = model.perceptron, attention_mask.double().numpy()
    measured = values.double().numpy() * given.repeat(PATCH_SIZE, axis=1)
    hidden = affine(np.concatenate([measured, given], axis=1), perceptron.embed)
    layer = perceptron.layers[0]
    hidden = hidden + affine(gelu(affine(normalised(hidden, layer.layernorm), layer.mlp.fc1)), layer.mlp.fc2)
    expected = gelu(affine(normalised(hidden, perceptron.layernorm), perceptron.output))
    np.testing.assert_allclose((states - plain)[:, 0].numpy(), expected, atol=2e-6)
    assert torch.equal(states[:, 1:], plain[:, 1:])
    assert np.abs(expected).max() > 0.01


@torch.no_grad()
def test_what_was_not_measured_has_no_influence(values, attention_mask):
    model = build(XRFForRegression)
    predictions = model(values, attention_mask=attention_mask).predictions
    unmeasured = (attention_mask == 0).repeat_interleave(PATCH_SIZE, dim=1)
    for anything in (1e3, torch.nan):
        changed = values.masked_fill(unmeasured, anything)
        assert torch.equal(model.xrf.perceptron(changed.view(3, NUM_PATCHES, -1), attention_mask != 0),
                           model.xrf.perceptron(values.view(3, NUM_PATCHES, -1), attention_mask != 0))  # fmt: skip
    changed = values.masked_fill(unmeasured, 1e3)
    assert torch.equal(model(changed, attention_mask=attention_mask).predictions, predictions)
    # zeros that were measured are another thing than no measurement
    zeros = values.masked_fill(unmeasured, 0.0)
    assert (model(zeros).predictions - predictions)[1:].abs().min() > 1e-4


@torch.no_grad()
def test_measured_patches_can_be_given_alone(values, attention_mask):
    model = build(XRFForRegression)
    patch_ids = attention_mask.argsort(dim=1, descending=True, stable=True)
    some = model(values, attention_mask=attention_mask.gather(1, patch_ids), patch_ids=patch_ids).predictions
    torch.testing.assert_close(some, model(values, attention_mask=attention_mask).predictions)


@torch.no_grad()
def test_masked_patches_never_leak_through_it(values, attention_mask):
    model = build(XRFForMaskedSpectrumModeling)
    noise = torch.rand(3, NUM_PATCHES, generator=torch.Generator().manual_seed(2))
    outputs = model(values, attention_mask=attention_mask, noise=noise)
    hidden = outputs.mask.bool().repeat_interleave(PATCH_SIZE, dim=1)
    assert hidden.any()
    changed = model(values.masked_fill(hidden, 7.0), attention_mask=attention_mask, noise=noise)
    assert torch.equal(changed.reconstruction, outputs.reconstruction)


def test_pretraining_and_regression_train_all_of_it(values):
    for model_class, inputs in ((XRFForMaskedSpectrumModeling, {}), (XRFForRegression, {"labels": torch.ones(3, 1)})):
        model = build(model_class).train()
        model(values, **inputs).loss.backward()
        for name, parameter in model.xrf.perceptron.named_parameters():
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_saved_and_loaded_and_left_out(values, tmp_path):
    model = build(XRFForRegression)
    model.save_pretrained(tmp_path)
    loaded = XRFForRegression.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(values).predictions, model(values).predictions, rtol=0, atol=1e-6)
    assert XRFModel.from_pretrained(tmp_path).config.embedding_pooling == "cls"
    assert XRFMaskedConfig(perceptron_size=0).embedding_pooling == "mean"
