"""Configuration of the XRF model family."""

import math
import re

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Which class of which file of a Hub repository serves each Auto class when this package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_xrf.XRFMaskedConfig",
    "AutoModel": "modeling_xrf.XRFModel",
    "AutoModelForPreTraining": "modeling_xrf.XRFForMaskedSpectrumModeling",
    "AutoModelForSequenceClassification": "modeling_xrf.XRFForRegression",
    "AutoFeatureExtractor": "feature_extraction_xrf.XRFFeatureExtractor",
    "AutoProcessor": "feature_extraction_xrf.XRFFeatureExtractor",
}
CUSTOM_PIPELINES = {
    "xrf-regression": {
        "impl": "pipeline_xrf.XRFRegressionPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "default": {},
        "type": "multimodal",
    }
}

# Encoder width, layers and heads, then decoder width, layers and heads. `base` is MAX's architecture.
SIZES = {
    "tiny": (192, 4, 3, 96, 2, 3),
    "small": (384, 6, 6, 256, 4, 8),
    "base": (768, 12, 12, 512, 8, 16),
    "large": (1024, 24, 16, 512, 8, 16),
}
MLP_RATIO = 4
DIMENSIONS = (
    "spectrum_length", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size"
)  # fmt: skip
MAY_BE_ZERO = ("perceptron_size", "perceptron_num_layers")
POOLINGS = ("cls", "mean")
REGRESSION_LOSSES = ("mse", "gaussian")
TARGET_TRANSFORMS = ("linear", "log")
CALIBRATIONS = ("standardless",)
# What belongs to the targets, and to the spectra they were determined on.
TARGET_FIELDS = (
    "target_names", "target_units", "target_mean", "target_std", "target_min", "target_max", "target_transform",
    "interval_coverages", "interval_factors", "interval_floors", "familiarity_threshold", "calibration", "id2label",
    "label2id"
)  # fmt: skip


