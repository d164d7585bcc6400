"""Trains a small tokenizer as Llama's is, and writes what SentencePiece makes of some texts, for tokenizer_test.cpp:

    apt-get install python3-sentencepiece
    python3 tokenizer_golden.py

golden/tokenizer/ receives tokenizer.model and encoded.json, a list of {"text": ..., "ids": [...]}.
"""

import json
import pathlib

import sentencepiece

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "",
    "The function returns",
    " two  spaces, and one at the end ",
    "a line\nanother\ttab",
    "12345 + 67.5",
    "na\u00efve \u039b-attention \U0001f600",
]


def main():
    folder = HERE / "golden" / "tokenizer"
    folder.mkdir(exist_ok=True)
    held_out = sorted((HERE.parent.parent / "examples" / "models" / "held_out").glob("*"))
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(str(path) for path in held_out), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=512, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, num_threads=1, character_coverage=0.999,
        minloglevel=1)
    (folder / "tokenizer.vocab").unlink()
    words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    encoded = [{"text": text, "ids": words.encode(text)} for text in TEXTS]
    (folder / "encoded.json").write_text(json.dumps(encoded, indent=1) + "\n")


if __name__ == "__main__":
    main()
