"""configuration_xrf: sizes, round trips, and every rule between the fields."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from configuration_xrf import SIZES, XRFMaskedConfig

TARGETS = {
    "target_names": ["CaCO3", "TOC"],
    "target_units": ["wt%", "wt%"],
    "target_mean": [23.5, 0.6],
    "target_std": [26.25, 0.4],
    "target_min": [0, None],
    "target_max": [100.0, None],
    "target_transform": ["linear", "log"],
    "interval_coverages": [0.8, 0.9],
    "interval_factors": [[1, 1.2], [1.5, 2.25]],
    "interval_floors": [None, 2],
    "familiarity_threshold": 3,
    "calibration": "standardless",
}
# A value other than the default for every field of the family.
EVERY_FIELD = {
    "spectrum_length": 96,
    "patch_size": 8,
    "channel_width_kev": 0.04,
    "first_channel_kev": 1,  # a whole number is a fine energy
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "perceptron_size": 10,
    "perceptron_num_layers": 1,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.1,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 20,
    "mask_ratio": 0,
    "masked_loss_only": False,
    "normalize_patch_targets": True,
    "pooling": "mean",
    "regression_loss": "gaussian",
    "spectrum_skip": True,
    **TARGETS,
}


def test_default_is_the_architecture_of_max():
    config = XRFMaskedConfig()
    assert (config.spectrum_length, config.patch_size, config.num_patches) == (2048, 16, 128)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (512, 8)
    assert config.decoder_num_attention_heads == 16
    assert (config.intermediate_size, config.decoder_intermediate_size) == (4 * 768, 4 * 512)
    assert (config.hidden_act, config.layer_norm_eps, config.mask_ratio) == ("gelu", 1e-6, 0.5)
    assert config.masked_loss_only and not config.normalize_patch_targets and config.pooling == "cls"
    assert (config.channel_width_kev, config.first_channel_kev) == (0.02, 0.0)


def test_base_is_the_default():
    assert XRFMaskedConfig.from_size("base").to_dict() == XRFMaskedConfig().to_dict()


def test_sizes_grow_and_take_overrides():
    widths = [XRFMaskedConfig.from_size(size).hidden_size for size in ("tiny", "small", "base", "large")]
    assert widths == sorted(set(widths)) and set(SIZES) == {"tiny", "small", "base", "large"}
    for size in SIZES:
        config = XRFMaskedConfig.from_size(size, spectrum_length=512, mask_ratio=0.25)
        assert config.num_patches == 32 and config.mask_ratio == 0.25
        assert config.intermediate_size == 4 * config.hidden_size
    with pytest.raises(ValueError, match="must be one of tiny, small, base, large, but is 'huge'; choose"):
        XRFMaskedConfig.from_size("huge")


def test_round_trip_keeps_every_field(tmp_path):
    fields = set(XRFMaskedConfig.__annotations__) - {"model_type"}
    assert fields == set(EVERY_FIELD), "a field of the configuration is not covered here"
    default = XRFMaskedConfig()
    assert all(getattr(default, name) != value for name, value in EVERY_FIELD.items())
    config = XRFMaskedConfig(**EVERY_FIELD)
    config.save_pretrained(tmp_path)
    for reloaded in (XRFMaskedConfig.from_pretrained(tmp_path), XRFMaskedConfig.from_dict(config.to_dict())):
        for name, value in EVERY_FIELD.items():
            assert getattr(reloaded, name) == value, name
        assert reloaded.id2label == {0: "CaCO3", 1: "TOC"} and reloaded.label2id == {"CaCO3": 0, "TOC": 1}
        assert reloaded.num_labels == 2
        assert reloaded.to_dict() == config.to_dict()


def test_auto_config_finds_the_class(tmp_path):
    import modeling_xrf  # noqa: F401  registers the Auto classes

    XRFMaskedConfig(**EVERY_FIELD).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is XRFMaskedConfig
    assert type(AutoConfig.for_model("xrf")) is XRFMaskedConfig


def test_saved_file_names_the_classes_of_the_repository(tmp_path):
    XRFMaskedConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "xrf"
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_xrf.XRFMaskedConfig",
        "AutoModel": "modeling_xrf.XRFModel",
        "AutoModelForPreTraining": "modeling_xrf.XRFForMaskedSpectrumModeling",
        "AutoModelForSequenceClassification": "modeling_xrf.XRFForRegression",
        "AutoFeatureExtractor": "feature_extraction_xrf.XRFFeatureExtractor",
        "AutoProcessor": "feature_extraction_xrf.XRFFeatureExtractor",
    }
    pipeline = saved["custom_pipelines"]["xrf-regression"]
    assert pipeline["impl"] == "pipeline_xrf.XRFRegressionPipeline"
    assert pipeline["pt"] == ["AutoModelForSequenceClassification"]
    # transformers demands trust_remote_code of a configuration that carries this; ours is installed
    assert not hasattr(XRFMaskedConfig.from_pretrained(tmp_path), "custom_pipelines")


def test_two_configurations_share_no_map():
    first = XRFMaskedConfig()
    first.auto_map["AutoConfig"] = "elsewhere.Config"
    assert XRFMaskedConfig().auto_map["AutoConfig"] == "configuration_xrf.XRFMaskedConfig"


def test_targets_get_open_ranges_and_unit_statistics_by_default():
    config = XRFMaskedConfig(target_names=["a", "b"])
    assert config.target_units == ["", ""] and config.target_mean == [0.0, 0.0] and config.target_std == [1.0, 1.0]
    assert config.target_min == [None, None] and config.target_max == [None, None]
    assert config.target_transform == ["linear", "linear"]
    assert config.interval_coverages is None and config.interval_factors is None and config.interval_names == []


def test_intervals_are_named_by_their_percentage():
    config = XRFMaskedConfig(
        target_names=["a"], interval_coverages=[0.55, 0.683, 0.9, 0.995], interval_factors=[[1.0]] * 4
    )
    assert config.interval_names == ["55", "68.3", "90", "99.5"]


def test_new_targets_drop_the_statistics_of_the_old_ones(tmp_path):
    XRFMaskedConfig(**EVERY_FIELD).save_pretrained(tmp_path)
    config = XRFMaskedConfig.from_pretrained(tmp_path, target_names=["Fe"], target_units=["ppm"])
    assert config.target_names == ["Fe"] and config.target_units == ["ppm"]
    assert config.target_mean == [0.0] and config.target_std == [1.0] and config.target_max == [None]
    assert config.target_transform == ["linear"]
    assert config.interval_coverages is None and config.interval_factors is None
    assert config.familiarity_threshold is None and config.calibration is None and config.spectrum_skip
    assert config.id2label == {0: "Fe"} and config.num_labels == 1
    assert config.hidden_size == EVERY_FIELD["hidden_size"]


def test_fields_changed_while_loading_are_checked(tmp_path):
    XRFMaskedConfig(**EVERY_FIELD).save_pretrained(tmp_path)
    assert XRFMaskedConfig.from_pretrained(tmp_path, mask_ratio=0.75).mask_ratio == 0.75
    with pytest.raises(StrictDataclassError, match="mask_ratio must lie in"):
        XRFMaskedConfig.from_pretrained(tmp_path, mask_ratio=1.5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patch_size": 14}, r"spectrum_length \(2048\) must be a multiple of patch_size \(14\); use 16\."),
        ({"patch_size": 0}, "patch_size must be at least 1, but is 0"),
        ({"spectrum_length": 0}, "spectrum_length must be at least 1, but is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, but is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1, but is -1"),
        ({"perceptron_size": -1}, "perceptron_size must not be negative, but is -1; 0 has none"),
        ({"hidden_size": 100}, r"hidden_size \(100\) must be even.*multiple of num_attention_heads \(12\); use 96\."),
        ({"hidden_size": 9, "num_attention_heads": 3}, r"hidden_size \(9\) must be even"),
        ({"decoder_hidden_size": 100}, r"decoder_hidden_size \(100\).*decoder_num_attention_heads \(16\); use 96\."),
        ({"channel_width_kev": 0}, "channel_width_kev must be positive, but is 0"),
        ({"mask_ratio": 1.0}, r"mask_ratio must lie in \[0, 1\), but is 1.0"),
        ({"mask_ratio": -0.1}, r"mask_ratio must lie in \[0, 1\), but is -0.1"),
        ({"mask_ratio": float("nan")}, r"mask_ratio must lie in \[0, 1\), but is nan"),
        ({"pooling": "max"}, "pooling must be one of cls, mean, but is 'max'"),
        ({"regression_loss": "mae"}, "regression_loss must be one of mse, gaussian, but is 'mae'"),
        ({"target_names": ["a", "a"]}, r"target_names must differ from each other, but are \['a', 'a'\]"),
        ({**TARGETS, "target_mean": [1.0]}, r"target_mean must have one entry per target \(2\), but has 1"),
        ({**TARGETS, "target_max": [1.0]}, r"target_max must have one entry per target \(2\), but has 1"),
        ({**TARGETS, "target_std": [1.0, 0.0]}, "target_std of TOC must be positive, but is 0.0; a constant target"),
        ({**TARGETS, "target_std": [float("nan"), 1.0]}, "target_std of CaCO3 must be positive, but is nan"),
        ({**TARGETS, "target_mean": [float("nan"), 1.0]}, "target_mean of CaCO3 must be finite, but is nan"),
        ({**TARGETS, "target_min": [100, None]}, r"target_min of CaCO3 \(100\) must lie below target_max \(100.0\)"),
        (
            {**TARGETS, "target_transform": ["log"]},
            r"target_transform must have one entry per target \(2\), but has 1",
        ),
        (
            {**TARGETS, "target_transform": ["log", "ln"]},
            "target_transform of TOC must be one of linear, log, but is 'l",
        ),
        (
            {**TARGETS, "target_min": [None, -2], "target_max": [1, 0]},
            "target_max of TOC must be positive, .* but is 0;",
        ),
        ({**TARGETS, "interval_factors": None}, r"one row per coverage \(2\), but has 0; give both fields or neither"),
        ({**TARGETS, "interval_coverages": None}, r"one row per coverage \(0\), but has 2; give both fields"),
        ({**TARGETS, "interval_coverages": [0.8, 1.0]}, r"interval_coverages must lie in \(0, 1\), but has 1.0"),
        ({**TARGETS, "interval_coverages": [0.8, 0.8]}, r"interval_coverages must differ .* but are \[0.8, 0.8\]"),
        (
            {**TARGETS, "interval_factors": [[1.0, 1.0], [2.0]]},
            r"coverage 0.9 must have one entry .* \(2\), but have 1",
        ),
        (
            {**TARGETS, "interval_factors": [[1, 1], [1, -2]]},
            "of TOC must be finite and not negative, but have -2 for",
        ),
        (
            {**TARGETS, "interval_factors": [[float("inf"), 1], [1, 1]]},
            "of CaCO3 must be finite .* for the coverage 0.8",
        ),
        (
            {**TARGETS, "interval_floors": [1.0]},
            r"interval_floors must have one .* \(2\), but have 1; add",
        ),
        ({**TARGETS, "interval_floors": [None, 0]}, "interval_floors of TOC must be positive, .* but is 0 with 'log'"),
        ({**TARGETS, "interval_floors": [2, None]}, "of CaCO3 must be positive, .* but is 2 with 'linear'; use None"),
        ({"calibration": "none"}, "calibration must be 'standardless' or None, but is 'none'; use None"),
        ({"familiarity_threshold": 0}, "familiarity_threshold must be positive and finite, but is 0; give None"),
        ({"familiarity_threshold": float("nan")}, "familiarity_threshold must be positive and finite, but is nan"),
    ],
)
def test_rule_between_fields(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        XRFMaskedConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": "768"},
        {"masked_loss_only": "no"},
        {"target_names": "CaCO3"},
        {"spectrum_skip": "yes"},
        {"interval_coverages": 0.9},
        {"interval_factors": [1.0]},
        {"familiarity_threshold": "3"},
    ],
)
def test_types_are_strict(fields):
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        XRFMaskedConfig(**fields)


@pytest.mark.parametrize("patch_size, remedy", [(14, 16), (3, 4), (1500, 1024), (24, 32)])
def test_remedy_for_the_patch_size_works(patch_size, remedy):
    with pytest.raises(StrictDataclassError, match=f"use {remedy}\\."):
        XRFMaskedConfig(patch_size=patch_size)
    XRFMaskedConfig(patch_size=remedy)


@pytest.mark.parametrize("hidden_size, heads", [(9, 3), (100, 12), (7, 7), (1, 1)])
def test_remedy_for_the_width_works(hidden_size, heads):
    with pytest.raises(StrictDataclassError, match="use ") as info:
        XRFMaskedConfig(hidden_size=hidden_size, num_attention_heads=heads)
    remedy = int(str(info.value.__cause__ or info.value).rstrip(".").rsplit(" ", 1)[1])
    XRFMaskedConfig(hidden_size=remedy, num_attention_heads=heads)
