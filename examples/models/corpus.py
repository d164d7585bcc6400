"""Text that any Debian machine has: the documents of a few packages, as lists of ASCII bytes.

    python3 corpus.py FOLDER

downloads the packages (apt-get download), unpacks them below FOLDER, and writes two files there: train.npz, the
documents to train on, and held_out/, the first 16384 bytes of each held-out document. Needs no root.
"""

import hashlib
import pathlib
import re
import subprocess
import sys
import unicodedata

import numpy as np

# Each package, and which of its files are documents.
PACKAGES = {
    "debian-policy": "**/*.txt",
    "developers-reference": "**/*.txt",
    "git-doc": "**/*.txt",
    "linux-doc-6.1": "**/*.rst.txt",
    "perl-doc": "**/*.pod",
    "python3.11-doc": "**/*.rst.txt",
    "vim-runtime": "**/doc/*.txt",
}
HELD_OUT_BYTES = 16384  # 64 times the training length
HELD_OUT_DOCUMENTS = 32
WORDS = 8  # a run of so many words that stands in two documents is text that one has from the other
MOST_SHARED = 0.02  # of a held-out document's runs, those that training text has as well


def download(folder):
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (folder / "unpacked").mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=packages, check=True)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked" / package.name.split("_")[0]], check=True)


def text_of(path):
    """ASCII, without tabs and runs of empty lines; empty where much of the file is something else."""
    raw = path.read_bytes().decode("utf-8", errors="ignore").replace("\r", "").replace("\t", "    ")
    text = unicodedata.normalize("NFKD", raw).encode("ascii", errors="ignore").decode()
    text = re.sub(r"[^\n -~]", "", text)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text)).strip() + "\n"
    return text if len(text) >= max(600, 0.98 * len(raw.strip()) - 2000) else ""


def documents(folder):
    found, seen = {}, set()
    for package, pattern in PACKAGES.items():
        root = folder / "unpacked" / package
        for path in sorted(root.glob(pattern)):
            text = text_of(path)
            content = hashlib.sha256(text.encode()).digest()
            if text and content not in seen and "translations" not in path.parts:
                seen.add(content)
                found[f"{package}/{path.relative_to(root)}"] = text
    return found


def runs(text):
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + WORDS])) for i in range(len(words) - WORDS + 1)}


def split(found):
    """Held-out documents are long, their names hash to one of six, and they share next to nothing with the rest."""
    candidates = {
        name: text[:HELD_OUT_BYTES]
        for name, text in found.items()
        if len(text) >= HELD_OUT_BYTES and int(hashlib.sha256(name.encode()).hexdigest(), 16) % 6 == 0
    }
    train = {name: text for name, text in found.items() if name not in candidates}
    wanted = {name: runs(text) for name, text in candidates.items()}
    all_wanted = set().union(*wanted.values())
    shared = set()
    for text in train.values():
        shared |= all_wanted & runs(text)
    share = {name: len(own & shared) / len(own) for name, own in wanted.items()}
    kept = [name for name in candidates if share[name] <= MOST_SHARED]
    # In an order that has nothing to do with their packages.
    kept.sort(key=lambda name: hashlib.sha256(name[::-1].encode()).digest())
    return train, {name: (candidates[name], share[name]) for name in kept[:HELD_OUT_DOCUMENTS]}


def main(folder):
    download(folder)
    train, held_out = split(documents(folder))
    held_out_folder = folder / "held_out"
    held_out_folder.mkdir(exist_ok=True)
    for name, (text, share) in held_out.items():
        (held_out_folder / f"{name.split('/')[0]}-{name.split('/')[-1]}").write_text(text)
        print(f"held out {name}: {share:.2%} of its runs of {WORDS} words stand in training text")
    print(f"{len(train)} documents, {sum(map(len, train.values()))} bytes to train on, {len(held_out)} held out")
    encoded = [np.frombuffer(text.encode(), dtype=np.uint8) for text in train.values()]
    np.savez(folder / "train.npz", text=np.concatenate(encoded), lengths=[len(text) for text in encoded])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
