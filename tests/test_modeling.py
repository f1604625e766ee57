"""modeling_xrf: what transformers expects of any model, and what masking, reconstruction and regression must do."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from configuration_xrf import XRFMaskedConfig
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_adapter_repository
from modeling_xrf import (
    XRFFamiliarity,
    XRFForMaskedSpectrumModeling,
    XRFForRegression,
    XRFModel,
    eager_attention_forward,
    sine_cosine_positions,
)

NUM_PATCHES, PATCH_SIZE = 12, 8
SPECTRUM_LENGTH = NUM_PATCHES * PATCH_SIZE
SIZES = {
    "spectrum_length": SPECTRUM_LENGTH,
    "patch_size": PATCH_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "initializer_range": 0.2,  # large enough at this width that every part shows in the outputs
}
TARGETS = {
    "target_names": ["CaCO3", "TOC"],
    "target_units": ["wt%", "wt%"],
    "target_mean": [40.0, 0.6],
    "target_std": [20.0, 0.4],
    "target_min": [0.0, None],
    "target_max": [100.0, None],
}
# What an adaptation to few labels adds to a regression model.
ADAPTED = {
    "pooling": "mean",
    "regression_loss": "gaussian",
    "target_transform": ["linear", "log"],
    "target_mean": [40.0, -0.5],
    "target_std": [20.0, 0.7],
    "spectrum_skip": True,
    "interval_coverages": [0.5, 0.8, 0.9],
    "interval_factors": [[0.7, 0.6], [1.3, 1.2], [1.7, 1.9]],
    "familiarity_threshold": 4.0,
}
MODEL_CLASSES = [XRFModel, XRFForMaskedSpectrumModeling, XRFForRegression]


def build(model_class, attn_implementation="sdpa", seed=0, **fields):
    """A small model in evaluation mode, all of whose parameters, biases too, are drawn."""
    torch.manual_seed(seed)
    targets = TARGETS if model_class is XRFForRegression and "target_names" not in fields else {}
    model = model_class(
        XRFMaskedConfig(**{**SIZES, **targets, **fields}, attn_implementation=attn_implementation)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        fill_what_an_adaptation_adds(model)
    return model


@torch.no_grad()
def fill_what_an_adaptation_adds(model, seed=7):
    """Drawn values where a new model holds zeros and the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "spectrum_head" in name or "familiarity" in name:
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)


@pytest.fixture(scope="module")
def models():
    return {model_class: build(model_class) for model_class in MODEL_CLASSES}


@pytest.fixture(scope="module")
def encoder(models):
    return models[XRFModel]


@pytest.fixture(scope="module")
def masked_model(models):
    return models[XRFForMaskedSpectrumModeling]


@pytest.fixture(scope="module")
def regressor(models):
    return models[XRFForRegression]


