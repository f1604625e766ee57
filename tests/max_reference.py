"""MAX (arXiv 2410.12330) in plain torch: the independent reference our models are compared with.

Written from the description of the published model and the names in its published state dicts, and from nothing of
ours: blocks in the manner of timm with one fused `qkv` projection, and attention spelled out as a softmax. The
`state_dict()` of the pretraining class `MaxMaskedAutoencoder` and of `MaxRegressor` is a MAX checkpoint.

Shapes: B spectra, L channels, P patches of size S, K of them kept, T = kept patches + CLS, D encoder width, E decoder
width, H heads.
"""

import math

import torch
from torch import nn

LAYER_NORM_EPS = 1e-6
MLP_RATIO = 4


def sincos_positions(num_patches: int, width: int) -> torch.Tensor:
    """Positions `(1, 1 + num_patches, width)`: zeros for CLS, then sin(p w) | cos(p w), w = 10000^(-2i / width)."""
    table = torch.zeros(1 + num_patches, width, dtype=torch.float64)
    for patch in range(num_patches):
        for i in range(width // 2):
            angle = patch * 10000.0 ** (-2 * i / width)
            table[1 + patch, i] = math.sin(angle)
            table[1 + patch, width // 2 + i] = math.cos(angle)
    return table.float().unsqueeze(0)


def instance_norm(counts: torch.Tensor) -> torch.Tensor:
    """Every spectrum `(B, L)` minus its mean, divided by its unbiased standard deviation."""
    counts = counts.double()
    return ((counts - counts.mean(1, keepdim=True)) / counts.std(1, unbiased=True, keepdim=True)).float()


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv1d(1, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, spectra):  # (B, L)
        return self.proj(spectra[:, None, :]).transpose(1, 2)  # (B, P, D)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=True)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(width // self.heads), dim=-1)  # (B, H, T, T)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x):
        hidden = self.fc1(x)
        return self.fc2(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))  # exact GELU


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MaxEncoder(nn.Module):
    """The part that pretraining and regression share."""

    def __init__(self, spectrum_length=2048, patch_size=16, width=768, layers=12, heads=12):
        super().__init__()
        self.patch_size = patch_size
        num_patches = spectrum_length // patch_size
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(num_patches, width), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def encode(self, spectra, kept=None):
        """Latents `(B, T, D)`, CLS first, of all patches or of the `kept` ones `(B, K)`."""
        x = self.patch_embed(spectra) + self.pos_embed[:, 1:]  # (B, P, D)
        if kept is not None:
            x = torch.stack([row[indices] for row, indices in zip(x, kept)])  # (B, K, D)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MaxMaskedAutoencoder(MaxEncoder):
    def __init__(
        self,
        spectrum_length=2048,
        patch_size=16,
        width=768,
        layers=12,
        heads=12,
        decoder_width=512,
        decoder_layers=8,
        decoder_heads=16,
    ):
        super().__init__(spectrum_length, patch_size, width, layers, heads)
        num_patches = spectrum_length // patch_size
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(num_patches, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([Block(decoder_width, decoder_heads) for _ in range(decoder_layers)])
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_width, patch_size)

    def forward(self, spectra, noise, mask_ratio=0.5):
        """`spectra` `(B, L)`, `noise` `(B, P)`: the patches of lowest noise are kept.

        Returns latent `(B, 1 + K, D)` in the order of the noise, reconstruction `(B, P, S)`, mask `(B, P)` with
        1 = removed, and the loss.
        """
        batch, num_patches = noise.shape
        kept = torch.argsort(noise, dim=1)[:, : int(num_patches * (1 - mask_ratio))]  # (B, K)
        latent = self.encode(spectra, kept)

        bridged = self.decoder_embed(latent)  # (B, 1 + K, E)
        tokens = self.mask_token.repeat(batch, 1 + num_patches, 1)
        mask = torch.ones(batch, num_patches)
        tokens[:, 0] = bridged[:, 0]
        for row in range(batch):
            tokens[row, 1 + kept[row]] = bridged[row, 1:]
            mask[row, kept[row]] = 0
        x = tokens + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        reconstruction = self.decoder_pred(self.decoder_norm(x))[:, 1:]  # (B, P, S)

        patches = spectra.reshape(batch, num_patches, self.patch_size)
        loss = ((reconstruction - patches) ** 2)[mask.bool()].mean()
        return latent, reconstruction, mask, loss


class MaxRegressor(MaxEncoder):
    def __init__(self, target_mean, target_std, num_targets=1, **sizes):
        super().__init__(**sizes)
        self.target_mean, self.target_std = target_mean, target_std
        self.fc = nn.Linear(self.norm.normalized_shape[0], num_targets)

    def forward(self, spectra):
        """wt% `(B, num_targets)` of spectra `(B, L)`, kept within 0..100."""
        standardized = self.fc(self.encode(spectra)[:, 0])
        return torch.clamp(self.target_std * standardized + self.target_mean, 0, 100)


def randomize(model: nn.Module, seed: int, scale: float = 0.05) -> nn.Module:
    """Draw every trainable parameter anew, norms and biases too, so that none has a value that hides an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(center + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()
