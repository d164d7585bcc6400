"""Sequences to train on, all of one length: text, copying tasks, and passkeys hidden in text.

Everything is a function of a numpy generator, so that a step's batch depends on the seed and the step alone.
"""

import numpy as np

BOS = 256
FILLER = ["The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. "]
QUESTION = " What is the pass key? The pass key is "
LETTERS = [b"0123456789", b"abcdefghijklmnopqrstuvwxyz", bytes(range(32, 127)), b"0123456789", b"0123456789abcdef "]
DIGIT_WEIGHT = 4.0  # of a passkey's digits in the loss


class Text:
    """Random pieces of documents; of a long document no more than a share as of 200 kB."""

    def __init__(self, path):
        data = np.load(path)
        self.text, self.lengths = data["text"], data["lengths"]
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.weights = np.cumsum(np.minimum(self.lengths, 200_000))

    def piece(self, rng, length):
        while True:
            document = np.searchsorted(self.weights, rng.integers(self.weights[-1]), side="right")
            if self.lengths[document] > length:
                begin = self.begins[document] + rng.integers(self.lengths[document] - length)
                return self.text[begin : begin + length].tobytes()

    def filler(self, rng, length, of_sentences):
        if not of_sentences:
            return self.piece(rng, length)
        sentences = "".join(rng.choice(FILLER, size=length // 10 + 1)).encode()
        return sentences[len(sentences) - length :]


def passkey(text, rng, length):
    """A statement of five digits, somewhere in filler, and at the end the question and its answer."""
    key = f"{rng.integers(100000):05d}"
    statement, question = f" The pass key is {key}. ".encode(), f"{QUESTION}{key}.".encode()
    room = length - len(statement) - len(question)
    before, of_sentences = int(rng.integers(room + 1)), rng.random() < 0.5
    sequence = (text.filler(rng, before, of_sentences) + statement
                + text.filler(rng, room - before, of_sentences) + question)
    weights = np.ones(length, np.float32)
    weights[-6:-1] = DIGIT_WEIGHT
    return sequence, weights


def copying(text, rng, length):
    """A random string again and again, with pieces of text between in most sequences; in a quarter, new strings.

    What nobody can predict, the string when it first comes, has no weight.
    """
    letters, size = LETTERS[rng.integers(len(LETTERS))], int(rng.integers(4, min(70, length // 2 - 3)))
    repeats, between = rng.random() < 0.75, rng.random() < 0.6
    string, sequence, weights = rng.choice(list(letters), size=size), b"", []
    while len(sequence) < length:
        piece = text.piece(rng, int(rng.integers(60 * length // 256 + 1))) if between else b""
        sequence += piece + bytes(string.tolist())
        weights += [1.0] * len(piece) + [float(repeats and len(weights) > 0)] * size
        if not repeats:
            string = rng.choice(list(letters), size=size)
    return sequence[:length], np.array(weights[:length], np.float32)


def batch(text, rng, sequences, length, copy_share, passkey_share):
    """[sequences, 1 + length] tokens, BOS first; [sequences, length] weights of the loss; and what each sequence is."""
    tokens = np.full((sequences, 1 + length), BOS, np.int64)
    weights = np.ones((sequences, length), np.float32)
    kinds = []
    for i in range(sequences):
        chance = rng.random()
        kind = "copy" if chance < copy_share else "passkey" if chance < copy_share + passkey_share else "text"
        if kind == "text":
            sequence = text.piece(rng, length)
        else:
            sequence, weights[i] = (copying if kind == "copy" else passkey)(text, rng, length)
        tokens[i, 1:] = np.frombuffer(sequence, np.uint8)
        kinds.append(kind)
    return tokens, weights, np.array(kinds)
