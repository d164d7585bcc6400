"""Trains the byte-level models of this folder, at a length of 256, on the text of corpus.py and the tasks of tasks.py.

    python3 -m venv env && env/bin/pip install -r requirements.txt
    env/bin/python corpus.py data
    env/bin/python train.py llama --data data --seed 0 --out llama
    env/bin/python train.py llama --data data --seed 0 --out llama-sink --sink-from llama
    env/bin/python train.py mpt --data data --seed 0 --out mpt

Begun again after an interruption it goes on from its last checkpoint. A batch depends on the seed and the step alone.
--out receives config.json and model.safetensors (bfloat16, as transformers reads them) and log.jsonl.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import time

import numpy as np
import torch
import transformers
from torch.nn import functional

from tasks import BOS, Text, batch

LENGTH = 256
VOCABULARY = 257  # bytes, and BOS
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 4, 6, 2, 32
HELD_OUT_AT = 3000  # the piece of each held-out document that the log's bits per byte are of


@dataclasses.dataclass
class Phase:
    name: str
    length: int
    sequences: int
    steps: int
    first_rate: float
    last_rate: float
    copy_share: float
    passkey_share: float
    sink_targets: tuple = (0.0, 0.0)  # least weight of BOS that the auxiliary loss asks for: first step, last step


# Attending to what came after the same bytes is learned within a thousand steps on short sequences, most of them
# copies; straight at the full length it is not in thousands.
TRAINING = [
    Phase("short", 80, 48, 1000, 2e-3, 2e-3, copy_share=0.60, passkey_share=0.15),
    Phase("full", LENGTH, 12, 3000, 3e-3, 3e-3, copy_share=0.18, passkey_share=0.20),
    Phase("decay", LENGTH, 12, 2500, 1.6e-3, 0, copy_share=0.08, passkey_share=0.20),
]
SINK = [Phase("sink", LENGTH, 12, 1000, 1e-3, 0, copy_share=0.08, passkey_share=0.20, sink_targets=(0.5, 0.9))]
WARM_UP, CLIP, WEIGHT_DECAY, SINK_LOSS = 60, 1.0, 0.1, 0.1
LOG_EVERY, CHECKPOINT_EVERY = 100, 300


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HEADS * HEAD_DIM, intermediate_size=640, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=LENGTH,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=BOS, eos_token_id=None,
        attn_implementation="eager"))


def mpt():
    return transformers.MptForCausalLM(transformers.MptConfig(
        vocab_size=VOCABULARY, d_model=HEADS * HEAD_DIM, n_heads=HEADS, n_layers=LAYERS, max_seq_len=LENGTH,
        bos_token_id=BOS, eos_token_id=None))


def initialise(model):
    """Normal with the reciprocal of the inputs as variance; less where a layer adds to the residual stream."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            std = 0.02 if is_embedding(name) or name == "lm_head.weight" else weight.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")):
                std /= math.sqrt(2 * LAYERS)
            torch.nn.init.normal_(weight, std=std)


def is_embedding(name):
    return "embed_tokens" in name or "wte" in name


