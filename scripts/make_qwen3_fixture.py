#!/usr/bin/env python3
"""Makes tests/fixtures/qwen3_tiny with Transformers: small random Qwen3 models, and what Transformers computes with them.

    tied/        tied embedding, one file
    untied/      an lm_head of its own, in shards
Each folder is what save_pretrained writes, and expected.json beside it: token ids of two sequences, the logits in
float32, the logits of the same model in bfloat16, the sum of next-token losses, and its gradients for some parameters.

Needs torch and transformers (see scripts/extras). Run from the repository root: scripts/make_qwen3_fixture.py
"""
import json
import pathlib

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "qwen3_tiny"
GRADIENTS = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_norm.weight",
             "model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"]


def make_model(tied: bool) -> Qwen3ForCausalLM:
    torch.manual_seed(7 + tied)
    config = Qwen3Config(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=12, max_position_embeddings=128, tie_word_embeddings=tied,
                         rope_parameters={"rope_type": "default", "rope_theta": 5000.0 if tied else 10000.0},
                         bos_token_id=0, eos_token_id=1, attn_implementation="eager")
    model = Qwen3ForCausalLM(config).float().eval()
    # Sizes are no multiples of a vector, so that padding is exercised. Weights are large enough that every part of the model matters to the logits; norms differ from 1.
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0, 0.2) if value.dim() == 1 else value.normal_(0.0, 0.25)
    return model


def rounded(tensor: torch.Tensor) -> list:
    """Float32 values as the shortest decimals that read back as the same float32."""
    return [float(str(x)) for x in tensor.detach().float().flatten().numpy()]


def expectations(model: Qwen3ForCausalLM) -> dict:
    generator = torch.Generator().manual_seed(11)
    sequences = [torch.randint(0, 50, (length,), generator=generator) for length in (12, 7)]
    logits = [model(input_ids=tokens[None]).logits[0] for tokens in sequences]
    loss = sum(torch.nn.functional.cross_entropy(l[:-1], t[1:], reduction="sum") for l, t in zip(logits, sequences))
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {name: rounded(parameters[name].grad) for name in GRADIENTS}
    with torch.no_grad():
        narrow = make_narrow(model)
        narrow.set_attn_implementation("exact")
        bfloat16_logits = [narrow_logits(narrow, tokens) for tokens in sequences]
    return {"sequences": [tokens.tolist() for tokens in sequences], "logits": [rounded(l) for l in logits],
            "bfloat16_logits": [rounded(l) for l in bfloat16_logits], "loss": loss.item(), "gradients": gradients}


def exact_attention(module, query, key, value, attention_mask, scaling, **_):
    """Causal attention rounded once, at the end. Torch's own round probabilities to bfloat16 on the way, each differently."""
    groups = module.num_key_value_groups
    key, value = (x.double().repeat_interleave(groups, 1) for x in (key, value))
    scores = query.double() @ key.transpose(2, 3) * scaling
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    out = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


def make_narrow(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """The model in bfloat16. Buffers stay float32, as from_pretrained leaves them: the rotary frequencies are one."""
    narrow = Qwen3ForCausalLM(model.config).eval()
    narrow.load_state_dict(model.state_dict())
    for value in narrow.parameters():
        value.data = value.data.to(torch.bfloat16)
    return narrow


def narrow_logits(narrow: Qwen3ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Float32 sums of bfloat16 products: Chorale does not round logits."""
    hidden = narrow.model(input_ids=tokens[None]).last_hidden_state[0]
    return torch.nn.functional.linear(hidden.float(), narrow.lm_head.weight.float())


def main() -> None:
    ALL_ATTENTION_FUNCTIONS.register("exact", exact_attention)
    for name, tied, shard in (("tied", True, "5GB"), ("untied", False, "30KB")):
        model = make_model(tied)
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "expected.json").write_text(json.dumps(expectations(model)) + "\n")
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
