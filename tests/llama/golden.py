"""Writes what transformers computes with the models of this project, for golden_test.cpp to compare with:

    env/bin/pip install -r ../../examples/models/requirements.txt
    env/bin/python golden.py

For each model golden/NAME.safetensors has tokens [256], the logits of every eighth of them [32, vocabulary], the first
tokens of a prompt [40], and the 200 most likely ones that follow it, all as float32. Two more models, with random
weights and another geometry, are written to models/.
"""

import pathlib

import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TRAINED = HERE.parent.parent / "examples" / "models"
TOKENS, EVERY, PROMPT, GENERATED = 256, 8, 40, 200


def write_random_models():
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=72, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=True,
        attention_bias=True, mlp_bias=True, bos_token_id=299, eos_token_id=None, initializer_range=0.2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    model = transformers.LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.to(torch.float16).save_pretrained(HERE / "models" / "llama-random", max_shard_size="80KB")

    config = transformers.MptConfig(
        vocab_size=100, d_model=40, n_heads=5, n_layers=2, max_seq_len=256, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None)
    transformers.MptForCausalLM(config).save_pretrained(HERE / "models" / "mpt-random")


@torch.no_grad()
def write_golden(folder, name):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = model.config.vocab_size
    if (TRAINED / "held_out").exists() and vocabulary == 257:
        text = next(iter(sorted((TRAINED / "held_out").glob("*")))).read_bytes()[: TOKENS - 1]
        tokens = torch.tensor([[256, *text]])
    else:
        tokens = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    logits = model(input_ids=tokens).logits[0, EVERY - 1 :: EVERY]
    sequence = tokens[:, :PROMPT]
    for _ in range(GENERATED):
        next_token = model(input_ids=sequence).logits[:, -1].argmax(-1, keepdim=True)
        sequence = torch.cat([sequence, next_token], dim=1)
    safetensors.torch.save_file({"tokens": tokens[0].float(), "logits": logits.contiguous(),
                                 "greedy": sequence[0, PROMPT:].float()}, HERE / "golden" / f"{name}.safetensors")
    print(name, "logits from", logits.min().item(), "to", logits.max().item())


if __name__ == "__main__":
    write_random_models()
    for folder in sorted((HERE / "models").iterdir()):
        write_golden(folder, folder.name)
    for name in ("llama", "llama-sink", "mpt"):
        if (TRAINED / name).exists():
            write_golden(TRAINED / name, name)
