"""Bits per byte of the held-out documents, as others compress them: xz, and a 5-gram model of the training text.

    env/bin/python baselines.py data
"""

import lzma
import pathlib
import sys

import numpy as np

ORDER = 5


def xz_bits(documents):
    """Each document by itself, without the container's fixed part."""
    empty = len(lzma.compress(b"", preset=9 | lzma.PRESET_EXTREME))
    sizes = [len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) - empty for text in documents]
    return 8 * sum(sizes) / sum(map(len, documents))


def windows(text, length):
    """The `length` bytes that end at each place, as one number; of the first places, those that there are."""
    padded = np.concatenate([np.zeros(length - 1, np.uint8), text])
    return sum(padded[length - 1 - i : len(padded) - i].astype(np.int64) << (8 * i) for i in range(length))


def counts_of(keys, queries):
    """How often each query is among the keys; both are numbers, `keys` being (distinct and sorted, how often)."""
    distinct, how_often = keys
    at = np.minimum(np.searchsorted(distinct, queries), len(distinct) - 1)
    return np.where(distinct[at] == queries, how_often[at], 0)


def five_gram_bits(train, documents):
    """Of Witten and Bell: P(c | h) = (n(hc) + t(h) P(c | h')) / (n(h) + t(h)), t(h) the kinds of followers of h."""
    tested = [np.frombuffer(text, np.uint8) for text in documents]
    probability = [np.full(len(text), 1 / 256) for text in tested]
    for order in range(1, ORDER + 1):
        grams = np.unique(windows(train, order), return_counts=True)
        contexts = grams[0] >> 8
        starts = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
        kinds = (contexts[starts], np.diff(np.append(starts, len(contexts))))
        seen = (contexts[starts], np.add.reduceat(grams[1], starts))
        for i, text in enumerate(tested):
            gram = windows(text, order)
            t, n = counts_of(kinds, gram >> 8), counts_of(seen, gram >> 8)
            mixed = (counts_of(grams, gram) + t * probability[i]) / np.maximum(n + t, 1)
            probability[i] = np.where(n > 0, mixed, probability[i])
    return -np.log2(np.concatenate(probability)).mean()


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    held_out = [path.read_bytes() for path in sorted((folder / "held_out").glob("*"))]
    print(f"xz -9e: {xz_bits(held_out):.3f} bits a byte")
    print(f"5-gram model: {five_gram_bits(np.load(folder / 'train.npz')['text'], held_out):.3f} bits a byte")