def optimizer_of(model):
    decayed, others = [], []
    for name, weight in model.named_parameters():
        (decayed if weight.dim() == 2 and not is_embedding(name) else others).append(weight)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def losses(model, tokens, with_sink):
    """[sequences, length] nats, and of the layers but the first the log of the weight of BOS, where asked for."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        result = model(input_ids=tokens[:, :-1], use_cache=False, output_attentions=with_sink)
    nats = functional.cross_entropy(result.logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    sinks = None
    if with_sink:  # the first 16 queries have little to choose from
        sinks = torch.stack([layer[:, :, 16:, 0].float().clamp(min=1e-8).log() for layer in result.attentions[1:]])
    return nats.view(len(tokens), -1), sinks


def held_out_pieces(folder):
    pieces = [path.read_bytes()[HELD_OUT_AT : HELD_OUT_AT + LENGTH] for path in sorted(folder.glob("*"))]
    return torch.tensor(np.stack([[BOS, *piece] for piece in pieces]))


@torch.no_grad()
def held_out_scores(model, pieces):
    """Bits per byte, and the mean weight of BOS in each layer."""
    result = model(input_ids=pieces[:, :-1], use_cache=False, output_attentions=True)
    nats = functional.cross_entropy(result.logits.float().flatten(0, 1), pieces[:, 1:].flatten())
    masses = [layer[:, :, LENGTH // 2 :, 0].mean().item() for layer in result.attentions]
    return nats.item() / math.log(2), [round(mass, 4) for mass in masses]


def weights_of_log(kind, weights):
    """Of passkeys the digits alone."""
    return weights * (weights > 1) if kind == "passkey" else weights


def phase_at(phases, step):
    for phase in phases:
        if step < phase.steps:
            return phase, step / phase.steps
        step -= phase.steps
    return None, 1.0


def train(options, model, phases, device):
    text = Text(options.data / "train.npz")
    pieces = held_out_pieces(options.data / "held_out").to(device)
    optimizer = optimizer_of(model)
    checkpoint, log_path, lines, step = options.out / "checkpoint.pt", options.out / "log.jsonl", [], 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        lines = [line for line in log_path.read_text().splitlines() if json.loads(line)["step"] <= step]
    log_path.write_text("".join(line + "\n" for line in lines))
    compiled = torch.compile(losses, dynamic=False)
    log, recent, begin, first = open(log_path, "a"), {}, time.time(), step
    while True:
        phase, progress = phase_at(phases, step)
        if step % CHECKPOINT_EVERY == 0 or not phase:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
        if not phase:
            return
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            rate = phase.last_rate + (phase.first_rate - phase.last_rate) * cosine
            group["lr"] = rate * min(1, (step + 1) / WARM_UP)

        rng = np.random.default_rng([options.seed, step])
        tokens, weights, kinds = batch(text, rng, phase.sequences, phase.length, phase.copy_share, phase.passkey_share)
        tokens, weights = torch.from_numpy(tokens).to(device), torch.from_numpy(weights).to(device)
        with_sink = phase.sink_targets[1] > 0
        nats, sinks = compiled(model, tokens, with_sink)
        loss = (nats * weights).sum() / weights.sum()
        if with_sink:
            target = phase.sink_targets[0] + (phase.sink_targets[1] - phase.sink_targets[0]) * progress
            loss = loss + SINK_LOSS * functional.relu(math.log(target) - sinks).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

        nats = nats.detach().cpu().numpy()
        for kind in set(kinds):
            scored = weights_of_log(kind, weights.cpu().numpy()[kinds == kind])
            recent.setdefault(kind, []).append(float((nats[kinds == kind] * scored).sum() / max(1, scored.sum())))
        step += 1
        if step % LOG_EVERY == 0:
            bits, masses = held_out_scores(model, pieces)
            line = {"step": step, "phase": phase.name, "seconds": round(time.time() - begin),
                    **{kind: round(float(np.mean(values)), 4) for kind, values in sorted(recent.items())},
                    "held_out_bits": round(bits, 4), "bos_weight": masses}
            log.write(json.dumps(line) + "\n")
            log.flush()
            rate = (step - first) * phase.sequences * phase.length / (time.time() - begin)
            print(json.dumps(line), f"{rate:.0f} bytes/s", flush=True)
            recent = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=["llama", "mpt"])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sink-from", type=pathlib.Path, help="a trained model, to encourage its attention sink")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    model = llama() if options.architecture == "llama" else mpt()
    initialise(model)
    if options.sink_from:
        model.load_state_dict(torch.load(options.sink_from / "checkpoint.pt")["model"])
    train(options, model.to(device), SINK if options.sink_from else TRAINING, device)
    model.to(torch.bfloat16).save_pretrained(options.out)


if __name__ == "__main__":
    main()