@pytest.fixture
def values():
    return torch.randn(5, SPECTRUM_LENGTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def attention_mask():
    """All measured; a lower range; an upper one; scattered ones; a single one."""
    mask = torch.zeros(5, NUM_PATCHES, dtype=torch.long)
    mask[0] = 1
    mask[1, :7] = 1
    mask[2, 4:] = 1
    mask[3, [0, 3, 4, 8, 11]] = 1
    mask[4, 5] = 1
    return mask


@pytest.fixture
def noise():
    return torch.rand(5, NUM_PATCHES, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels():
    return torch.tensor([[35.0, 0.2], [80.0, 1.4], [3.0, 0.9], [55.0, 0.1], [20.0, 0.5]])


def model_inputs(model, values, attention_mask=None, noise=None, labels=None):
    """What this class of model takes of these."""
    inputs = {"input_values": values}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    if noise is not None and isinstance(model, XRFForMaskedSpectrumModeling):
        inputs["noise"] = noise
    if labels is not None and isinstance(model, XRFForRegression):
        inputs["labels"] = labels
    return inputs


def main_output(output):
    """The tensor a user of the model wants: `last_hidden_state`, `reconstruction` or `predictions`."""
    for name in ("last_hidden_state", "reconstruction", "predictions"):
        if name in output:
            return output[name]
    raise KeyError(f"none of the main outputs in {list(output)}")


def channels_of(patches):
    """A mask of patches (B, P) as one of channels (B, L)."""
    return patches.repeat_interleave(PATCH_SIZE, dim=1).bool()


def as_patches(values):
    return values.view(len(values), NUM_PATCHES, PATCH_SIZE)


def assert_same_state(model, other):
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def position_tables(model):
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith("positions.table")}


def assert_positions_hold_the_formula(model):
    """The tables by their formula, element by element."""
    tables = position_tables(model)
    assert len(tables) == (2 if isinstance(model, XRFForMaskedSpectrumModeling) else 1)
    for table in tables.values():
        rows, width = table.shape
        assert rows == model.config.num_patches + 1
        expected = np.zeros((rows, width))
        for patch in range(rows - 1):
            for i in range(width // 2):
                angle = patch / 10000 ** (2 * i / width)
                expected[1 + patch, i], expected[1 + patch, width // 2 + i] = math.sin(angle), math.cos(angle)
        np.testing.assert_allclose(table.numpy(), expected, atol=1e-6)


# Saving, loading, initialisation


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_saved_and_loaded_model_is_the_same_bit_for_bit(model_class, models, values, attention_mask, noise, tmp_path):
    model = models[model_class]
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not loaded.training
    assert_same_state(model, loaded)
    assert_positions_hold_the_formula(loaded)
    inputs = model_inputs(model, values, attention_mask, noise)
    with torch.no_grad():
        assert torch.equal(main_output(model(**inputs)), main_output(loaded(**inputs)))


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_fixed_positions_are_not_saved(model_class, models):
    assert not any("positions" in name for name in models[model_class].state_dict())
    assert_positions_hold_the_formula(models[model_class])


def test_encoder_of_a_pretrained_model_serves_every_head(masked_model, regressor, values, attention_mask, tmp_path):
    masked_model.save_pretrained(tmp_path / "masked")
    regressor.save_pretrained(tmp_path / "regressor")
    with torch.no_grad():
        expected = masked_model.xrf(values, attention_mask=attention_mask).last_hidden_state

    encoder, info = XRFModel.from_pretrained(tmp_path / "masked", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_state(encoder, masked_model.xrf)
    assert_positions_hold_the_formula(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(values, attention_mask=attention_mask).last_hidden_state, expected)

    for load in (XRFForRegression, AutoModelForSequenceClassification):
        model, info = load.from_pretrained(
            tmp_path / "masked", target_names=["TiO2"], target_units=["wt%"], output_loading_info=True
        )
        assert type(model) is XRFForRegression
        assert set(info["missing_keys"]) == {"head.weight", "head.bias"} and not info["unexpected_keys"]
        assert_same_state(model.xrf, masked_model.xrf)
        assert_positions_hold_the_formula(model)
        assert model.head.weight.shape == (1, 32) and model.head.weight.std() > 0.05 and (model.head.bias == 0).all()

    again, info = XRFForMaskedSpectrumModeling.from_pretrained(tmp_path / "regressor", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"decoder"} and not info["unexpected_keys"]
    assert_same_state(again.xrf, regressor.xrf)
    assert_positions_hold_the_formula(again)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_model_built_on_the_meta_device_can_be_initialised(model_class, values, noise):
    with torch.device("meta"):
        model = model_class(XRFMaskedConfig(**SIZES, **TARGETS))
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)
    model.init_weights()
    assert_positions_hold_the_formula(model)
    with torch.no_grad():
        assert main_output(model(**model_inputs(model, values, noise=noise))).isfinite().all()


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map(device_map, models, values, noise, tmp_path):
    for model_class, model in models.items():
        model.save_pretrained(tmp_path / model_class.__name__)
        loaded = model_class.from_pretrained(tmp_path / model_class.__name__, device_map=device_map)
        assert_same_state(model, loaded)
        inputs = model_inputs(model, values, noise=noise)
        with torch.no_grad():
            output = main_output(loaded(**{name: value.to(loaded.device) for name, value in inputs.items()}))
            torch.testing.assert_close(output.cpu(), main_output(model(**inputs)))


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("initializer_range", [0.02, 0.5])
def test_initialisation(model_class, initializer_range):
    torch.manual_seed(3)
    model = model_class(XRFMaskedConfig(**{**SIZES, "initializer_range": initializer_range}, **TARGETS))
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            # tokens and the head by the configuration, all other matrices by their sizes (Glorot & Bengio 2010)
            given = parameter.ndim > 2 or name == "head.weight"
            expected = initializer_range if given else math.sqrt(2 / sum(parameter.shape))
            spread = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
            assert abs(parameter.std() / expected - 1) < spread, name
            assert abs(parameter.mean()) < 5 * expected / math.sqrt(parameter.numel()), name
    torch.manual_seed(3)
    assert_same_state(model, model_class(model.config))
    other = model_class(model.config)  # the next draw
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()) if a.ndim > 1)


def test_initialisation_draws_the_tokens():
    model = build(XRFForMaskedSpectrumModeling, initializer_range=0.02)
    assert model.xrf.embeddings.cls_token.abs().max() > 0 and model.decoder.mask_token.abs().max() > 0


def test_loading_in_bfloat16_keeps_exact_positions(masked_model, tmp_path):
    masked_model.save_pretrained(tmp_path)
    loaded = XRFForMaskedSpectrumModeling.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert_positions_hold_the_formula(loaded)


def test_position_formula():
    table = sine_cosine_positions(2, 4)
    frequency = 1 / 100  # 10000^(-2/4)
    expected = [[0, 0, 0, 0], [0, 0, 1, 1], [math.sin(1), math.sin(frequency), math.cos(1), math.cos(frequency)]]
    torch.testing.assert_close(table, torch.tensor(expected))


# Outputs


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_forward_is_deterministic(model_class, models, values, attention_mask, noise, labels):
    model = models[model_class]
    inputs = model_inputs(model, values, attention_mask, noise, labels)
    with torch.no_grad():
        first, second = model(**inputs), model(**inputs)
        for key in first:
            assert torch.equal(first[key], second[key]), key
        trained = copy.deepcopy(model).train()(**inputs)  # no dropout anywhere
        assert torch.equal(main_output(first), main_output(trained))


def test_masks_are_drawn_anew_and_follow_the_seed(masked_model, values):
    with torch.no_grad():
        torch.manual_seed(4)
        first, second = masked_model(values).mask, masked_model(values).mask
        torch.manual_seed(4)
        assert torch.equal(masked_model(values).mask, first)
    assert not torch.equal(first, second)
    assert len({tuple(row.tolist()) for row in first}) > 1  # each spectrum its own


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_tuple_holds_what_the_dictionary_holds(model_class, values, attention_mask, noise, labels):
    model = build(model_class, attn_implementation="eager")
    inputs = model_inputs(model, values, attention_mask, noise, labels)
    inputs |= {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        output, as_tuple = model(**inputs), model(**inputs, return_dict=False)
        model.config.return_dict = False
        by_config = model(**inputs)
    assert isinstance(as_tuple, tuple) and isinstance(by_config, tuple)
    assert len(output) == len(as_tuple) == len(by_config)
    for expected, *others in zip(output.values(), as_tuple, by_config):
        for other in others:
            torch.testing.assert_close(other, expected, rtol=0, atol=0)


def test_shapes(encoder, masked_model, regressor, values, noise):
    with torch.no_grad():
        output = encoder(values)
        assert output.last_hidden_state.shape == (5, 13, 32) and output.pooler_output.shape == (5, 32)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
        assert output.hidden_states is None and output.attentions is None
        output = masked_model(values, noise=noise)
        assert output.loss.shape == () and output.reconstruction.shape == (5, SPECTRUM_LENGTH)
        assert output.mask.shape == output.ids_restore.shape == (5, NUM_PATCHES)
        output = regressor(values)
        assert output.predictions.shape == (5, 2) and output.loss is None and output.standard_deviation is None


def test_hidden_states(encoder, regressor, masked_model, values, noise):
    with torch.no_grad():
        output = encoder(values, output_hidden_states=True)
        assert [state.shape for state in output.hidden_states] == [(5, 13, 32)] * 3
        tokens = encoder.embeddings.patch_embeddings(as_patches(values))
        torch.testing.assert_close(
            output.hidden_states[0][:, 1:], tokens + sine_cosine_positions(NUM_PATCHES, 32)[1:], rtol=0, atol=1e-6
        )
        torch.testing.assert_close(output.hidden_states[0][:, 0], encoder.embeddings.cls_token[0].expand(5, -1))
        torch.testing.assert_close(encoder.layers[0](output.hidden_states[0]), output.hidden_states[1])
        torch.testing.assert_close(encoder.layernorm(output.hidden_states[-1]), output.last_hidden_state)
        hidden_states = regressor(values, output_hidden_states=True).hidden_states
        assert [state.shape for state in hidden_states] == [(5, 13, 32)] * 3
        hidden_states = masked_model(values, noise=noise, output_hidden_states=True).hidden_states
        assert [state.shape for state in hidden_states] == [(5, 1 + NUM_PATCHES // 2, 32)] * 3


@pytest.mark.parametrize("masked", [False, True])
def test_attentions_sum_to_one_over_measured_patches(masked, values, attention_mask):
    model = build(XRFModel, attn_implementation="eager")
    with torch.no_grad():
        attentions = model(values, attention_mask if masked else None, output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(5, 4, 13, 13)] * 2
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 4, 13))
        visible = torch.nn.functional.pad(attention_mask, (1, 0), value=1)[:, None, None].expand_as(weights)
        if masked:
            assert (weights[visible == 0] == 0).all() and (weights[visible == 1] > 0).all()
        else:
            assert (weights > 0).all()


def test_attentions_of_heads_are_those_of_the_encoder(values, noise):
    regressor = build(XRFForRegression, attn_implementation="eager")
    masked_model = build(XRFForMaskedSpectrumModeling, attn_implementation="eager")
    with torch.no_grad():
        attentions = regressor(values, output_attentions=True).attentions
        for weights, expected in zip(attentions, regressor.xrf(values, output_attentions=True).attentions):
            assert torch.equal(weights, expected)
        attentions = masked_model(values, noise=noise, output_attentions=True).attentions
        assert [weights.shape for weights in attentions] == [(5, 4, 7, 7)] * 2


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_a_spectrum_does_not_depend_on_its_batch(model_class, pooling, values, attention_mask, noise):
    model = build(model_class, pooling=pooling)
    with torch.no_grad():
        for mask in (None, attention_mask):
            batch = model(**model_inputs(model, values, mask, noise))
            for row in range(len(values)):
                part = slice(row, row + 1)
                single = model(**model_inputs(model, values[part], None if mask is None else mask[part], noise[part]))
                for key in set(batch) - {"loss"}:
                    torch.testing.assert_close(
                        batch[key][part], single[key], rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
                    )


# Kernels and precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_eager_and_sdpa_give_the_same_numbers(model_class, masked, dtype, values, attention_mask, noise, labels):
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = build(model_class, attn_implementation=implementation).to(dtype)
        assert model.config._attn_implementation == implementation
        inputs = model_inputs(model, values, attention_mask if masked else None, noise, labels)
        output = model(**inputs)
        main_output(output).float().square().mean().backward()
        gradient = model.get_parameter(next(iter(dict(model.named_parameters())))).grad
        outputs.append((main_output(output).float(), gradient.float()))
    for eager, sdpa in zip(*outputs):
        scale = eager.abs().max()
        assert (eager - sdpa).abs().max() < (1e-5 if dtype == torch.float32 else 0.05) * scale


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_bfloat16_is_close_to_float32(model_class, autocast, models, values, attention_mask, noise, labels):
    model = models[model_class]
    inputs = model_inputs(model, values, attention_mask, noise, labels)
    low = copy.deepcopy(model)
    if not autocast:
        low = low.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = low(**inputs)
    with torch.no_grad():
        expected = model(**inputs)
    difference = (main_output(actual).float() - main_output(expected)).abs()
    assert difference.mean() < 0.02 * main_output(expected).std()
    assert difference.max() > 0  # it did run in another precision
    if "loss" in expected:
        assert abs(actual.loss.float() / expected.loss - 1) < 0.03
    if model_class is XRFForRegression:
        assert actual.predictions.dtype == torch.float32  # 8 bits would round 57.3 wt% to 57.25


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_gradient_checkpointing_changes_nothing(model_class, values, attention_mask, noise, labels):
    results = []
    for checkpointing in (False, True):
        model = build(model_class).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        output = model(**model_inputs(model, values, attention_mask, noise, labels))
        loss = output.loss if "loss" in output else main_output(output).square().mean()
        loss.backward()
        results.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    (loss, gradients), (checkpointed_loss, checkpointed_gradients) = results
    assert torch.equal(loss, checkpointed_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed_gradients[name], gradient, rtol=1e-5, atol=1e-7)


def assert_compiled_step_equals_eager(model, inputs, backend):
    eager = copy.deepcopy(model)
    loss = eager(**inputs).loss
    loss.backward()
    torch._dynamo.reset()
    compiled_loss = torch.compile(model, fullgraph=True, backend=backend)(**inputs).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-6)
    for (name, parameter), other in zip(model.named_parameters(), eager.parameters()):
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("masked", [False, True])
def test_pretraining_step_compiles_whole(masked, values, attention_mask, noise):
    model = build(XRFForMaskedSpectrumModeling).train()
    inputs = model_inputs(model, values, attention_mask if masked else None, noise)
    assert_compiled_step_equals_eager(model, inputs, backend="aot_eager")


def test_regression_step_compiles_whole(values, attention_mask, labels):
    labels[1, 0] = torch.nan
    model = build(XRFForRegression, **ADAPTED).train()
    inputs = model_inputs(model, values, attention_mask, labels=labels)
    assert_compiled_step_equals_eager(model, inputs, backend="aot_eager")


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile makes its CPU kernels with a C++ compiler, and there is no g++; install one or set CXX",
)
def test_compiled_kernels_give_the_same_step(values, attention_mask, noise):
    model = build(XRFForMaskedSpectrumModeling, num_hidden_layers=1, decoder_num_hidden_layers=1).train()
    inputs = model_inputs(model, values, attention_mask, noise)
    assert_compiled_step_equals_eager(model, inputs, backend="inductor")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"mask_ratio": 0.7}, {"masked_loss_only": False}], ids=str)
