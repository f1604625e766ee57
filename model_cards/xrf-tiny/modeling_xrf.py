"""XRF models: a transformer encoder over patches of a spectrum, its masked pretraining and its regression head.

Dimensions in comments: B spectra in the batch, L channels (`spectrum_length`), C channels per patch (`patch_size`),
P patches of a whole spectrum, V patches that the encoder sees, D hidden size, E decoder hidden size, T targets,
K prediction intervals (`interval_coverages`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, find_adapter_config_file, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

try:
    from .configuration_xrf import XRFMaskedConfig  # beside this file in a Hub repository
    from .feature_extraction_xrf import XRFFeatureExtractor
except ImportError:
    from configuration_xrf import XRFMaskedConfig  # installed by setup.py
    from feature_extraction_xrf import XRFFeatureExtractor

# A Gaussian head's log variance of a standardised target: sd between 1/150 and 150 of the training labels' own.
LOG_VARIANCE_LIMIT = 10.0


@dataclass
class XRFMaskedSpectrumModelingOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error over the masked (or all measured) patches.
        reconstruction (`torch.FloatTensor` of shape `(batch_size, spectrum_length)`): the decoder's prediction for
            every channel, in scaled counts (with `normalize_patch_targets`, in standardised ones).
        mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`): 1 = masked, 0 = kept or not measured.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`): place of every patch in the shuffled
            order, whose first patches the encoder saw.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class XRFRegressionOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`): over the labels present, on standardised targets.
        predictions (`torch.FloatTensor` of shape `(batch_size, num_targets)`): in each target's unit, clamped to its
            valid range.
        standard_deviation (`torch.FloatTensor` of shape `(batch_size, num_targets)`): of the predictions, in each
            target's unit; for a target with the transform `"log"`, the prediction times the standard deviation of the
            logarithm, its first-order propagation. With `regression_loss="gaussian"` only.
        lower, upper (`torch.FloatTensor` of shape `(batch_size, num_targets, num_coverages)`): ends of the prediction
            intervals in each target's unit, clamped to its valid range; with `interval_coverages` only.
        distance (`torch.FloatTensor` of shape `(batch_size,)`): of the embedding from those the model was adapted to
            (see [`XRFFamiliarity`]); above `familiarity_threshold` a spectrum is unfamiliar. With that threshold only.
    """

    loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    standard_deviation: torch.FloatTensor | None = None
    lower: torch.FloatTensor | None = None
    upper: torch.FloatTensor | None = None
    distance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def sine_cosine_positions(num_patches: int, hidden_size: int) -> torch.Tensor:
    """Fixed positions `(num_patches + 1, hidden_size)`: a row of zeros for the CLS token, then for patch p the sines,
    followed by the cosines, of p / 10000^(2i / hidden_size) (Vaswani et al. 2017, in the layout of MAE)."""
    frequency = 10000.0 ** -(torch.arange(hidden_size // 2, dtype=torch.float64) / (hidden_size // 2))
    angle = torch.arange(num_patches, dtype=torch.float64)[:, None] * frequency
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([torch.zeros(1, hidden_size, dtype=torch.float64), table]).float()


class XRFPositions(nn.Module):
    """The fixed position table, a module of its own so that `_init_weights` can refill it: loading builds models on
    the meta device, where a buffer that is not in the checkpoint loses its content."""

    def __init__(self, num_patches: int, hidden_size: int):
        super().__init__()
        self.register_buffer("table", sine_cosine_positions(num_patches, hidden_size), persistent=False)

    def forward(self, patch_ids: torch.LongTensor | None = None) -> torch.Tensor:
        """Positions of CLS and all patches `(1, P + 1, D)`, or of CLS and the patches `patch_ids` `(B, V + 1, D)`."""
        if patch_ids is None:
            return self.table[None]
        return self.table[nn.functional.pad(patch_ids + 1, (1, 0))]


class XRFEmbeddings(nn.Module):
    """Patches of scaled counts to tokens: a linear map per patch (MAX's strided convolution), positions, CLS."""

    def __init__(self, config: XRFMaskedConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = nn.Linear(config.patch_size, config.hidden_size)
        self.positions = XRFPositions(config.num_patches, config.hidden_size)

    def forward(self, patches: torch.Tensor, patch_ids: torch.LongTensor | None = None) -> torch.Tensor:
        if patch_ids is not None:
            # gathered before the embedding, so that the backward pass holds no gather
            patches = _gather_patches(patches, patch_ids)  # (B, V, C)
        tokens = self.patch_embeddings(patches)  # (B, V, D)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)  # (B, V + 1, D)
        return tokens + self.positions(patch_ids).to(tokens.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention written out, so that its weights can be returned; in bfloat16 on a CPU faster than
    the fused one. Every kernel computes a softmax in float32, whatever it is given."""
    batch_size, num_heads, tokens, _ = query.shape
    query, key = query.flatten(0, 1), key.flatten(0, 1)  # (B heads, tokens, head_dim)
    scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scaling)
    scores = scores.view(batch_size, num_heads, tokens, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(query.dtype)
    context = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return context.transpose(1, 2).contiguous(), weights


class XRFAttention(nn.Module):
    def __init__(self, config: XRFMaskedConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)  # (B, heads, V + 1, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(context.reshape(hidden_states.shape)), weights


class XRFMLP(nn.Module):
    def __init__(self, config: XRFMaskedConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class XRFLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block, of the encoder or the decoder."""

    def __init__(self, config: XRFMaskedConfig, hidden_size: int, num_heads: int, intermediate_size: int):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = XRFAttention(config, hidden_size, num_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = XRFMLP(config, hidden_size, intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class XRFDecoder(nn.Module):
    """Reconstructs all patches from the encoded visible ones, with mask tokens in the other places."""

    def __init__(self, config: XRFMaskedConfig):
        super().__init__()
        self.config = config
        size = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = XRFPositions(config.num_patches, size)
        self.layers = nn.ModuleList(
            XRFLayer(config, size, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.head = nn.Linear(size, config.patch_size)

    def forward(
        self,
        latent: torch.Tensor,
        places: torch.LongTensor,
        visible: torch.BoolTensor | None,
        attention_mask: torch.Tensor | None,
        patch_ids: torch.LongTensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`places` `(B, V)`: where among the reconstructed patches, all or `patch_ids` `(B, N)`, the encoded ones are;
        `visible` `(B, V)` and `attention_mask` `(B, N)` as in the other classes. Returns `(B, N, C)`."""
        latent = self.embed(latent)  # (B, V + 1, E)
        batch_size, _, size = latent.shape
        num_patches = self.config.num_patches if patch_ids is None else patch_ids.shape[1]
        patches, mask_token = latent[:, 1:], self.mask_token.to(latent.dtype)
        if visible is not None:
            patches = torch.where(visible[..., None], patches, mask_token)  # an empty slot's latent knows its patch
        tokens = mask_token.expand(batch_size, num_patches, size)
        tokens = tokens.scatter(1, places[..., None].expand_as(patches), patches)  # (B, N, E)
        hidden_states = torch.cat([latent[:, :1], tokens], dim=1)
        hidden_states = hidden_states + self.positions(patch_ids).to(hidden_states.dtype)
        attention_mask = _with_cls(self.config, hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.head(self.layernorm(hidden_states[:, 1:]))  # (B, N, C)


def _with_cls(config, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask `(B, V)` of measured patches as the attention implementation wants it, CLS always visible."""
    if attention_mask is not None:
        expected = (hidden_states.shape[0], hidden_states.shape[1] - 1)
        if attention_mask.shape != expected:
            raise ValueError(
                f"attention_mask must have one entry per patch, {expected}, but has shape "
                f"{tuple(attention_mask.shape)}; XRFFeatureExtractor returns it."
            )
        attention_mask = nn.functional.pad(attention_mask.bool(), (1, 0), value=True)
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=hidden_states,
        attention_mask=attention_mask,
        # to leave out a mask that hides nothing, its content must be read, and training would wait for the GPU
        allow_is_bidirectional_skip=attention_mask is None or not torch.is_grad_enabled(),
    )


class XRFFamiliarity(nn.Module):
    """How far an embedding lies from the spectra a model was adapted to: `||whitening (embedding - center)||`. With
    the mean of their embeddings and the inverse square root of their covariance it is Mahalanobis' distance (Lee et
    al., NeurIPS 2018). A new one holds zeros and the identity. Buffers and distances are float32, whatever the
    model's precision: a whitening magnifies rounding."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(hidden_size))
        self.register_buffer("whitening", torch.eye(hidden_size))

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Embeddings `(B, D)` to distances `(B,)`."""
        with torch.autocast(embedding.device.type, enabled=False):
            whitened = (embedding.float() - self.center.float()) @ self.whitening.float().T
            return torch.linalg.vector_norm(whitened, dim=-1)


class XRFPerceptronLayer(GradientCheckpointingLayer):
    """Pre-norm residual feed-forward layer."""

    def __init__(self, config: XRFMaskedConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.perceptron_size, eps=config.layer_norm_eps)
        self.mlp = XRFMLP(config, config.perceptron_size, config.perceptron_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.mlp(self.layernorm(hidden_states))


class XRFPerceptron(nn.Module):
    """The whole spectrum, and which patches of it are given, to what is added to the last state of the CLS token."""

    def __init__(self, config: XRFMaskedConfig):
        super().__init__()
        size = config.perceptron_size
        self.embed = nn.Linear(config.spectrum_length + config.num_patches, size)
        self.layers = nn.ModuleList(XRFPerceptronLayer(config) for _ in range(config.perceptron_num_layers))
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.output = nn.Linear(size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, patches: torch.Tensor, given: torch.BoolTensor) -> torch.Tensor:
        """Patches `(B, P, C)` and which of them count `(B, P)` to `(B, D)`."""
        values = _given_values(patches, given)  # (B, L)
        hidden_states = self.embed(torch.cat([values, given.to(values.dtype)], dim=1))  # (B, perceptron_size)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.activation(self.output(self.layernorm(hidden_states)))


class XRFPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the XRF models."""

    config: XRFMaskedConfig
    base_model_prefix = "xrf"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["XRFEmbeddings", "XRFPerceptron", "XRFLayer", "XRFDecoder"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": XRFLayer, "attentions": XRFAttention}
    _input_embed_layer = "patch_embeddings"
    # any of the models loads any checkpoint of the family; the parts it does not have are no news
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^head\.", r"^spectrum_head\.", r"^familiarity\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module is not getattr(self, "head", None):
            init.xavier_uniform_(module.weight)  # by their sizes, as MAE and MAX: patch embeddings have few inputs
        if isinstance(module, XRFPositions):
            rows, columns = module.table.shape
            init.copy_(module.table, sine_cosine_positions(rows - 1, columns))
        elif isinstance(module, XRFEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
        elif isinstance(module, XRFDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
        elif isinstance(module, XRFFamiliarity):
            init.zeros_(module.center)
            init.eye_(module.whitening)
        elif module is getattr(self, "spectrum_head", None):
            init.zeros_(module.weight)


class XRFModel(XRFPreTrainedModel):
    """The encoder: every measured patch of a spectrum to a hidden state, and one embedding of the whole."""

    def __init__(self, config: XRFMaskedConfig):
        super().__init__(config)
        self.embeddings = XRFEmbeddings(config)
        if config.perceptron_size:
            self.perceptron = XRFPerceptron(config)
        self.layers = nn.ModuleList(
            XRFLayer(config, config.hidden_size, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        patch_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, spectrum_length)`):
                scaled counts on the model's energy grid, as [`XRFFeatureExtractor`] returns them.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
                1 where a patch was measured, 0 where not; with `patch_ids`, of shape `(batch_size, num_ids)`.
            patch_ids (`torch.LongTensor` of shape `(batch_size, num_ids)`, *optional*):
                encode these patches only, different ones of each spectrum, in this order.

        Returns:
            `last_hidden_state` `(batch_size, 1 + num_patches, hidden_size)`, the CLS token first; `pooler_output`
            `(batch_size, hidden_size)` by `config.pooling`; on request `hidden_states` (one more than layers) and
            `attentions` (attention implementation `eager`).

        A masked patch costs as much as a measured one. Where few were measured, encode these alone: the measured
        patches and the `pooler_output` come out the same. Spectra with fewer of them keep masked ones at the end.

        ```python
        >>> count = int(attention_mask.sum(dim=1).max())
        >>> patch_ids = attention_mask.argsort(dim=1, descending=True, stable=True)[:, :count]
        >>> outputs = model(input_values, attention_mask.gather(1, patch_ids), patch_ids)
        ```"""
        patches = _patchify(input_values, self.config).to(self.embeddings.patch_embeddings.weight.dtype)
        hidden_states = self.embeddings(patches, patch_ids)
        mask = _with_cls(self.config, hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        if self.config.perceptron_size:
            whole = self.perceptron(patches, _given_patches(patches, attention_mask, patch_ids))  # (B, D)
            hidden_states = torch.cat([hidden_states[:, :1] + whole[:, None], hidden_states[:, 1:]], dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self._pool(hidden_states, attention_mask)
        )

    def _pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if self.config.pooling == "cls":
            return hidden_states[:, 0]
        patches = hidden_states[:, 1:]
        if attention_mask is None:
            attention_mask = patches.new_ones(patches.shape[:2])
        weight = attention_mask.to(patches.dtype)[..., None]  # (B, V, 1)
        return (patches * weight).sum(1) / weight.sum(1).clamp(min=1)


def reconstruction_targets(input_values: torch.Tensor, config: XRFMaskedConfig) -> torch.Tensor:
    """What is reconstructed `(B, L)`: the input, or, with `normalize_patch_targets`, each patch standardised."""
    if not config.normalize_patch_targets:
        return input_values
    patches = _patchify(input_values, config)
    sd = patches.std(dim=-1, keepdim=True, correction=int(config.patch_size > 1))
    return ((patches - patches.mean(dim=-1, keepdim=True)) / (sd + 1e-6)).flatten(1)


def num_visible_patches(config: XRFMaskedConfig, measured: int | torch.LongTensor) -> int | torch.Tensor:
    """How many of the measured patches of a spectrum, a number or a tensor of any shape, the encoder sees during
    pretraining: the whole part of `measured (1 - mask_ratio)`."""
    share = 1 - config.mask_ratio
    most = int(config.num_patches * share)  # of a whole spectrum, as MAX rounds it
    visible = measured * share + 1e-4  # the small addend undoes rounding below a whole number
    return visible.floor().clamp(max=most) if isinstance(visible, torch.Tensor) else min(int(visible), most)


class XRFForMaskedSpectrumModeling(XRFPreTrainedModel):
    """Masked spectrum modeling: hide a share of the measured patches and reconstruct them from the others."""

    def __init__(self, config: XRFMaskedConfig):
        super().__init__(config)
        self.xrf = XRFModel(config)
        self.decoder = XRFDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        noise: torch.FloatTensor | None = None,
        patch_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XRFMaskedSpectrumModelingOutput:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, spectrum_length)`):
                scaled counts on the model's energy grid.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
                1 where a patch was measured; others are neither encoded nor reconstructed. With `patch_ids`, of shape
                `(batch_size, num_ids)`.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                the patches with the lowest noise are kept; drawn uniformly if not given.
            patch_ids (`torch.LongTensor` of shape `(batch_size, num_ids)`, *optional*):
                the spectrum has these patches only. Where they hold all that were measured, masks, loss and their
                reconstruction are those of the whole spectrum, for less work; other patches are reconstructed as 0.
        """
        targets = _patchify(reconstruction_targets(input_values, self.config), self.config)  # (B, P, C)
        if noise is None:
            noise = torch.rand(targets.shape[:2], device=targets.device)
        if patch_ids is not None:
            noise, targets = noise.gather(1, patch_ids), _gather_patches(targets, patch_ids)  # (B, N), (B, N, C)
        places, visible, mask, ids_restore = self._draw_mask(noise, attention_mask)
        encoded = places if patch_ids is None else patch_ids.gather(1, places)
        outputs = self.xrf(input_values, attention_mask=visible, patch_ids=encoded, return_dict=True, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("output_")}
        reconstruction = self.decoder(outputs.last_hidden_state, places, visible, attention_mask, patch_ids, **kwargs)
        loss = self._loss(reconstruction, targets, mask, attention_mask)
        if patch_ids is not None:
            reconstruction, mask, ids_restore = self._on_whole_spectra(reconstruction, mask, ids_restore, patch_ids)
        return XRFMaskedSpectrumModelingOutput(
            loss=loss,
            reconstruction=reconstruction.flatten(1),  # (B, L)
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _draw_mask(self, noise: torch.Tensor, attention_mask: torch.Tensor | None):
        """Which patches the encoder sees.

        Of N patches, all or `patch_ids`, the number of places V follows from `mask_ratio` and N, so that shapes are
        static; a spectrum with fewer measured patches fills fewer of them.

        Returns:
            `places` (B, V), `visible` (B, V) bool (`None`: all), `mask` (B, N), `ids_restore` (B, N).
        """
        num_visible = num_visible_patches(self.config, noise.shape[1])
        if attention_mask is not None:
            noise = noise.masked_fill(attention_mask == 0, torch.inf)
        ids_restore = noise.argsort(dim=1).argsort(dim=1)  # rank of every patch
        places = ids_restore.argsort(dim=1)[:, :num_visible]
        if attention_mask is None:
            return places, None, (ids_restore >= num_visible).float(), ids_restore
        measured = (attention_mask != 0).sum(1, keepdim=True)  # (B, 1)
        kept = num_visible_patches(self.config, measured)
        visible = torch.arange(num_visible, device=noise.device) < kept
        mask = ((ids_restore >= kept) & (ids_restore < measured)).float()
        return places, visible, mask, ids_restore

    def _on_whole_spectra(self, reconstruction, mask, ids_restore, patch_ids):
        """What was computed for `patch_ids` (B, N), for all patches: (B, P, C), (B, P), (B, P)."""
        shape = (len(patch_ids), self.config.num_patches)
        places = patch_ids[..., None].expand_as(reconstruction)
        left_out = torch.ones(shape, dtype=torch.long, device=patch_ids.device).scatter(1, patch_ids, 0)
        last = patch_ids.shape[1] - 1 + left_out.cumsum(1)
        return (
            reconstruction.new_zeros(*shape, reconstruction.shape[-1]).scatter(1, places, reconstruction),
            mask.new_zeros(shape).scatter(1, patch_ids, mask),
            last.scatter(1, patch_ids, ids_restore),
        )

    def _loss(self, reconstruction, targets, mask, attention_mask) -> torch.Tensor:
        error = (reconstruction.float() - targets.float()).square().mean(dim=-1)  # (B, P)
        weight = mask
        if not self.config.masked_loss_only:
            weight = torch.ones_like(mask) if attention_mask is None else attention_mask.to(mask.dtype)
        return (error * weight).sum() / weight.sum().clamp(min=1)


class XRFForRegression(XRFPreTrainedModel):
    """Concentrations, or any other targets, from the pooled embedding of a spectrum.

    Labels are transformed by `config.target_transform` and standardised with `target_mean` and `target_std`;
    predictions come back in the target's unit, clamped to `target_min` and `target_max`. Missing labels contribute
    nothing to the loss: NaN, and for a target with the transform `"log"` what is not positive.

    The configuration adds what an adaptation has found: with `spectrum_skip`, `spectrum_head`, a linear map `(L, T)`
    of the spectrum, at first zero; with `interval_coverages`, prediction intervals; with `familiarity_threshold`,
    `familiarity`, which tells spectra unlike those adapted to.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the labels present; Trainer must not rescale it
    _keep_in_fp32_modules_strict = ["familiarity"]

    def __init__(self, config: XRFMaskedConfig):
        super().__init__(config)
        if not config.target_names:
            raise ValueError(
                "XRFForRegression needs named targets, but config.target_names is empty; give for example "
                "target_names=['CaCO3'], target_units=['wt%']."
            )
        self.xrf = XRFModel(config)
        outputs_per_target = 2 if config.regression_loss == "gaussian" else 1
        self.head = nn.Linear(config.hidden_size, outputs_per_target * len(config.target_names))
        if config.spectrum_skip:
            self.spectrum_head = nn.Linear(config.spectrum_length, len(config.target_names), bias=False)
        if config.familiarity_threshold is not None:
            self.familiarity = XRFFamiliarity(config.hidden_size)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, adapter_kwargs=None, **kwargs):
        """As in the base class; an adapter repository (local folder or Hub id) loads too, merged into its base."""
        adapter = (adapter_kwargs or {}).get("_adapter_model_path")  # AutoModel has put the base's name in its place
        hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
        if adapter is None and _is_adapter(pretrained_model_name_or_path, hub):
            adapter, adapter_kwargs = pretrained_model_name_or_path, hub
        if adapter is None:
            return super().from_pretrained(
                pretrained_model_name_or_path, *model_args, adapter_kwargs=adapter_kwargs, **kwargs
            )
        return cls._from_adapter(
            adapter, {key: value for key, value in adapter_kwargs.items() if key in ("revision", "token")}, kwargs
        )

    @classmethod
    def _from_adapter(cls, adapter, adapter_hub: dict, kwargs: dict) -> "XRFForRegression":
        from peft import PeftConfig, PeftModel

        config = cls.config_class.from_pretrained(adapter, subfolder="task", **adapter_hub)
        peft_config = PeftConfig.from_pretrained(adapter, **adapter_hub)
        kwargs = {**kwargs, "config": config, "revision": peft_config.revision}
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the base has no head; that it is missing is no news, the adapter brings it
        try:
            base = super().from_pretrained(peft_config.base_model_name_or_path, **kwargs)
        except OSError as error:
            raise OSError(
                f"The adapter {adapter} was trained on {peft_config.base_model_name_or_path!r}, which could not be "
                f"loaded; make that repository available ({str(error).splitlines()[0]})"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        return PeftModel.from_pretrained(base, adapter, **adapter_hub).merge_and_unload()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.FloatTensor | None = None,
        patch_ids: torch.LongTensor | None = None,
        input_ids: None = None,
        inputs_embeds: None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XRFRegressionOutput:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, spectrum_length)`):
                scaled counts on the model's energy grid.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
                1 where a patch was measured; with `patch_ids`, of shape `(batch_size, num_ids)`.
            labels (`torch.FloatTensor` of shape `(batch_size, num_targets)`, *optional*):
                reference values in each target's unit; NaN where not determined.
            patch_ids (`torch.LongTensor` of shape `(batch_size, num_ids)`, *optional*):
                encode these patches only, as in [`XRFModel`].
            input_ids, inputs_embeds: not used; peft's sequence classification wrapper passes them.
        """
        outputs = self.xrf(
            input_values, attention_mask=attention_mask, patch_ids=patch_ids, return_dict=True, **kwargs
        )
        head = self.head(outputs.pooler_output.to(self.head.weight.dtype)).float()
        standardized, log_variance = head, None  # (B, T)
        if self.config.regression_loss == "gaussian":
            standardized, log_variance = head.chunk(2, dim=-1)
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        if self.config.spectrum_skip:
            patches = _patchify(input_values, self.config).to(self.spectrum_head.weight.dtype)
            given = _given_patches(patches, attention_mask, patch_ids)
            values = _given_values(patches, given)  # (B, L)
            standardized = standardized + self.spectrum_head(values).float()
        loss = None
        if labels is not None:
            if labels.shape != standardized.shape:
                raise ValueError(
                    f"labels must have one column per target, {tuple(standardized.shape)}, but have shape "
                    f"{tuple(labels.shape)}; put NaN where a target was not determined."
                )
            loss = self._loss(standardized, log_variance, self._standardize(labels.float()))
        predictions = self._in_units(standardized)
        sd = standard_deviation = None
        if log_variance is not None:
            sd = (log_variance / 2).exp()
            standard_deviation = sd * sd.new_tensor(self.config.target_std)
            standard_deviation = torch.where(self._is_log(sd), predictions * standard_deviation, standard_deviation)
        lower = upper = None
        if self.config.interval_coverages:
            half_width = head.new_tensor(self.config.interval_factors)[None]  # (1, K, T)
            if sd is not None:
                half_width = half_width * sd[:, None]  # (B, K, T)
            lower, upper = (
                self._away_from(standardized, predictions, sign * half_width)  # (B, T, K)
                for sign in (-1, 1)
            )
        distance = None
        if self.config.familiarity_threshold is not None:
            distance = self.familiarity(outputs.pooler_output)
        return XRFRegressionOutput(
            loss=loss,
            predictions=predictions,
            standard_deviation=standard_deviation,
            lower=lower,
            upper=upper,
            distance=distance,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _is_log(self, like: torch.Tensor) -> torch.BoolTensor:
        """Which targets `(T,)` have the transform `"log"`."""
        return like.new_tensor([transform == "log" for transform in self.config.target_transform], dtype=torch.bool)

    def _standardize(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels `(B, T)` in the targets' units to standardised ones; NaN where there is no logarithm."""
        mean, std = (labels.new_tensor(values) for values in (self.config.target_mean, self.config.target_std))
        logarithms = labels.log().masked_fill(labels <= 0, torch.nan)
        return (torch.where(self._is_log(labels), logarithms, labels) - mean) / std

    def _in_units(self, standardized: torch.Tensor) -> torch.Tensor:
        """Standardised targets `(..., T)` in the targets' units, clamped to their valid ranges."""
        config, new_tensor = self.config, standardized.new_tensor
        values = standardized * new_tensor(config.target_std) + new_tensor(config.target_mean)
        is_log = self._is_log(values)
        # a linear target has no exponential, lest its infinity make the gradient NaN
        return self._clamp(torch.where(is_log, values.where(is_log, 0.0).exp(), values))

    def _clamp(self, values: torch.Tensor) -> torch.Tensor:
        """Values `(..., T)` in the targets' units, clamped to their valid ranges."""
        lower = values.new_tensor([-torch.inf if value is None else value for value in self.config.target_min])
        upper = values.new_tensor([torch.inf if value is None else value for value in self.config.target_max])
        return values.clamp(lower, upper)

    def _away_from(self, standardized: torch.Tensor, predictions: torch.Tensor, distance) -> torch.Tensor:
        """Ends of intervals, `(B, T, K)` in the targets' units, at a distance `(B or 1, K, T)` in standardised targets
        from the predictions `(B, T)`, standardised and in their units."""
        ends = self._in_units(standardized[:, None] + distance)
        if self.config.interval_floors is not None:
            floor = standardized.new_tensor([torch.nan if f is None else f for f in self.config.interval_floors])
            scale = standardized.new_tensor(self.config.target_std) * (predictions.square() + floor.square()).sqrt()
            ends = torch.where(floor.isnan(), ends, self._clamp(predictions[:, None] + distance * scale[:, None]))
        return ends.transpose(1, 2)

    @staticmethod
    def _loss(standardized, log_variance, labels) -> torch.Tensor:
        """Mean over the labels present: squared error, or Gaussian negative log-likelihood without its constant."""
        present = ~labels.isnan()
        residual = standardized - torch.where(present, labels, standardized.detach())  # 0 where missing
        loss = residual.square()
        if log_variance is not None:
            loss = 0.5 * (log_variance + loss * (-log_variance).exp())
        return torch.where(present, loss, 0.0).sum() / present.sum().clamp(min=1)


def _is_adapter(repository, hub: dict) -> bool:
    """Whether a local folder or Hub id holds an adapter and no whole model."""
    if not isinstance(repository, (str, Path)) or Path(repository, "config.json").is_file():
        return False
    return find_adapter_config_file(repository, **hub) is not None


def _patchify(input_values: torch.Tensor, config: XRFMaskedConfig) -> torch.Tensor:
    """(B, L) to (B, P, C)."""
    if input_values.ndim != 2 or input_values.shape[1] != config.spectrum_length:
        raise ValueError(
            f"input_values must have shape (batch_size, {config.spectrum_length}), but have "
            f"{tuple(input_values.shape)}; XRFFeatureExtractor rebins spectra to the model's grid."
        )
    return input_values.view(len(input_values), -1, config.patch_size)


def _gather_patches(patches: torch.Tensor, patch_ids: torch.LongTensor) -> torch.Tensor:
    """(B, P, C) to those of `patch_ids`, (B, V, C)."""
    return patches.gather(1, patch_ids[..., None].expand(-1, -1, patches.shape[-1]))


def _given_patches(patches, attention_mask, patch_ids) -> torch.BoolTensor:
    """Which patches `(B, P)` were measured and chosen: what lies elsewhere has no influence."""
    if patch_ids is None:
        if attention_mask is None:
            return torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        return attention_mask != 0
    chosen = torch.ones_like(patch_ids) if attention_mask is None else attention_mask.to(patch_ids.dtype)
    return chosen.new_zeros(patches.shape[:2]).scatter(1, patch_ids, chosen) != 0


def _given_values(patches: torch.Tensor, given: torch.BoolTensor) -> torch.Tensor:
    """Patches `(B, P, C)` as spectra `(B, L)`, 0 where they are not given `(B, P)`."""
    return patches.masked_fill(~given[..., None], 0.0).flatten(1)


XRFModel.register_for_auto_class("AutoModel")
XRFForMaskedSpectrumModeling.register_for_auto_class("AutoModelForPreTraining")
XRFForRegression.register_for_auto_class("AutoModelForSequenceClassification")

# The installed package serves the Auto classes; code fetched from a Hub repository serves that repository only.
if __name__ == "modeling_xrf":
    AutoConfig.register(XRFMaskedConfig.model_type, XRFMaskedConfig, exist_ok=True)
    AutoModel.register(XRFMaskedConfig, XRFModel, exist_ok=True)
    AutoModelForPreTraining.register(XRFMaskedConfig, XRFForMaskedSpectrumModeling, exist_ok=True)
    AutoModelForSequenceClassification.register(XRFMaskedConfig, XRFForRegression, exist_ok=True)
    AutoFeatureExtractor.register(XRFMaskedConfig, XRFFeatureExtractor, exist_ok=True)
    AutoProcessor.register(XRFMaskedConfig, XRFFeatureExtractor, exist_ok=True)

__all__ = ["XRFForMaskedSpectrumModeling", "XRFForRegression", "XRFModel", "XRFPreTrainedModel"]
