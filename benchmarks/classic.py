"""Masked pretraining in its classic form: what `benchmarks/throughput.py` compares the speed of this library with.

The model and the loss are those of `XRFForMaskedSpectrumModeling` with whole spectra, computed as masked autoencoders
commonly are (He et al. 2022; MAX, arXiv 2410.12330): every patch is embedded before half of them are dropped, each
spectrum draws and sorts its own noise, embeddings, mask tokens and mask are put in order by three gathers, attention
is a chain of single operations, and a boolean mask picks the patches of the loss. Every spectrum is a CSV file, and
the loss is read after every step.

Dimensions in comments as in `modeling_xrf`.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from modeling_xrf import sine_cosine_positions


class SpectrumFiles(Dataset):
    """A folder of CSV files, each with the counts of one spectrum, standardised when they are read."""

    def __init__(self, folder: Path):
        self.paths = sorted(Path(folder).glob("*.csv"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        counts = np.loadtxt(self.paths[index], dtype=np.float32)
        return torch.from_numpy((counts - counts.mean()) / counts.std(ddof=1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (B, heads, tokens, head width)
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        weights = scores.softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, intermediate: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, intermediate)
        self.fc2 = nn.Linear(intermediate, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class ClassicAutoencoder(nn.Module):
    """The model of an `XRFMaskedConfig`; `copy_weights` gives it the weights of ours."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, decoder_width, eps = config.hidden_size, config.decoder_hidden_size, config.layer_norm_eps
        self.patch_embed = nn.Conv1d(1, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(width, config.num_attention_heads, config.intermediate_size, eps)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, config.decoder_num_attention_heads, config.decoder_intermediate_size, eps)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=eps)
        self.decoder_pred = nn.Linear(decoder_width, config.patch_size)
        for name, size in (("positions", width), ("decoder_positions", decoder_width)):
            self.register_buffer(name, sine_cosine_positions(config.num_patches, size)[None])

    def forward(self, spectra: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of spectra `(B, L)`; the patches with the lowest `noise` `(B, P)` are kept."""
        reconstruction, mask = self.reconstruct(spectra, noise)
        targets = spectra.view(len(spectra), -1, self.config.patch_size)
        return ((reconstruction - targets) ** 2)[mask.bool()].mean()

    def reconstruct(self, spectra: torch.Tensor, noise: torch.Tensor | None = None):
        """All patches `(B, P, C)`, and which were hidden `(B, P)`."""
        x, mask, ids_restore = self.random_masking(self.embed(spectra), noise)
        x = self.decoder_embed(self.encode(x))

        hidden = self.mask_token.repeat(len(x), ids_restore.shape[1] + 1 - x.shape[1], 1).to(x.dtype)
        tokens = torch.cat([x[:, 1:], hidden], dim=1)  # (B, P, E) in the order of the noise
        tokens = torch.gather(tokens, 1, ids_restore[..., None].repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:], mask

    def embed(self, spectra: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, P, D)` of all patches."""
        return self.patch_embed(spectra[:, None]).transpose(1, 2) + self.positions[:, 1:]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The last states `(B, V + 1, D)` of tokens `(B, V, D)`, CLS first."""
        x = torch.cat([(self.cls_token + self.positions[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def random_masking(self, x: torch.Tensor, noise: torch.Tensor | None):
        """The kept patches `(B, V, D)`, the mask `(B, P)` with 1 = removed, and the rank `(B, P)` of every patch."""
        num_kept = math.floor(x.shape[1] * (1 - self.config.mask_ratio))
        if noise is None:
            noise = torch.stack([torch.rand(x.shape[1], device=x.device) for _ in range(len(x))])
        ids_shuffle = torch.stack([torch.argsort(row) for row in noise])  # spectrum by spectrum
        ids_restore = torch.stack([torch.argsort(row) for row in ids_shuffle])
        kept = torch.gather(x, 1, ids_shuffle[:, :num_kept, None].repeat(1, 1, x.shape[2]))
        mask = torch.ones(noise.shape, device=x.device)
        mask[:, :num_kept] = 0
        return kept, torch.gather(mask, 1, ids_restore), ids_restore


@torch.no_grad()
def copy_weights(model, classic: ClassicAutoencoder) -> None:
    """The weights of an `XRFForMaskedSpectrumModeling` into the classic form."""
    weights = dict(model.named_parameters())

    def copy(module, *names):
        for kind in ("weight", "bias"):
            target = getattr(module, kind)
            target.copy_(torch.cat([weights[f"{name}.{kind}"] for name in names]).view_as(target))

    copy(classic.patch_embed, "xrf.embeddings.patch_embeddings")
    copy(classic.norm, "xrf.layernorm")
    copy(classic.decoder_embed, "decoder.embed")
    copy(classic.decoder_norm, "decoder.layernorm")
    copy(classic.decoder_pred, "decoder.head")
    classic.cls_token.copy_(weights["xrf.embeddings.cls_token"])
    classic.mask_token.copy_(weights["decoder.mask_token"])
    for blocks, part in ((classic.blocks, "xrf"), (classic.decoder_blocks, "decoder")):
        for number, block in enumerate(blocks):
            layer = f"{part}.layers.{number}"
            copy(block.norm1, f"{layer}.layernorm_before")
            copy(block.attn.qkv, *(f"{layer}.attention.{letter}_proj" for letter in "qkv"))
            copy(block.attn.proj, f"{layer}.attention.o_proj")
            copy(block.norm2, f"{layer}.layernorm_after")
            copy(block.fc1, f"{layer}.mlp.fc1")
            copy(block.fc2, f"{layer}.mlp.fc2")