def test_pretraining_on_the_measured_patches_alone_is_the_same(fields, implementation, values, noise):
    """Masks, loss, reconstruction and gradients, for less work."""
    attention_mask = torch.zeros(5, NUM_PATCHES, dtype=torch.long)
    for row, measured in enumerate([range(1, 9), range(1, 6), [2, 3, 5, 8, 9], [6], []]):
        attention_mask[row, list(measured)] = 1
    patch_ids = attention_mask.any(dim=0).nonzero()[:, 0].expand(5, -1)
    assert patch_ids.shape == (5, 9)
    results = []
    for ids in (None, patch_ids):
        model = build(XRFForMaskedSpectrumModeling, implementation, **fields).train()
        mask = attention_mask if ids is None else attention_mask.gather(1, ids)
        output = model(values, attention_mask=mask, noise=noise, patch_ids=ids, output_hidden_states=True)
        output.loss.backward()
        results.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (whole, gradients), (alone, gradients_alone) = results
    torch.testing.assert_close(alone.loss, whole.loss)
    assert torch.equal(alone.mask, whole.mask) and alone.mask.sum() > 0
    assert torch.equal(alone.ids_restore.sort(1).values, torch.arange(NUM_PATCHES).expand(5, -1))
    measured = attention_mask.bool()
    assert torch.equal(alone.ids_restore[measured], whole.ids_restore[measured])
    shown = channels_of(attention_mask)
    torch.testing.assert_close(alone.reconstruction[shown], whole.reconstruction[shown], rtol=1e-4, atol=1e-5)
    assert (alone.reconstruction[~channels_of(attention_mask.any(dim=0).expand(5, -1))] == 0).all()
    assert alone.hidden_states[0].shape[1] < whole.hidden_states[0].shape[1]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_alone[name], gradient, rtol=1e-4, atol=1e-6)


