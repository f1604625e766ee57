"""The parts of fine-tuning, each against a hand computation or an independent implementation."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from peaks_corpus import make_spectra, write_corpus
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

import finetuning_xrf
from configuration_xrf import XRFMaskedConfig
from evaluation_xrf import regression_metric
from feature_extraction_xrf import XRFFeatureExtractor
from finetuning_xrf import LabelledSpectra
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression, XRFModel

NAN = float("nan")
LABELS = np.array([[10.0, 1.0], [30.0, NAN], [50.0, 2.0], [70.0, 4.0]])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = XRFMaskedConfig(
        spectrum_length=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        channel_width_kev=0.08,
    )
    return XRFModel(config).eval()


@pytest.fixture
def model(encoder):
    return finetuning_xrf.regression_model(encoder, ["CaCO3", "TOC"], ["wt%", "wt%"], LABELS).eval()


def random_spectra(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(number, 4, dtype=torch.int64)
    mask[::3, -1] = 0
    return LabelledSpectra(
        torch.randn(number, 64, generator=generator),
        mask,
        torch.rand(number, 2, generator=generator) * 50,
        np.ones((number, 64), np.float32),
        np.array([f"core-{index % 4}" for index in range(number)]),
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    spectra = make_spectra(12, num_cores=3)
    spectra[1] = dataclasses.replace(spectra[1], targets={"CaCO3": 20.0}, core=None)
    folder = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", train=spectra)
    return datasets.load_dataset(str(folder), split="train"), spectra


# --- the corpus ---


def test_labels_and_groups_are_read_as_written(rows):
    dataset, spectra = rows
    labels, groups = finetuning_xrf.read_labels(dataset, ["TOC", "CaCO3"])
    expected = [[spectrum.targets.get("TOC", NAN), spectrum.targets["CaCO3"]] for spectrum in spectra]
    np.testing.assert_allclose(labels, expected, rtol=1e-6)
    assert list(groups) == [spectrum.core or spectrum.sample for spectrum in spectra]
    assert finetuning_xrf.read_target_units(dataset, ["TOC", "Fe"]) == ["wt%", ""]


def test_groups_are_unknown_where_one_spectrum_names_none(rows):
    dataset, _ = rows
    anonymous = dataset.remove_columns(["core", "sample"])
    assert finetuning_xrf.read_labels(anonymous, ["CaCO3"])[1] is None


def test_an_unknown_target_is_answered_with_those_there_are(rows):
    with pytest.raises(ValueError, match=r"no target 'Fe'; it has CaCO3, TOC\."):
        finetuning_xrf.read_labels(rows[0], ["CaCO3", "Fe"])
    with pytest.raises(ValueError, match="no target 'depth_mm'"):
        finetuning_xrf.read_labels(rows[0], ["depth_mm"])


def test_an_infinite_label_is_named():
    dataset = datasets.Dataset.from_dict({"CaCO3": [1.0, float("inf")]})
    with pytest.raises(ValueError, match="Row 1 has an infinite CaCO3"):
        finetuning_xrf.read_labels(dataset, ["CaCO3"])


def test_picked_spectra_are_what_the_feature_extractor_makes_of_them(rows, monkeypatch):
    monkeypatch.setattr(finetuning_xrf, "ROWS_AT_ONCE", 2)
    dataset, spectra = rows
    extractor = XRFFeatureExtractor(spectrum_length=64, channel_width_kev=0.08)
    labels, groups = finetuning_xrf.read_labels(dataset, ["CaCO3", "TOC"])
    picked = np.array([7, 1, 4])
    labelled = finetuning_xrf.read_spectra(dataset, "train", picked, labels, groups, extractor)
    expected = extractor([spectra[row] for row in picked], return_tensors="pt")
    torch.testing.assert_close(labelled.input_values, expected["input_values"])
    assert torch.equal(labelled.attention_mask, expected["attention_mask"])
    np.testing.assert_allclose(labelled.labels, labels[picked], rtol=1e-6)
    np.testing.assert_allclose(labelled.counts.sum(1), [spectra[row].counts.sum() for row in picked], rtol=1e-2)
    assert list(labelled.groups) == list(groups[picked])
    second = labelled.select(np.array([1]))[0]
    assert torch.equal(second["input_values"], labelled.input_values[1]) and second["labels"].isnan().tolist()[1]


def test_an_unusable_spectrum_is_named_by_its_row():
    rows = datasets.Dataset.from_dict(
        {"counts": [[1.0] * 128, [1.0] * 128, [0.0] * 128], "gain_kev": [0.04] * 3, "offset_kev": [0.0] * 3}
    )
    extractor = XRFFeatureExtractor(spectrum_length=64, channel_width_kev=0.08)
    with pytest.raises(ValueError, match="pectrum 2 of split 'train'"):
        finetuning_xrf.read_spectra(rows, "train", np.array([0, 2]), np.ones((3, 1)), None, extractor)


def test_labels_are_checked_target_by_target():
    finetuning_xrf.check_labels(LABELS, ["CaCO3", "TOC"], "Training", 3)
    with pytest.raises(ValueError, match="Training needs at least 4 labels of TOC, but has 3"):
        finetuning_xrf.check_labels(LABELS, ["CaCO3", "TOC"], "Training", 4)
    with pytest.raises(ValueError, match=r"CaCO3 is constant \(7\) in the 4 labels for Training"):
        finetuning_xrf.check_labels(np.full((4, 1), 7.0), ["CaCO3"], "Training", 3)
    finetuning_xrf.check_labels(np.full((4, 1), 7.0), ["CaCO3"], "Split 'test'")  # a test set may be constant


def test_labels_are_set_aside_by_whole_cores():
    groups = np.array([f"core-{index % 5}" for index in range(50)])
    aside = finetuning_xrf.carve_validation(groups, 0.2, seed=0)
    assert aside.sum() == 10 and len(set(groups[aside])) == 1 and not set(groups[aside]) & set(groups[~aside])
    with pytest.raises(ValueError, match="there is 1"):
        finetuning_xrf.carve_validation(np.array(["core-0"] * 5), 0.2, seed=0)
    with pytest.raises(ValueError, match="there are none named"):
        finetuning_xrf.carve_validation(None, 0.2, seed=0)


# --- models ---


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'vit', not 'xrf'"):
        finetuning_xrf.load_encoder(str(tmp_path))


def test_a_checkpoint_without_all_encoder_weights_is_refused(tmp_path, encoder):
    from safetensors.torch import save_file

    weights = encoder.state_dict()
    del weights["layers.1.mlp.fc2.weight"]
    encoder.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks the encoder's weights .*layers.1.mlp.fc2.weight"):
        finetuning_xrf.load_encoder(str(tmp_path))


@pytest.mark.parametrize("kind", ["pretrained", "regression"])
def test_the_encoder_of_any_model_of_the_family_is_loaded_bit_for_bit(tmp_path, encoder, model, kind):
    saved = model if kind == "regression" else XRFForMaskedSpectrumModeling(encoder.config)
    saved.xrf.load_state_dict(encoder.state_dict())
    saved.save_pretrained(tmp_path)
    loaded = finetuning_xrf.load_encoder(str(tmp_path))
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_new_model_standardises_with_the_labels_present_and_starts_at_their_mean(encoder, model):
    config = model.config
    assert config.target_mean == pytest.approx([40, 7 / 3])
    assert config.target_std == pytest.approx([np.sqrt(2000 / 3), np.std([1, 2, 4], ddof=1)])
    assert (config.target_min, config.target_max) == ([0.0, 0.0], [100.0, 100.0])
    assert config.pooling == "mean" and encoder.config.target_names is None
    predictions, sd = finetuning_xrf.predict(model, random_spectra(5), 2)
    np.testing.assert_allclose(predictions, np.tile([40, 7 / 3], (5, 1)), rtol=1e-6)
    assert sd is None


def test_a_target_without_limits_stays_unclamped(encoder):
    model = finetuning_xrf.regression_model(encoder, ["Fe/Ca", "Sr"], ["", "ppm"], LABELS)
    assert (model.config.target_min, model.config.target_max) == ([None, 0.0], [None, 1e6])
    clamped = finetuning_xrf.clamp(np.array([[-5.0, -5.0], [200.0, 2e6]]), model.config)
    np.testing.assert_array_equal(clamped, [[-5, 0], [200, 1e6]])


def test_only_updates_and_head_learn_with_lora_and_the_base_stays_bit_identical(model):
    before = {name: value.clone() for name, value in model.xrf.state_dict().items()}
    adapted = finetuning_xrf.lora_model(model, 4, 8, 0.0, ["q_proj", "fc1"])
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "head" in name for name in trainable)
    assert sum("lora_A" in name for name in trainable) == 4  # two layers, two modules each
    spectra = random_spectra(8)
    untrained, _ = finetuning_xrf.predict(adapted, spectra, 8)
    optimizer = torch.optim.AdamW(finetuning_xrf.layerwise_parameter_groups(adapted, 0.1, 0.1, 0.5))
    for _ in range(3):
        adapted.train()(**spectra[slice(None)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.abs(finetuning_xrf.predict(adapted, spectra, 8)[0] - untrained).max() > 1
    weights = {name.replace(".base_layer", ""): value for name, value in model.xrf.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(weights[name], value), name


def test_a_layer_that_lora_cannot_adapt_is_named(model):
    with pytest.raises(ValueError, match="no linear layer 'query' to adapt; it has fc1, fc2, k_proj"):
        finetuning_xrf.lora_model(model, 4, 8, 0.0, ["query"])


def test_layerwise_rates_by_hand(model):
    groups = finetuning_xrf.layerwise_parameter_groups(model, 0.8, 0.1, decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    expected = {
        "head.weight": (0.8, 0.1),
        "head.bias": (0.8, 0.0),
        "xrf.layernorm.weight": (0.8, 0.0),
        "xrf.layers.1.mlp.fc1.weight": (0.4, 0.1),
        "xrf.layers.0.attention.q_proj.weight": (0.2, 0.1),
        "xrf.layers.0.layernorm_before.bias": (0.2, 0.0),
        "xrf.embeddings.patch_embeddings.weight": (0.1, 0.1),
        "xrf.embeddings.cls_token": (0.1, 0.0),
    }
    parameters = dict(model.named_parameters())
    for name, values in expected.items():
        assert (rate[id(parameters[name])], decay[id(parameters[name])]) == pytest.approx(values), name
    assert len(rate) == len(parameters) == sum(len(group["params"]) for group in groups)


def test_a_perceptron_alone_is_adapted_too():
    sizes = {"spectrum_length": 64, "patch_size": 16, "num_hidden_layers": 0, "perceptron_size": 8}
    model = XRFForRegression(XRFMaskedConfig.from_size("tiny", **sizes, target_names=["Fe"]))
    groups = finetuning_xrf.layerwise_parameter_groups(model, 0.8, 0.1, decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rate[id(parameter)] for parameter in model.xrf.perceptron.parameters()} == {0.4}
    assert rate[id(model.head.weight)] == 0.8
    adapted = finetuning_xrf.lora_model(model, 2, 4, 0.0)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-4] for name in trained if "lora_A" in name} == {"fc1", "fc2"} and len(
        trained
    ) == 2 * 4 + 2


def test_equal_rates_without_layer_decay(model):
    groups = finetuning_xrf.layerwise_parameter_groups(model, 0.8, 0.1, decay=1.0)
    assert {group["lr"] for group in groups} == {0.8}


# --- the probe ---


def embeddings_and_labels(number=40, width=12, seed=0):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(number, width)) @ rng.normal(size=(width, width)) + 3
    labels = np.stack([embeddings[:, 0] + rng.normal(size=number), rng.normal(size=number)], axis=1)
    groups = np.array([f"core-{index % 7}" for index in range(number)])
    return embeddings, labels, groups


@pytest.mark.parametrize("width", [12, 60])  # fewer and more dimensions than spectra
@pytest.mark.parametrize("grouped", [False, True])
def test_the_probe_equals_sklearn(width, grouped):
    embeddings, labels, groups = embeddings_and_labels(width=width)
    labels[:5, 1] = NAN
    probe = finetuning_xrf.fit_probe(embeddings, labels, groups if grouped else None)
    for column, target in enumerate(labels.T):
        present = ~np.isnan(target)
        x, y = embeddings[present], target[present]
        penalties = finetuning_xrf.PROBE_PENALTIES * np.sum((x - x.mean(0)) ** 2)
        if grouped:
            errors = [
                cross_val_predict(Ridge(penalty), x, y, groups=groups[present], cv=LeaveOneGroupOut()) - y
                for penalty in penalties
            ]
            best = int(np.argmin([np.mean(error**2) for error in errors]))
            assert probe.residual_sd[column] == pytest.approx(np.sqrt(np.mean(errors[best] ** 2)), rel=1e-6)
            expected_penalty = penalties[best]
        else:
            expected_penalty = RidgeCV(penalties).fit(x, y).alpha_
        assert probe.penalty[column] == pytest.approx(expected_penalty)
        ridge = Ridge(expected_penalty).fit(x, y)
        np.testing.assert_allclose(probe.predict(embeddings)[:, column], ridge.predict(embeddings), atol=1e-6)


def test_a_probe_to_train_on_keeps_to_the_greater_penalties():
    embeddings, labels, groups = embeddings_and_labels()
    total = np.sum((embeddings - embeddings.mean(0)) ** 2)
    free, bounded = (finetuning_xrf.fit_probe(embeddings, labels, groups, least) for least in (0.0, 0.5))
    assert free.penalty[0] < 0.5 * total <= bounded.penalty[0]
    assert np.linalg.norm(bounded.weight[0]) < np.linalg.norm(free.weight[0])


def test_constant_embeddings_give_the_mean():
    probe = finetuning_xrf.fit_probe(np.ones((6, 4)), np.arange(6.0)[:, None])
    np.testing.assert_allclose(probe.predict(np.zeros((1, 4))), [[2.5]])


@pytest.mark.parametrize("regression_loss", ["mse", "gaussian"])
def test_a_model_with_the_probes_head_predicts_as_the_probe(encoder, regression_loss):
    spectra = random_spectra(30)
    labels = spectra.labels.numpy()
    model = finetuning_xrf.regression_model(
        encoder, ["CaCO3", "TOC"], ["wt%", ""], labels, pooling="cls", regression_loss=regression_loss
    )
    embeddings = finetuning_xrf.embed(model, spectra, batch_size=7)
    expected = model.xrf(spectra.input_values, spectra.attention_mask).last_hidden_state[:, 0]
    np.testing.assert_allclose(embeddings, expected.detach(), atol=1e-5)
    probe = finetuning_xrf.fit_probe(embeddings, labels, spectra.groups)
    finetuning_xrf.write_probe(model, probe)
    predictions, sd = finetuning_xrf.predict(model, spectra, batch_size=30)
    np.testing.assert_allclose(predictions, finetuning_xrf.clamp(probe.predict(embeddings), model.config), atol=1e-3)
    if regression_loss == "gaussian":
        np.testing.assert_allclose(sd, np.tile(probe.residual_sd, (30, 1)), rtol=1e-5)
    else:
        assert sd is None


# --- results ---


def test_result_rows_and_table_by_hand(model):
    metric = regression_metric(["CaCO3", "TOC"])
    predictions = np.array([[12.0, 1.0], [28.0, 2.0]])
    rows = finetuning_xrf.result_rows(metric, "test", "lora", predictions, [[10.0, NAN], [30.0, NAN]], model.config)
    assert rows[0] == {
        "split": "test",
        "method": "lora",
        "target": "CaCO3",
        "unit": "wt%",
        "r2": pytest.approx(0.96),
        "rmse": pytest.approx(2),
        "mae": pytest.approx(2),
        "bias": pytest.approx(0),
        "rpd": pytest.approx(np.sqrt(200) / 2),
        "rpiq": pytest.approx(5),
        "n": 2,
    }
    assert rows[1]["n"] == 0 and rows[1]["r2"] is None
    lines = finetuning_xrf.markdown_table(rows).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:7]] == [
        "CaCO3 (wt%)",
        "test",
        "lora",
        "2",
        "0.960",
        "2.000",
    ]
    assert len({len(line) for line in lines}) == 1 and lines[3].split("|")[5].strip() == ""


def test_cores_on_both_sides_are_counted():
    spectra = random_spectra(8)
    assert finetuning_xrf.shared_groups(spectra, spectra.select(np.array([0, 1, 4]))) == 2
    assert finetuning_xrf.shared_groups(spectra, dataclasses.replace(spectra, groups=None)) is None


def test_a_saved_model_knows_everything(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = XRFForRegression.from_pretrained(tmp_path)
    assert loaded.config.target_mean == model.config.target_mean and loaded.config.target_units == ["wt%", "wt%"]
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