@strict
class XRFMaskedConfig(PreTrainedConfig):
    r"""
    Configuration of [`XRFModel`], [`XRFForMaskedSpectrumModeling`] and [`XRFForRegression`]. The defaults are the
    architecture of MAX (arXiv 2410.12330): patches of 16 channels on 2048 channels of 20 eV, 768 x 12 x 12 encoder,
    512 x 8 x 16 decoder.

    Args:
        spectrum_length (`int`, defaults to 2048): number of channels of the model's energy grid.
        patch_size (`int`, defaults to 16): channels in one patch; must divide `spectrum_length`.
        channel_width_kev (`float`, defaults to 0.02): width of a grid channel in keV.
        first_channel_kev (`float`, defaults to 0.0): energy of the centre of the first grid channel in keV.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`): the encoder's dimensions.
        perceptron_size (`int`, defaults to 0): width of a perceptron over the whole scaled spectrum, whose output is
            added to the last state of the CLS token. It needs many more spectra than the encoder and a fraction of
            its arithmetic for each; with one, `num_hidden_layers` may be 0. 0 has none.
        perceptron_num_layers (`int`, defaults to 2): its residual layers.
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward layers.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every layer normalisation.
        initializer_range (`float`, defaults to 0.02): standard deviation of newly initialised CLS and mask tokens
            and of the regression head; other matrices follow Glorot and Bengio (2010).
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`):
            the dimensions of the pretraining decoder.
        mask_ratio (`float`, defaults to 0.5): share of the measured patches hidden in pretraining, in [0, 1).
        masked_loss_only (`bool`, defaults to `True`): pretraining loss on the masked patches only, or on all measured.
        normalize_patch_targets (`bool`, defaults to `False`): standardise every patch before it is compared with its
            reconstruction.
        pooling (`str`, defaults to `"cls"`): `pooler_output` is the CLS token (`"cls"`) or the mean over the measured
            patches (`"mean"`).
        regression_loss (`str`, defaults to `"mse"`): `"mse"` predicts one value per target, `"gaussian"` its mean and
            variance.
        target_names, target_units (`list[str]`): the regression targets, for example `["CaCO3"]` and `["wt%"]`.
        target_transform (`list[str]`): per target `"linear"` (the default), or `"log"` for a positive target whose
            ratios matter: the model then standardises and predicts the natural logarithm of the value.
        target_mean, target_std (`list[float]`): mean and standard deviation of the transformed training labels, in
            the target's unit if it is linear; the model standardises labels and restores predictions with them.
            Default 0 and 1.
        target_min, target_max (`list[float | None]`): valid range in the target's unit that predictions are clamped
            to; `None` is open.
        spectrum_skip (`bool`, defaults to `False`): add a linear map of the scaled spectrum to the regression head's
            standardised prediction.
        interval_coverages (`list[float]`, *optional*): shares of the truth that prediction intervals are meant to
            cover, for example `[0.8, 0.9]`.
        interval_factors (`list[list[float]]` of shape `(coverages, targets)`): half widths of these intervals in the
            standardised target, in units of the Gaussian head's standard deviation where there is one, else of 1.
        interval_floors (`list[float | None]`, *optional*): in the target's unit. The interval of a target with the
            transform `"log"` that has a floor f reaches as far below its prediction p as above it: its half width in
            the unit is that above times sqrt(p^2 + f^2), as an error has it that is relative at high values and the
            same at all low ones.
        familiarity_threshold (`float`, *optional*): with it the regression model measures how far the embedding of a
            spectrum lies from those it was adapted to; a spectrum farther away than this is unfamiliar.
        calibration (`str`, *optional*): `"standardless"` for a model trained on simulated spectra alone, which no
            reference material of the user's instrument has tied to laboratory values.

    Example:

    ```python
    >>> from configuration_xrf import XRFMaskedConfig

    >>> XRFMaskedConfig.from_size("tiny", spectrum_length=512).num_patches
    32
    ```"""

    model_type = "xrf"

    spectrum_length: int = 2048
    patch_size: int = 16
    channel_width_kev: float | int = 0.02
    first_channel_kev: float | int = 0.0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    perceptron_size: int = 0
    perceptron_num_layers: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.5
    masked_loss_only: bool = True
    normalize_patch_targets: bool = False
    pooling: str = "cls"
    regression_loss: str = "mse"
    spectrum_skip: bool = False
    target_names: list[str] | None = None
    target_units: list[str] | None = None
    target_transform: list[str] | None = None
    target_mean: list[float | int] | None = None
    target_std: list[float | int] | None = None
    target_min: list[float | int | None] | None = None
    target_max: list[float | int | None] | None = None
    interval_coverages: list[float] | None = None
    interval_factors: list[list[float | int]] | None = None
    interval_floors: list[float | int | None] | None = None
    familiarity_threshold: float | int | None = None
    calibration: str | None = None

    def __post_init__(self, **kwargs):
        if self.target_names:
            count = len(self.target_names)
            self.target_units = self.target_units or [""] * count
            self.target_transform = self.target_transform or ["linear"] * count
            self.target_mean = self.target_mean or [0.0] * count
            self.target_std = self.target_std or [1.0] * count
            self.target_min = self.target_min or [None] * count
            self.target_max = self.target_max or [None] * count
            # transformers and peft read the size of a head from these two
            self.id2label = dict(enumerate(self.target_names))
            self.label2id = {name: index for index, name in enumerate(self.target_names)}
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        # A repository names its pipeline class for processes without this package. transformers would demand
        # trust_remote_code on seeing it, so an installed configuration keeps it in the file only (see to_dict).
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "XRFMaskedConfig":
        """Configuration of a named size, `tiny`, `small`, `base` or `large`; `kwargs` override single fields."""
        if size not in SIZES:
            raise ValueError(
                f"The model size must be one of {', '.join(SIZES)}, but is {size!r}; choose one of these."
            )
        width, layers, heads, decoder_width, decoder_layers, decoder_heads = SIZES[size]
        fields = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": MLP_RATIO * width,
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": decoder_layers,
            "decoder_num_attention_heads": decoder_heads,
            "decoder_intermediate_size": MLP_RATIO * decoder_width,
        }
        return cls(**{**fields, **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in the base class, but fields given in `kwargs` pass through the constructor, and so are checked; new
        `target_names` drop the units, statistics, ranges, intervals and familiarity of the old ones."""
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.__dataclass_fields__}
        if "target_names" in overrides:
            config_dict = {key: value for key, value in config_dict.items() if key not in TARGET_FIELDS}
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    @property
    def num_patches(self) -> int:
        """Number of patches of a whole spectrum."""
        return self.spectrum_length // self.patch_size

    @property
    def embedding_pooling(self) -> str:
        """The better embedding of spectra that come without labels: the CLS token where a perceptron of the whole
        spectrum adds to it, else the mean over the measured patches."""
        return "cls" if self.perceptron_size else "mean"

    @property
    def interval_names(self) -> list[str]:
        """What the intervals are called in tables, their coverage in percent: `["80", "90"]` for `[0.8, 0.9]`."""
        return [f"{100 * coverage:g}" for coverage in self.interval_coverages or []]

    def validate_architecture(self):
        """Check the fields against each other; each message gives the rule, the value and the remedy."""
        super().validate_architecture()
        for name in DIMENSIONS:
            least = 0 if name == "num_hidden_layers" and self.perceptron_size else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}; give a positive number.")
        for name in MAY_BE_ZERO:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}; 0 has none.")
        if self.spectrum_length % self.patch_size:
            divisors = [p for p in range(1, self.spectrum_length + 1) if self.spectrum_length % p == 0]
            nearest = min(divisors, key=lambda p: (abs(p - self.patch_size), -p))
            raise ValueError(
                f"spectrum_length ({self.spectrum_length}) must be a multiple of patch_size ({self.patch_size}); "
                f"use {nearest}."
            )
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, prefix + "hidden_size"), getattr(self, prefix + "num_attention_heads")
            if width % heads or width % 2:
                raise ValueError(
                    f"{prefix}hidden_size ({width}) must be even, for its sine-cosine positions, and a multiple of "
                    f"{prefix}num_attention_heads ({heads}); use {2 * heads * max(1, round(width / heads / 2))}."
                )
        if not self.channel_width_kev > 0:
            raise ValueError(f"channel_width_kev must be positive, but is {self.channel_width_kev}; 0.02 is usual.")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in [0, 1), but is {self.mask_ratio}; 0.5 is usual.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, but is {self.pooling!r}; use 'mean'.")
        if self.regression_loss not in REGRESSION_LOSSES:
            raise ValueError(
                f"regression_loss must be one of {', '.join(REGRESSION_LOSSES)}, but is {self.regression_loss!r}; "
                "use 'gaussian' for a standard deviation beside every value."
            )
        threshold = self.familiarity_threshold
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(
                f"familiarity_threshold must be positive and finite, but is {threshold}; give None to measure none."
            )
        if self.calibration is not None and self.calibration not in CALIBRATIONS:
            raise ValueError(
                f"calibration must be {CALIBRATIONS[0]!r} or None, but is {self.calibration!r}; use None for a model "
                "that has seen laboratory values."
            )
        if self.target_names:
            self._validate_targets()
            self._validate_intervals()

    def _validate_targets(self):
        count = len(self.target_names)
        if len(set(self.target_names)) != count:
            raise ValueError(f"target_names must differ from each other, but are {self.target_names}; rename one.")
        for name in ("target_units", "target_transform", "target_mean", "target_std", "target_min", "target_max"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} must have one entry per target ({count}), but has {len(values)}; add it.")
        for name, mean in zip(self.target_names, self.target_mean or []):
            if not math.isfinite(mean):
                raise ValueError(f"target_mean of {name} must be finite, but is {mean}; leave out missing labels.")
        for name, std in zip(self.target_names, self.target_std or []):
            if not 0 < std < math.inf:
                raise ValueError(
                    f"target_std of {name} must be positive, but is {std}; a constant target cannot be learned."
                )
        for name, lower, upper in zip(self.target_names, self.target_min or [], self.target_max or []):
            if lower is not None and upper is not None and not lower < upper:
                raise ValueError(f"target_min of {name} ({lower}) must lie below target_max ({upper}); swap them.")
        for name, transform, upper in zip(self.target_names, self.target_transform or [], self.target_max or []):
            if transform not in TARGET_TRANSFORMS:
                raise ValueError(
                    f"target_transform of {name} must be one of {', '.join(TARGET_TRANSFORMS)}, but is {transform!r}; "
                    "use 'linear' if unsure."
                )
            if transform == "log" and upper is not None and not upper > 0:
                raise ValueError(
                    f"target_max of {name} must be positive, because its transform is log, but is {upper}; use "
                    "'linear' for a target that is not positive."
                )

    def _validate_intervals(self):
        coverages, factors = self.interval_coverages or [], self.interval_factors or []
        if len(coverages) != len(factors):
            raise ValueError(
                f"interval_factors must have one row per coverage ({len(coverages)}), but has {len(factors)}; give "
                "both fields or neither."
            )
        for coverage in coverages:
            if not 0 < coverage < 1:
                raise ValueError(f"interval_coverages must lie in (0, 1), but has {coverage}; 0.9 is usual.")
        if len(set(self.interval_names)) != len(coverages):
            raise ValueError(f"interval_coverages must differ from each other, but are {coverages}; drop one.")
        for coverage, row in zip(coverages, factors):
            if len(row) != len(self.target_names):
                raise ValueError(
                    f"interval_factors for the coverage {coverage} must have one entry per target "
                    f"({len(self.target_names)}), but have {len(row)}; add it."
                )
            for name, factor in zip(self.target_names, row):
                if not 0 <= factor < math.inf:
                    raise ValueError(
                        f"interval_factors of {name} must be finite and not negative, but have {factor} for the "
                        f"coverage {coverage}; leave out a coverage that the labels are too few for."
                    )
        floors, transforms = self.interval_floors or [], self.target_transform or []
        if floors and len(floors) != len(self.target_names):
            raise ValueError(
                f"interval_floors must have one entry per target ({len(self.target_names)}), but have {len(floors)}; "
                "add it."
            )
        for name, floor, transform in zip(self.target_names, floors, transforms):
            if floor is not None and not (transform == "log" and 0 < floor < math.inf):
                raise ValueError(
                    f"interval_floors of {name} must be positive, with the transform log, but is {floor} with "
                    f"{transform!r}; use None."
                )

    def to_dict(self):
        output = super().to_dict()
        output["auto_map"] = {key: re.sub(r"^.*--", "", value) for key, value in output["auto_map"].items()}
        output["custom_pipelines"] = CUSTOM_PIPELINES
        return output


XRFMaskedConfig.register_for_auto_class("AutoConfig")

__all__ = ["XRFMaskedConfig"]