def test_all_patches_in_another_order_are_the_whole_spectrum(masked_model, values, noise):
    patch_ids = torch.rand(5, NUM_PATCHES, generator=torch.Generator().manual_seed(3)).argsort(1)
    with torch.no_grad():
        whole, shuffled = (masked_model(values, noise=noise, patch_ids=ids) for ids in (None, patch_ids))
    for name in ("loss", "mask", "ids_restore", "reconstruction"):
        torch.testing.assert_close(shuffled[name], whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("alone", [False, True])
def test_pretraining_step_reads_nothing_from_its_tensors(alone, implementation, values, attention_mask, noise):
    """Whatever reads the content of a tensor waits for a GPU; here they have none, and reading raises."""
    with FakeTensorMode() as mode:
        model = XRFForMaskedSpectrumModeling(XRFMaskedConfig(**SIZES, attn_implementation=implementation)).train()
        inputs = {"input_values": values, "attention_mask": attention_mask, "noise": noise}
        if alone:
            inputs["patch_ids"] = torch.arange(NUM_PATCHES).repeat(5, 1)
        model(**{name: mode.from_tensor(tensor) for name, tensor in inputs.items()}).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        with pytest.raises(DataDependentOutputException):
            norm.item()


@pytest.mark.parametrize("masked", [False, True])
def test_written_out_attention_is_a_softmax_of_scaled_products(masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    query.requires_grad_()
    mask = torch.where(torch.rand(2, 1, 1, 5, generator=generator) < 0.4, -torch.inf, 0.0) if masked else None
    context, weights = eager_attention_forward(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    scores = 0.3 * torch.einsum("bhqd,bhkd->bhqk", query, key) + (0 if mask is None else mask)
    expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    expected_context = torch.einsum("bhqk,bhkd->bqhd", expected, value)
    torch.testing.assert_close(context, expected_context)
    torch.testing.assert_close(
        torch.autograd.grad(context.square().sum(), query, retain_graph=True),
        torch.autograd.grad(expected_context.square().sum(), query),
    )


# Gradients and edges


@pytest.mark.parametrize(
    "model_class, fields",
    [
        (XRFModel, {"pooling": "cls"}),
        (XRFModel, {"pooling": "mean"}),
        (XRFForMaskedSpectrumModeling, {}),
        (XRFForMaskedSpectrumModeling, {"masked_loss_only": False, "normalize_patch_targets": True}),
        (XRFForRegression, {"pooling": "cls"}),
        (XRFForRegression, {"pooling": "mean", "regression_loss": "gaussian"}),
        (XRFForRegression, ADAPTED),
    ],
)
def test_every_parameter_gets_a_finite_gradient(model_class, fields, values, attention_mask, noise, labels):
    model = build(model_class, **fields).train()
    labels[0, 0] = labels[3] = torch.nan
    attention_mask[2] = 0  # nothing measured
    output = model(**model_inputs(model, values, attention_mask, noise, labels))
    loss = output.loss if "loss" in output else output.pooler_output.square().sum()
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("k_proj.bias"):  # a softmax does not see what is added to all its scores
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("spectrum_length", [PATCH_SIZE, SPECTRUM_LENGTH])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_edge_spectra_give_finite_outputs(model_class, spectrum_length, implementation):
    """All zeros, nothing measured, a constant, huge counts; and spectra of a single patch."""
    for fields in ({}, {"pooling": "mean", "regression_loss": "gaussian", "normalize_patch_targets": True}):
        model = build(model_class, implementation, spectrum_length=spectrum_length, **fields).train()
        values = torch.randn(5, spectrum_length, generator=torch.Generator().manual_seed(5))
        values[0] = 0
        values[2] = 3.0
        values[3] *= 1e4
        mask = torch.ones(5, model.config.num_patches, dtype=torch.long)
        mask[1] = 0
        for attention_mask in (None, mask, torch.zeros_like(mask)):
            output = model(
                **model_inputs(model, values, attention_mask, labels=torch.full((5, 2), 10.0)),
                output_hidden_states=True,
            )
            for key, tensor in output.items():
                for part in tensor if isinstance(tensor, tuple) else (tensor,):
                    assert part.isfinite().all(), key
            loss = output.loss if "loss" in output else main_output(output).square().mean()
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_patches_of_one_channel(values):
    model = build(XRFForMaskedSpectrumModeling, spectrum_length=12, patch_size=1, normalize_patch_targets=True)
    assert model(values[:, :12]).loss.isfinite()


def test_wrong_shapes_are_refused(encoder, masked_model, regressor, values, attention_mask):
    for model in (encoder, masked_model, regressor):
        for wrong in (values[:, :-1], values[0], values[:, None]):
            with pytest.raises(ValueError, match=r"input_values must have shape \(batch_size, 96\), but have"):
                model(wrong)
    for model in (encoder, regressor):
        for wrong in (attention_mask[:, :-1], attention_mask[:, :1], attention_mask[:1], channels_of(attention_mask)):
            with pytest.raises(ValueError, match=r"one entry per patch, \(5, 12\), but has shape"):
                model(values, wrong)
    for wrong in (torch.zeros(5), torch.zeros(5, 1), torch.zeros(2, 5)):
        with pytest.raises(ValueError, match=r"labels must have one column per target, \(5, 2\), but have shape"):
            regressor(values, labels=wrong)


def test_regressor_without_targets_is_refused():
    with pytest.raises(ValueError, match="XRFForRegression needs named targets"):
        XRFForRegression(XRFMaskedConfig(**SIZES))


# Measured and unmeasured patches


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_unmeasured_patches_never_influence_the_measured(pooling, values):
    encoder, regressor = build(XRFModel, pooling=pooling), build(XRFForRegression, pooling=pooling)
    generator = torch.Generator().manual_seed(6)
    for _ in range(10):
        mask = (torch.rand(5, NUM_PATCHES, generator=generator) < 0.6).long()
        other = values + 100 * torch.randn(values.shape, generator=generator) * ~channels_of(mask)
        with torch.no_grad():
            expected, actual = encoder(values, mask), encoder(other, mask)
            seen = torch.nn.functional.pad(mask.bool(), (1, 0), value=True)
            assert torch.equal(actual.last_hidden_state[seen], expected.last_hidden_state[seen])
            assert torch.equal(actual.pooler_output, expected.pooler_output)
            assert torch.equal(regressor(other, mask).predictions, regressor(values, mask).predictions)
            if not mask.all():  # and without the mask they would
                assert not torch.equal(regressor(other).predictions, regressor(values).predictions)


def test_unmeasured_patches_never_influence_pretraining(values, noise):
    generator = torch.Generator().manual_seed(7)
    for fields in ({}, {"masked_loss_only": False}, {"normalize_patch_targets": True}):
        model = build(XRFForMaskedSpectrumModeling, **fields)
        for _ in range(5):
            mask = (torch.rand(5, NUM_PATCHES, generator=generator) < 0.6).long()
            other = values + 100 * torch.randn(values.shape, generator=generator) * ~channels_of(mask)
            other_noise = torch.where(mask.bool(), noise, torch.rand(noise.shape, generator=generator))
            with torch.no_grad():
                expected, actual = model(values, mask, noise=noise), model(other, mask, noise=other_noise)
            assert torch.equal(actual.mask, expected.mask)
            torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-6, atol=0)
            measured = channels_of(mask)
            torch.testing.assert_close(actual.reconstruction[measured], expected.reconstruction[measured])


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@torch.no_grad()
def test_an_unmeasured_end_is_as_good_as_a_shorter_spectrum(model_class, values, noise):
    """No parameter depends on the length, so a model of 7 patches must agree with one that sees 7 of 12."""
    whole, short = (build(model_class, spectrum_length=n * PATCH_SIZE, pooling="mean") for n in (NUM_PATCHES, 7))
    short.load_state_dict(whole.state_dict())
    mask = (torch.arange(NUM_PATCHES) < 7).long().expand(5, -1)
    labels = torch.full((5, 2), 20.0)
    expected = short(**model_inputs(short, values[:, : 7 * PATCH_SIZE], None, noise[:, :7], labels))
    actual = whole(**model_inputs(whole, values, mask, noise, labels))
    length = main_output(expected).shape[1]
    torch.testing.assert_close(main_output(actual)[:, :length], main_output(expected), rtol=1e-5, atol=1e-5)
    for key in {"loss", "pooler_output"} & set(expected):
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-5, atol=1e-5)


def test_masked_patches_never_leak_into_the_reconstruction(masked_model, values, attention_mask, noise):
    for mask in (None, attention_mask):
        with torch.no_grad():
            expected = masked_model(values, mask, noise=noise)
            hidden = channels_of(expected.mask)
            assert hidden.any()
            changed = torch.where(hidden, 1000 * values.flip(1), values)
            actual = masked_model(changed, mask, noise=noise)
        assert torch.equal(actual.reconstruction, expected.reconstruction)
        assert actual.loss > 100 * expected.loss  # the loss does see them
        seen = torch.where(hidden, values, 2 * values)
        assert not torch.allclose(masked_model(seen, mask, noise=noise).reconstruction, expected.reconstruction)


def test_reconstruction_knows_where_a_patch_lies(masked_model, values, noise):
    """Masked patches of one spectrum are told apart by their position alone."""
    with torch.no_grad():
        output = masked_model(values, noise=noise)
    for row in range(len(values)):
        hidden = as_patches(output.reconstruction)[row][output.mask[row].bool()]
        assert torch.pdist(hidden).min() > 1e-3


def test_encoding_some_patches_in_any_order(encoder, values):
    """`patch_ids` picks patches: the same as masking the others, and the order does not matter."""
    patch_ids = torch.tensor([[7, 2, 11, 0]]).expand(5, -1)
    mask = torch.zeros(5, NUM_PATCHES).scatter(1, patch_ids, 1)
    with torch.no_grad():
        chosen = encoder(values, patch_ids=patch_ids).last_hidden_state
        expected = encoder(values, mask).last_hidden_state
        torch.testing.assert_close(chosen, expected[:, [0, 8, 3, 12, 1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_measured_patches_can_be_encoded_alone(implementation, pooling, values, attention_mask):
    """As the docstring of `XRFModel` says, for spectra with different numbers of measured patches."""
    attention_mask = attention_mask[1:]  # 7, 8, 5 and 1 of 12
    values = values[1:]
    count = int(attention_mask.sum(dim=1).max())
    patch_ids = attention_mask.argsort(dim=1, descending=True, stable=True)[:, :count]
    assert patch_ids.shape == (4, 8) and patch_ids[2, :5].tolist() == [0, 3, 4, 8, 11]
    chosen = attention_mask.gather(1, patch_ids)

    model = build(XRFModel, implementation, pooling=pooling)
    full, alone = model(values, attention_mask), model(values, chosen, patch_ids)
    torch.testing.assert_close(alone.pooler_output, full.pooler_output, rtol=1e-5, atol=1e-5)
    for row in range(4):
        measured = attention_mask[row].nonzero()[:, 0]
        torch.testing.assert_close(
            alone.last_hidden_state[row, 1 : 1 + len(measured)],
            full.last_hidden_state[row, 1 + measured],
            rtol=1e-5,
            atol=1e-5,
        )

    regressor = build(XRFForRegression, implementation, **{**ADAPTED, "pooling": pooling})
    full, alone = regressor(values, attention_mask), regressor(values, chosen, patch_ids=patch_ids)
    unmasked = regressor(values[:1], patch_ids=patch_ids[:1, :7])
    for key in ("predictions", "standard_deviation", "lower", "upper", "distance"):
        torch.testing.assert_close(alone[key], full[key], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(unmasked[key], full[key][:1], rtol=1e-4, atol=1e-4)


# Masking


def test_kept_patches_have_the_lowest_noise(values):
    generator = torch.Generator().manual_seed(8)
    for mask_ratio in (0.0, 0.25, 0.4, 0.5, 0.75, 0.9):
        model = build(XRFForMaskedSpectrumModeling, mask_ratio=mask_ratio)
        for _ in range(4):
            noise = torch.rand(5, NUM_PATCHES, generator=generator)
            measured = torch.rand(5, NUM_PATCHES, generator=generator) < 0.8
            for attention_mask in (None, measured.long(), torch.ones_like(measured)):
                with torch.no_grad():
                    output = model(values, attention_mask, noise=noise)
                for row in range(5):
                    candidates = range(NUM_PATCHES)
                    if attention_mask is not None:
                        candidates = attention_mask[row].nonzero().flatten().tolist()
                    by_noise = sorted(candidates, key=lambda patch: noise[row, patch])
                    num_kept = int(round(len(by_noise) * (1 - mask_ratio), 6))
                    assert sorted(by_noise[num_kept:]) == output.mask[row].nonzero().flatten().tolist()
                    order = output.ids_restore[row].argsort().tolist()
                    assert order[: len(by_noise)] == by_noise
                    assert sorted(output.ids_restore[row].tolist()) == list(range(NUM_PATCHES))


def test_loss_is_on_masked_patches_only(masked_model, values, attention_mask, noise):
    for mask in (None, attention_mask):
        with torch.no_grad():
            output = masked_model(values, mask, noise=noise)
        hidden = channels_of(output.mask)
        torch.testing.assert_close(output.loss, (output.reconstruction - values)[hidden].square().mean())


def test_loss_on_all_measured_patches(values, attention_mask, noise):
    model = build(XRFForMaskedSpectrumModeling, masked_loss_only=False)
    for mask in (None, attention_mask):
        with torch.no_grad():
            output = model(values, mask, noise=noise)
        measured = channels_of(torch.ones_like(attention_mask) if mask is None else mask)
        torch.testing.assert_close(output.loss, (output.reconstruction - values)[measured].square().mean())


def test_loss_with_normalised_patches(values, noise):
    model = build(XRFForMaskedSpectrumModeling, normalize_patch_targets=True)
    values = 50 + 7 * values
    values[0, :PATCH_SIZE] = 4.0  # a patch without variation
    with torch.no_grad():
        output = model(values, noise=noise)
    errors = []
    for row, patch in output.mask.nonzero().tolist():
        target = values[row, patch * PATCH_SIZE : (patch + 1) * PATCH_SIZE]
        target = (target - target.mean()) / (target.std() + 1e-6)
        errors.append((output.reconstruction[row, patch * PATCH_SIZE : (patch + 1) * PATCH_SIZE] - target).square())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())


# Regression


def standardized_predictions(model, values, attention_mask=None):
    """What the head says, before units: the pooled embedding through the linear layer."""
    return model.head(model.xrf(values, attention_mask=attention_mask).pooler_output)


@torch.no_grad()
def test_predictions_come_in_the_targets_unit(regressor, values):
    head = standardized_predictions(regressor, values)
    expected = head * torch.tensor([20.0, 0.4]) + torch.tensor([40.0, 0.6])
    expected[:, 0] = expected[:, 0].clamp(0, 100)
    torch.testing.assert_close(regressor(values).predictions, expected)


@torch.no_grad()
def test_predictions_stay_in_the_valid_range_and_the_loss_does_not(values, labels):
    model = build(XRFForRegression)
    for bias, expected in ((30.0, 100.0), (-30.0, 0.0)):
        model.head.bias.fill_(bias)
        output = model(values, labels=labels)
        assert (output.predictions[:, 0] == expected).all()
        assert (output.predictions[:, 1].abs() > 3).all()  # an open range
        head = standardized_predictions(model, values)
        target = (labels - torch.tensor([40.0, 0.6])) / torch.tensor([20.0, 0.4])
        torch.testing.assert_close(output.loss, (head - target).square().mean())


@pytest.mark.parametrize("regression_loss", ["mse", "gaussian"])
def test_missing_labels_contribute_nothing(regression_loss, values, attention_mask, labels):
    def step(values, attention_mask, labels):
        model = build(XRFForRegression, regression_loss=regression_loss)
        loss = model(values, attention_mask, labels=labels).loss
        loss.backward()
        return loss, [parameter.grad for parameter in model.parameters()]

    without_rows = step(values[[0, 2, 4]], attention_mask[[0, 2, 4]], labels[[0, 2, 4]])
    labels[1] = labels[3] = torch.nan
    with_nan_rows = step(values, attention_mask, labels)
    torch.testing.assert_close(with_nan_rows, without_rows, rtol=1e-5, atol=1e-6)

    # one missing label of a row: the mean is over the labels present, one by one
    labels[0, 1] = torch.nan
    model = build(XRFForRegression, regression_loss=regression_loss)
    singles = []
    for row, target in (~labels.isnan()).nonzero().tolist():
        only = torch.full_like(labels, torch.nan)
        only[row, target] = labels[row, target]
        singles.append(model(values, attention_mask, labels=only).loss)
    loss = model(values, attention_mask, labels=labels).loss
    torch.testing.assert_close(loss, torch.stack(singles).mean())


def test_a_batch_without_labels_gives_zero_and_no_gradient(regressor, values):
    model = copy.deepcopy(regressor)
    loss = model(values, labels=torch.full((5, 2), torch.nan)).loss
    loss.backward()
    assert loss == 0 and all((parameter.grad == 0).all() for parameter in model.parameters())


@torch.no_grad()
def test_gaussian_head(values, labels):
    model = build(XRFForRegression, regression_loss="gaussian")
    assert model.head.out_features == 4
    output = model(values, labels=labels)
    mean, log_variance = standardized_predictions(model, values).chunk(2, dim=-1)
    std, center = torch.tensor([20.0, 0.4]), torch.tensor([40.0, 0.6])
    normal = torch.distributions.Normal(mean * std + center, (log_variance / 2).exp() * std)
    torch.testing.assert_close(output.standard_deviation, normal.scale)
    torch.testing.assert_close(output.predictions[:, 1], normal.loc[:, 1])
    # the density of the label, but for the unit and the constant of the normal distribution
    expected = -normal.log_prob(labels) - std.log() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(output.loss, expected.mean(), rtol=1e-5, atol=1e-5)


def test_gaussian_head_survives_an_absurd_variance(values, labels):
    for bias in (-1000.0, 1000.0):
        model = build(XRFForRegression, regression_loss="gaussian")
        with torch.no_grad():
            model.head.bias[2:] = bias
        output = model(values, labels=labels)
        output.loss.backward()
        assert output.loss.isfinite() and output.standard_deviation.isfinite().all()
        assert (output.standard_deviation > 0).all()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def numbers(tensor):
    return tensor.double().numpy()


@pytest.mark.parametrize("regression_loss", ["mse", "gaussian"])
@torch.no_grad()
def test_adapted_regressor_by_hand(regression_loss, values, labels):
    """Log target, spectrum head, intervals and distance in double precision, from the parts of the model."""
    model = build(XRFForRegression, **{**ADAPTED, "regression_loss": regression_loss})
    output = model(values, labels=labels)
    embedding = model.xrf(values).pooler_output
    head, embedding = numbers(model.head(embedding)), numbers(embedding)
    mean = head[:, :2] + numbers(values) @ numbers(model.spectrum_head.weight).T
    sd = np.exp(head[:, 2:] / 2) if regression_loss == "gaussian" else np.ones((5, 2))

    def in_units(standardized):
        return np.stack(
            [np.clip(40.0 + 20.0 * standardized[:, 0], 0, 100), np.exp(-0.5 + 0.7 * standardized[:, 1])], axis=1
        )

    np.testing.assert_allclose(output.predictions, in_units(mean), rtol=1e-4)
    if regression_loss == "gaussian":
        expected = np.stack([20.0 * sd[:, 0], output.predictions[:, 1] * 0.7 * sd[:, 1]], axis=1)
        np.testing.assert_allclose(output.standard_deviation, expected, rtol=1e-4)
    else:
        assert output.standard_deviation is None
    assert output.lower.shape == output.upper.shape == (5, 2, 3)
    for place, factors in enumerate([[0.7, 0.6], [1.3, 1.2], [1.7, 1.9]]):
        np.testing.assert_allclose(output.lower[:, :, place], in_units(mean - factors * sd), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(output.upper[:, :, place], in_units(mean + factors * sd), rtol=1e-4, atol=1e-4)
    assert ((output.lower[:, 0] > 0) & (output.upper[:, 0] < 100)).any() and (output.lower[:, 1] > 0).all()
    assert output.lower[:, 0].min() == 0 or output.upper[:, 0].max() == 100  # the range clamps some

    standardized = np.stack([(numbers(labels)[:, 0] - 40) / 20, (np.log(numbers(labels)[:, 1]) + 0.5) / 0.7], axis=1)
    loss = (mean - standardized) ** 2
    if regression_loss == "gaussian":
        loss = 0.5 * (np.log(sd**2) + loss / sd**2)
    np.testing.assert_allclose(output.loss, loss.mean(), rtol=1e-4)

    center, whitening = (numbers(model.familiarity.state_dict()[name]) for name in ("center", "whitening"))
    distance = [math.sqrt(sum((whitening @ (row - center)) ** 2)) for row in embedding]
    np.testing.assert_allclose(output.distance, distance, rtol=1e-4)


@torch.no_grad()
def test_intervals_cover_what_the_gaussian_head_promises():
    """A head that knows the truth's spread: the normal quantiles as factors cover their shares, in both transforms."""
    coverages = [0.5, 0.8, 0.9]
    quantiles = [0.6745, 1.2816, 1.6449]
    model = build(
        XRFForRegression, **{**ADAPTED, "interval_factors": [[q, q] for q in quantiles], "target_min": [None, None],
                             "target_max": [None, None]}
    )  # fmt: skip
    output = model(torch.zeros(1, SPECTRUM_LENGTH))
    draws = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(12))
    linear = output.predictions[0, 0] + output.standard_deviation[0, 0] * draws[:, 0]
    relative_sd = output.standard_deviation[0, 1] / output.predictions[0, 1]
    log = (output.predictions[0, 1].log() + relative_sd * draws[:, 1]).exp()
    for target, truth in enumerate((linear, log)):
        for place, coverage in enumerate(coverages):
            inside = (truth > output.lower[0, target, place]) & (truth < output.upper[0, target, place])
            assert abs(inside.float().mean() - coverage) < 0.015


@torch.no_grad()
def test_intervals_with_a_floor_are_as_wide_at_any_low_value():
    """In the unit, half widths of factor * sd * 0.7 * sqrt(p^2 + floor^2), and no end below 0; the others stay."""
    values = torch.randn(6, SPECTRUM_LENGTH, generator=torch.Generator().manual_seed(3))
    plain, floored = (build(XRFForRegression, **ADAPTED, interval_floors=floors) for floors in (None, [None, 0.8]))
    before, output = plain(values), floored(values)
    for name in ("predictions", "standard_deviation"):
        torch.testing.assert_close(getattr(output, name), getattr(before, name))
    for name in ("lower", "upper"):
        torch.testing.assert_close(getattr(output, name)[:, 0], getattr(before, name)[:, 0])
    prediction = numbers(output.predictions)[:, 1, None]
    sd = numbers(before.standard_deviation)[:, 1, None] / prediction  # of the logarithm, 0.7 of the head's
    half_width = np.array([0.6, 1.2, 1.9]) * sd * np.sqrt(prediction**2 + 0.8**2)
    assert (half_width > prediction).any()
    np.testing.assert_allclose(output.upper[:, 1], prediction + half_width, rtol=1e-4)
    floored.config.target_min = [0.0, 0.0]
    np.testing.assert_allclose(
        floored(values).lower[:, 1], np.maximum(prediction - half_width, 0), rtol=1e-4, atol=1e-6
    )


def test_plain_regressor_has_no_intervals_and_no_distance(regressor, values):
    assert not hasattr(regressor, "spectrum_head") and not hasattr(regressor, "familiarity")
    output = regressor(values)
    assert output.lower is None and output.upper is None and output.distance is None
    assert set(output) == {"predictions"}


def test_labels_without_a_logarithm_count_as_missing(values, labels):
    def step(labels):
        model = build(XRFForRegression, **ADAPTED)
        loss = model(values, labels=labels).loss
        loss.backward()
        return loss, [parameter.grad for parameter in model.parameters()]

    labels[0], labels[1] = torch.tensor([0.0, torch.nan]), torch.tensor([-5.0, torch.nan])
    missing = step(labels)
    labels[0, 1], labels[1, 1] = 0.0, -2.0  # the linear target's zero and negative labels stay
    torch.testing.assert_close(step(labels), missing, rtol=0, atol=0)
    assert missing[0].isfinite()
    labels[0, 1] = 1e-3
    assert step(labels)[0] != missing[0]


def test_gradient_of_the_predictions_is_finite_beside_a_huge_linear_target(values):
    """An element in ppm beside a logarithmic target: no exponential of the one reaches the other's gradient."""
    model = build(XRFForRegression, **{**ADAPTED, "target_mean": [40_000.0, 0.0], "target_max": [None, None]})
    values.requires_grad_()
    output = model(values)
    (output.predictions.sum() + output.upper.sum()).backward()
    assert (output.predictions[:, 0] > 10_000).all()
    assert values.grad.isfinite().all() and values.grad.abs().max() > 0


@torch.no_grad()
def test_new_spectrum_head_changes_nothing_and_new_distance_is_the_embeddings_length(values):
    torch.manual_seed(0)
    plain = XRFForRegression(XRFMaskedConfig(**SIZES, **TARGETS)).eval()
    adapted = XRFForRegression(XRFMaskedConfig(**SIZES, **TARGETS, spectrum_skip=True, familiarity_threshold=1)).eval()
    info = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert set(info.missing_keys) == {"spectrum_head.weight", "familiarity.center", "familiarity.whitening"}
    assert adapted.spectrum_head.weight.shape == (2, SPECTRUM_LENGTH) and adapted.spectrum_head.bias is None
    output = adapted(values)
    assert torch.equal(output.predictions, plain(values).predictions)
    torch.testing.assert_close(output.distance, plain.xrf(values).pooler_output.norm(dim=1))


@torch.no_grad()
def test_unmeasured_patches_never_influence_an_adapted_regressor(values, attention_mask):
    model = build(XRFForRegression, **ADAPTED)
    expected = model(values, attention_mask)
    hidden = attention_mask.repeat_interleave(PATCH_SIZE, dim=1) == 0
    changed = model(values.masked_fill(hidden, 1e3), attention_mask)
    zeros = model(values.masked_fill(hidden, 0.0), attention_mask)
    for key in expected:
        torch.testing.assert_close(changed[key], expected[key], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(zeros[key], expected[key], rtol=1e-5, atol=1e-5)


def outputs_of(model, values):
    with torch.no_grad():
        output = model(values)
    assert {"predictions", "standard_deviation", "lower", "upper", "distance"} <= set(output)
    return output


def assert_same_outputs(actual, expected, rtol=0.0, atol=0.0):
    assert set(actual) == set(expected)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=rtol, atol=atol)


@pytest.mark.parametrize("load", [XRFForRegression, AutoModelForSequenceClassification])
@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
def test_adapted_regressor_is_saved_whole(load, device_map, values, tmp_path):
    model = build(XRFForRegression, **ADAPTED)
    model.save_pretrained(tmp_path)
    loaded, info = load.from_pretrained(tmp_path, device_map=device_map, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_state(loaded, model)
    assert_same_outputs(outputs_of(loaded.to("cpu"), values), outputs_of(model, values))
    encoder, info = XRFModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_state(encoder, model.xrf)


def test_what_a_checkpoint_lacks_begins_as_nothing(masked_model, values, tmp_path):
    """Loading builds on the meta device: what is not in the checkpoint must still hold zeros and the identity."""
    masked_model.save_pretrained(tmp_path)
    fields = {**TARGETS, "spectrum_skip": True, "familiarity_threshold": 4.0}
    model, info = XRFForRegression.from_pretrained(tmp_path, **fields, output_loading_info=True)
    added = {"spectrum_head.weight", "familiarity.center", "familiarity.whitening"}
    assert set(info["missing_keys"]) == {"head.weight", "head.bias"} | added
    assert (model.spectrum_head.weight == 0).all() and (model.familiarity.center == 0).all()
    assert torch.equal(model.familiarity.whitening, torch.eye(32))
    assert model.head.weight.abs().min() > 0

    with torch.device("meta"):
        model = XRFForRegression(model.config)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)
    model.init_weights()
    assert (model.spectrum_head.weight == 0).all() and (model.familiarity.center == 0).all()
    assert torch.equal(model.familiarity.whitening, torch.eye(32))


def test_new_targets_leave_the_old_intervals_and_familiarity_behind(values, tmp_path):
    build(XRFForRegression, **ADAPTED).save_pretrained(tmp_path)
    model, info = XRFForRegression.from_pretrained(tmp_path, target_names=["Fe", "Ti"], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    output = model(values)
    assert output.lower is None and output.distance is None and output.standard_deviation is not None


def test_checkpoint_of_before_these_fields_gives_the_same_numbers(values, tmp_path):
    model = build(XRFForRegression, regression_loss="gaussian")
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for name in (
        "target_transform", "spectrum_skip", "interval_coverages", "interval_factors", "interval_floors",
        "familiarity_threshold"
    ):  # fmt: skip
        settings.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = XRFForRegression.from_pretrained(tmp_path)
    with torch.no_grad():
        head = loaded.head(loaded.xrf(values).pooler_output)
        output = loaded(values)
    mean, std = torch.tensor([40.0, 0.6]), torch.tensor([20.0, 0.4])
    expected = (head[:, :2] * std + mean).clamp(torch.tensor([0, -torch.inf]), torch.tensor([100, torch.inf]))
    assert torch.equal(output.predictions, expected)
    assert torch.equal(output.standard_deviation, (head[:, 2:] / 2).exp() * std)


def test_adapted_regressor_in_other_precisions_and_attentions(values, tmp_path):
    model = build(XRFForRegression, **ADAPTED)
    expected = outputs_of(model, values)
    assert_same_outputs(outputs_of(build(XRFForRegression, "eager", **ADAPTED), values), expected, 1e-4, 1e-4)
    model.save_pretrained(tmp_path)
    halved = XRFForRegression.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert halved.spectrum_head.weight.dtype == torch.bfloat16
    assert torch.equal(halved.familiarity.whitening, model.familiarity.whitening)  # not rounded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = outputs_of(model, values)
    everywhere = outputs_of(copy.deepcopy(model).to(torch.bfloat16), values)
    for output in (outputs_of(halved, values), autocast, everywhere):
        assert all(tensor.dtype == torch.float32 for tensor in output.values())
        torch.testing.assert_close(output.distance, expected.distance, rtol=0.03, atol=0.03)
        torch.testing.assert_close(output.upper[:, 1].log(), expected.upper[:, 1].log(), rtol=0.05, atol=0.1)


def test_distance_is_not_rounded_by_autocast():
    """Nearly equal embeddings far from the centre, and a whitening that looks at their difference."""
    familiarity = XRFFamiliarity(2)
    familiarity.whitening.copy_(torch.tensor([[100.0, -100.0], [0.0, 0.0]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = familiarity(torch.tensor([[10.0, 10.01], [10.0, 10.03]]))
    torch.testing.assert_close(distance, torch.tensor([1.0, 3.0]), rtol=1e-3, atol=1e-3)


def test_adapted_outputs_compile_whole(values):
    model = build(XRFForRegression, **ADAPTED)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_outputs(outputs_of(compiled, values), outputs_of(model, values), 1e-4, 1e-4)


@torch.no_grad()
def test_mean_pooling_is_over_measured_patches(values, attention_mask):
    model = build(XRFModel, pooling="mean")
    output = model(values, attention_mask)
    for row in range(5):
        expected = output.last_hidden_state[row, 1:][attention_mask[row].bool()].mean(0)
        torch.testing.assert_close(output.pooler_output[row], expected)
    torch.testing.assert_close(model(values).pooler_output, model(values).last_hidden_state[:, 1:].mean(1))


@pytest.mark.parametrize("regression_loss", ["mse", "gaussian"])
def test_reloaded_regressor_predicts_in_the_same_unit(regression_loss, values, labels, tmp_path):
    model = build(XRFForRegression, regression_loss=regression_loss, pooling="mean")
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, value in TARGETS.items():
        assert getattr(reloaded.config, name) == value
    with torch.no_grad():
        expected, actual = model(values, labels=labels), reloaded(values, labels=labels)
    assert set(expected) == set(actual)
    for key in expected:
        assert torch.equal(actual[key], expected[key])


def test_training_learns_a_target_in_its_unit():
    """A line's height to a concentration, labels of one target partly missing: the error falls far below the sd."""
    generator = torch.Generator().manual_seed(9)
    concentration = 50 + 20 * torch.randn(64, 1, generator=generator)
    values = 0.1 * torch.randn(64, SPECTRUM_LENGTH, generator=generator)
    values[:, 40:44] += (concentration - 50) / 20
    labels = torch.cat([concentration, 0.01 * concentration], dim=1)
    labels[::3, 1] = torch.nan
    torch.manual_seed(10)
    model = XRFForRegression(
        XRFMaskedConfig(
            **{**SIZES, "initializer_range": 0.1},
            target_names=["Ca", "CO2"],
            target_mean=[50.0, 0.5],
            target_std=[20.0, 0.2],
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(values, labels=labels).loss.backward()
        optimizer.step()
    error = (model(values).predictions - torch.cat([concentration, 0.01 * concentration], dim=1)).abs().mean(0)
    assert error[0] < 5 and error[1] < 0.05


# Auto classes, here and where the package is not installed


@pytest.fixture(scope="module")
def adapted_regressor():
    return build(XRFForRegression, **ADAPTED)


@pytest.fixture(scope="module")
def repositories(masked_model, adapted_regressor, tmp_path_factory):
    """One folder a model class, saved as a user would."""
    folders = {}
    for model in (masked_model, adapted_regressor):
        folder = tmp_path_factory.mktemp(type(model).__name__)
        model.save_pretrained(folder)
        XRFFeatureExtractor.for_config(model.config, scaling="log").save_pretrained(folder)
        folders[type(model)] = folder
    return folders


def test_auto_classes_without_trust(repositories):
    masked, regression = repositories[XRFForMaskedSpectrumModeling], repositories[XRFForRegression]
    assert type(AutoConfig.from_pretrained(masked)) is XRFMaskedConfig
    assert type(AutoModel.from_pretrained(masked)) is XRFModel
    assert type(AutoModel.from_pretrained(regression)) is XRFModel
    assert type(AutoModelForPreTraining.from_pretrained(masked)) is XRFForMaskedSpectrumModeling
    assert type(AutoModelForSequenceClassification.from_pretrained(regression)) is XRFForRegression
    for load in (AutoFeatureExtractor, AutoProcessor):
        feature_extractor = load.from_pretrained(regression)
        assert type(feature_extractor) is XRFFeatureExtractor and feature_extractor.scaling == "log"


WITHOUT_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.endswith("_xrf") and "." not in name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
masked, regression, inputs, outputs = sys.argv[1:]
for name in ("configuration_xrf", "modeling_xrf", "feature_extraction_xrf"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported")

import torch
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification,
    AutoProcessor,
)

inputs = torch.load(inputs, weights_only=True)
values = inputs["input_values"]
config = AutoConfig.from_pretrained(regression, trust_remote_code=True)
models = {
    "encoder": AutoModel.from_pretrained(masked, trust_remote_code=True),
    "masked": AutoModelForPreTraining.from_pretrained(masked, trust_remote_code=True),
    "regression": AutoModelForSequenceClassification.from_pretrained(regression, trust_remote_code=True),
}
new = AutoModelForSequenceClassification.from_pretrained(
    masked, trust_remote_code=True, target_names=["Fe"], spectrum_skip=True, familiarity_threshold=1
)
extractors = [
    load.from_pretrained(regression, trust_remote_code=True) for load in (AutoFeatureExtractor, AutoProcessor)
]
with torch.no_grad():
    torch.save(
        {
            "target_names": config.target_names,
            "modules": [type(each).__module__ for each in (config, *models.values(), *extractors)],
            "encoder": models["encoder"](values).last_hidden_state,
            "masked": models["masked"](values, noise=inputs["noise"]).reconstruction,
            "regression": dict(models["regression"](values)),
            "new": {name: tensor for name, tensor in new.state_dict().items() if not name.startswith("xrf.")},
            "features": [
                each(inputs["counts"].numpy(), gain_kev=0.02, offset_kev=0.0, return_tensors="pt")["input_values"]
                for each in extractors
            ],
        },
        outputs,
    )
"""


def test_repository_works_where_the_package_is_not_installed(
    repositories, masked_model, adapted_regressor, values, noise, hub_environment, tmp_path
):
    counts = torch.arange(SPECTRUM_LENGTH, dtype=torch.float64)
    torch.save({"input_values": values, "noise": noise, "counts": counts}, tmp_path / "inputs.pt")
    folders = (repositories[XRFForMaskedSpectrumModeling], repositories[XRFForRegression])
    files = (tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    environment = {key: value for key, value in hub_environment.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE, *map(str, (*folders, *files))],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert all(module.startswith("transformers_modules.") for module in outputs["modules"])
    assert outputs["target_names"] == ["CaCO3", "TOC"]
    with torch.no_grad():
        torch.testing.assert_close(outputs["encoder"], masked_model.xrf(values).last_hidden_state)
        torch.testing.assert_close(outputs["masked"], masked_model(values, noise=noise).reconstruction)
        assert_same_outputs(outputs["regression"], adapted_regressor(values), rtol=1e-5, atol=1e-5)
    assert outputs["new"]["head.weight"].std() > 0.05 and (outputs["new"]["spectrum_head.weight"] == 0).all()
    assert (outputs["new"]["familiarity.center"] == 0).all()
    assert torch.equal(outputs["new"]["familiarity.whitening"], torch.eye(32))
    expected = XRFFeatureExtractor.for_config(adapted_regressor.config, scaling="log")(
        counts.numpy(), gain_kev=0.02, offset_kev=0.0, return_tensors="pt"
    )["input_values"]
    for features in outputs["features"]:
        assert torch.equal(features, expected)


# LoRA


@pytest.fixture
def adapter(masked_model, tmp_path):
    """A LoRA adapter with drawn weights on the saved base: the peft model, the base's folder and the adapter's."""
    from peft import LoraConfig, get_peft_model

    masked_model.save_pretrained(tmp_path / "base")
    base = XRFForRegression.from_pretrained(tmp_path / "base", **TARGETS, regression_loss="gaussian")
    lora = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["head"]
    )
    model = get_peft_model(base, lora).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # LoRA begins at zero, where a lost adapter would not show
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    feature_extractor = XRFFeatureExtractor.for_config(base.config)
    save_adapter_repository(tmp_path / "adapter", model, feature_extractor, "# A card\n")
    return model, tmp_path / "base", tmp_path / "adapter"


def test_lora_trains_the_adapter_and_the_head_only(adapter, values, attention_mask, labels):
    model = adapter[0].train()
    # all that peft's wrapper for sequence classification hands on
    output = model(
        input_values=values, attention_mask=attention_mask, labels=labels, input_ids=None, inputs_embeds=None
    )
    output.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)
    assert {name.split(".")[-2] for name in trained if "head" in name} == {"default"}
    assert len([name for name in trained if "lora_A" in name]) == 4  # q and v of two encoder layers


@pytest.mark.parametrize("load", [XRFForRegression, AutoModelForSequenceClassification])
def test_adapter_brings_what_an_adaptation_adds(load, masked_model, values, tmp_path):
    from peft import LoraConfig, get_peft_model

    masked_model.save_pretrained(tmp_path / "base")
    base = XRFForRegression.from_pretrained(tmp_path / "base", **{**TARGETS, **ADAPTED})
    lora = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"],
        modules_to_save=["head", "spectrum_head", "familiarity"],
    )  # fmt: skip
    model = get_peft_model(base, lora).eval()
    fill_what_an_adaptation_adds(model)
    save_adapter_repository(tmp_path / "adapter", model, XRFFeatureExtractor.for_config(base.config), "# A card\n")
    with torch.no_grad():
        expected = model(input_values=values)
    loaded = load.from_pretrained(tmp_path / "adapter")
    assert_same_outputs(outputs_of(loaded, values), expected, rtol=1e-5, atol=1e-5)
    assert loaded.spectrum_head.weight.abs().min() > 0 and loaded.familiarity.center.abs().min() > 0


@pytest.mark.parametrize("load", [XRFForRegression, AutoModelForSequenceClassification])
def test_adapter_repository_loads_with_its_task(load, adapter, values, attention_mask):
    model, _, folder = adapter
    assert not (folder / "config.json").exists()
    loaded = load.from_pretrained(folder)
    assert type(loaded) is XRFForRegression and not loaded.training
    assert not any("lora" in name for name, _ in loaded.named_parameters())  # merged
    assert loaded.config.target_names == ["CaCO3", "TOC"] and loaded.config.target_mean == [40.0, 0.6]
    assert_positions_hold_the_formula(loaded)
    with torch.no_grad():
        expected, actual = model(input_values=values, attention_mask=attention_mask), loaded(values, attention_mask)
    torch.testing.assert_close(actual.predictions, expected.predictions, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.standard_deviation, expected.standard_deviation, rtol=1e-5, atol=1e-5)
    assert expected.predictions.std() > 1


def test_adapter_does_not_touch_its_base(adapter, masked_model):
    _, base, folder = adapter
    XRFForRegression.from_pretrained(folder)
    assert_same_state(XRFForMaskedSpectrumModeling.from_pretrained(base), masked_model)


def test_adapter_without_its_base_names_it(adapter):
    _, base, folder = adapter
    os.rename(base, base.with_name("elsewhere"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    with pytest.raises(OSError, match=f"was trained on '{base}', which could not be loaded; make that repository"):
        XRFForRegression.from_pretrained(folder)
    with pytest.raises(OSError, match=str(base)):  # transformers' own words: it looks for the base before us
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_repository_of_neither_kind_is_refused(tmp_path):
    with pytest.raises(OSError):
        XRFForRegression.from_pretrained(tmp_path)
