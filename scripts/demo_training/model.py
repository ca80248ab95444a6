"""The Qwen3.5 trunk, from transformers' modules with two functions made faster on a CPU, and its MTP head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

CHUNK = 64
"""Tokens for one triangular solve of the gated delta rule. The length of a row is a multiple of it."""
DEPTHS = 3
"""Depths at which the head is trained."""
Rotary = tuple[Tensor, Tensor]  # cosines and sines


def text_config(vocab_size: int, layers: int) -> Qwen3_5TextConfig:
    """Return the configuration: hidden size 256, every fourth layer with full attention, the others gated delta."""
    return Qwen3_5TextConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(layers)],
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=2,
    )


# --- The trunk's two slow spots, rewritten so that torch.compile can fuse them ----------------------


def causal_conv(x: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    """Return depthwise causal convolution and SiLU as shifted products, whose backward pass is cheaper on a CPU."""
    taps, length = weight.shape[-1], x.shape[-1]
    padded = F.pad(x, (taps - 1, 0))
    return F.silu(sum(padded[..., i : i + length] * weight[:, i, None] for i in range(taps)))


@torch.compiler.disable
def solve_unit_lower(system: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **_: object
) -> tuple[Tensor, None]:
    """Return the gated delta rule from a zero state, computed in chunks (Yang et al. 2024, arXiv:2412.06464).

    query, key [B, T, Hk, D]; value [B, T, Hv, D]; g (log decay), beta [B, T, Hv]; T is a multiple of CHUNK.
    """
    batch, length, key_heads, dim = key.shape
    heads, chunks = value.shape[2], length // CHUNK
    q, k, v, g, beta = (x.transpose(1, 2).float() for x in (query, key, value, g, beta))
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) * dim**-0.5
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    q, k = (x.repeat_interleave(heads // key_heads, dim=1) for x in (q, k))
    q, k, v = (x.reshape(batch, heads, chunks, CHUNK, -1) for x in (q, k, v))
    g = g.reshape(batch, heads, chunks, CHUNK).cumsum(-1)
    k_beta = k * beta.reshape(batch, heads, chunks, CHUNK, 1)
    v_beta = v * beta.reshape(batch, heads, chunks, CHUNK, 1)

    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(future, float("-inf")).exp()
    system = (k_beta @ k.transpose(-1, -2)) * decay
    within = (q @ k.transpose(-1, -2)) * decay
    solved = solve_unit_lower(system, torch.cat([v_beta, k_beta * g.exp()[..., None]], dim=-1))
    new_values, reads = solved.split([v.shape[-1], dim], dim=-1)

    q = q * g.exp()[..., None]
    writes = (k * (g[..., -1:] - g).exp()[..., None]).transpose(-1, -2)
    chunk_decay = g[..., -1].exp()[..., None, None]
    state, outputs = q.new_zeros(batch, heads, dim, v.shape[-1]), []
    for i in range(chunks):
        fresh = new_values[:, :, i] - reads[:, :, i] @ state
        outputs.append(q[:, :, i] @ state + within[:, :, i] @ fresh)
        state = state * chunk_decay[:, :, i] + writes[:, :, i] @ fresh
    output = torch.stack(outputs, dim=2).reshape(batch, heads, length, -1).transpose(1, 2)
    return output.to(query.dtype), None


# --- The head ---------------------------------------------------------------------------------------


class MtpHead(nn.Module):
    """One full-attention layer that predicts x[p+2] from the trunk's h[p] and x[p+1]; names are Qwen's."""

    def __init__(self, config: Qwen3_5TextConfig) -> None:
        super().__init__()
        full = config.layer_types.index("full_attention")
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.pre_fc_norm_embedding = qwen.Qwen3_5RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_fc_norm_hidden = qwen.Qwen3_5RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = nn.ModuleList([qwen.Qwen3_5DecoderLayer(config, full)])
        self.norm = qwen.Qwen3_5RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)

    def forward(self, hidden: Tensor, next_embedding: Tensor, rotary: Rotary) -> list[Tensor]:
        """Return the outputs of depths 1 to DEPTHS [B, T, H]. Row i predicts x[i+2] and embeds x[i+1].

        Depth 1 of row i reads h[i]; depth d reads depth d-1's output of row i-1, as drafting d tokens does.
        """
        outputs: list[Tensor] = []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for _ in range(DEPTHS):
            source = shifted(outputs[-1], 1) if outputs else hidden
            pair = self.pre_fc_norm_embedding(next_embedding), self.pre_fc_norm_hidden(source)
            z = self.fc(torch.cat(pair, dim=-1))
            outputs.append(self.norm(self._layer(z, rotary, keys, values)))
        return outputs

    def _layer(self, z: Tensor, rotary: Rotary, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """Return the decoder layer's output for one more depth, and append its keys and values to the lists."""
        layer = self.layers[0]
        attention, x = layer.self_attn, layer.input_layernorm(z)
        shape = (*x.shape[:2], -1, attention.head_dim)
        query, gate = attention.q_proj(x).view(*x.shape[:2], -1, 2 * attention.head_dim).chunk(2, dim=-1)
        query = attention.q_norm(query).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(x).view(shape)).transpose(1, 2)
        query, key = qwen.apply_rotary_pos_emb(query, key, *rotary)
        groups = attention.num_key_value_groups
        keys.append(key.repeat_interleave(groups, dim=1))
        values.append(attention.v_proj(x).view(shape).transpose(1, 2).repeat_interleave(groups, dim=1))
        mixed = draft_attention(query, keys, values, attention.scaling).transpose(1, 2).flatten(2)
        z = z + attention.o_proj(mixed * torch.sigmoid(gate.flatten(2)))
        return z + layer.mlp(layer.post_attention_layernorm(z))


def shifted(x: Tensor, rows: int, dim: int = 1) -> Tensor:
    """Return x shifted down by `rows`: row i is row i - rows of x, the first rows are zeros."""
    if not rows:
        return x
    zeros = torch.zeros_like(x.narrow(dim, 0, rows))
    return torch.cat([zeros, x.narrow(dim, 0, x.shape[dim] - rows)], dim)


def draft_attention(query: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """Return the attention of the newest depth d for every row at once, as with the cache of a drafter.

    Row i of depth d attends to the committed rows (depth 1) up to i-d+1, then to the rows that its own draft
    appended: depth 2 of row i-d+2, ..., depth d of row i.
    query, keys, values are [B, H, T, D].
    """
    depth, length = len(keys), query.shape[2]
    hidden_rows = torch.ones(length, length, dtype=torch.bool).triu(2 - depth)  # keys j > i-d+1
    scores = (query @ keys[0].transpose(-1, -2)).float() * scale
    scores = scores.masked_fill(hidden_rows, float("-inf"))
    back = range(depth - 2, -1, -1)  # how many rows ago the draft appended each of its own
    appended = [
        (shifted(key, rows, 2), shifted(value, rows, 2))
        for key, value, rows in zip(keys[1:], values[1:], back, strict=True)
    ]
    own = [(query * key).sum(-1, keepdim=True).float() * scale for key, _ in appended]
    weights = torch.cat([scores, *own], dim=-1).softmax(dim=-1).to(query.dtype)
    mixed = weights[..., :length] @ values[0]
    for offset, (_, value) in enumerate(appended):
        mixed = mixed + weights[..., length + offset, None] * value
    return mixed


class DemoModel(nn.Module):
    """Trunk and head. The trunk's classes are transformers', with two slow functions replaced."""

    def __init__(self, config: Qwen3_5TextConfig) -> None:
        super().__init__()
        qwen.causal_conv1d_fn = causal_conv
        qwen.torch_chunk_gated_delta_rule = gated_delta_rule
        self.config = config
        self.trunk = qwen.Qwen3_5ForCausalLM(config)
        self.mtp = MtpHead(config)

    def compile(self) -> None:  # type: ignore[override]
        """Compile layer by layer. That compiles faster than the whole model, and costs little speed."""
        for layer in self.trunk.model.layers:
            layer.compile(dynamic=False)
        self.mtp.compile(dynamic=False)

    @property
    def embedding(self) -> Tensor:
        return self.trunk.model.embed_tokens.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return hidden states [B, T, H] after the final norm."""
        return self.trunk.model(input_ids=tokens, use_cache=False).last_hidden_state

    def head_outputs(self, hidden: Tensor, next_tokens: Tensor) -> list[Tensor]:
        """Return the head's outputs for every depth. The embedding gets no gradient from them."""
        positions = torch.arange(hidden.shape[1])[None]
        rotary = self.trunk.model.rotary_emb(hidden, positions)
        return self.mtp(hidden, F.embedding(next_tokens, self.embedding.detach()), rotary)


def next_token_loss(hidden: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, embedding).flatten(0, 1).float(), labels.flatten())


def agreement_loss(outputs: list[Tensor], hidden: Tensor, embedding: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each depth against the trunk's distribution, averaged over depths.

    Row i of any depth predicts x[i+2]; the trunk predicts it at i+1. A temperature below 1 weights the likeliest
    tokens more, which decide greedy acceptance.
    """
    embedding = embedding.detach()
    teacher = (F.linear(hidden[:, 1:].detach(), embedding).float() / temperature).softmax(-1)
    total = hidden.new_zeros((), dtype=torch.float32)
    for depth, output in enumerate(outputs):
        # The first `depth` rows have no draft that starts inside the text.
        logits = F.linear(output[:, depth:-1], embedding).float() / temperature
        total = total - (teacher[:, depth:] * logits.log_softmax(-1)).sum(-1).mean()
    return total / len(outputs)
