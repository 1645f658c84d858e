"""Corpora larger than memory: data files are tokenised once, and read from disk block by block.

Each data file becomes a flat file of ids and an array of document lengths in a folder; several processes
tokenise several files at once. Finished files are kept, so a killed run continues with the next one, and
training and counting share one folder. A hub data set is fetched into the hub's own cache first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dynamo.common.distributed import process_pool
from dynamo.common.files import replace_text
from dynamo.data import text
from dynamo.data.documents import encode_rows
from dynamo.data.readers import read_rows

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?(?:/(.+))?")  # data set, revision, part
ROWS_AT_A_TIME = 512


@dataclass(frozen=True)
class TokenFile:
    """One data file's ids at `ids` (raw, of `dtype`) and its documents' lengths at `lengths`."""

    source: str
    ids: str
    lengths: str
    dtype: str
    documents: int
    tokens: int
    crc: int

    def read_ids(self) -> np.ndarray:
        """(tokens,), memory-mapped."""
        if self.tokens == 0:
            return np.zeros(0, self.dtype)
        return np.memmap(self.ids, dtype=self.dtype, mode="r", shape=(self.tokens,))

    def read_documents(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The ids of its documents first .. last, in order."""
        ids, lengths = self.read_ids(), np.load(self.lengths)
        stop = int(lengths[:first].sum())
        for length in lengths[first:last].tolist():
            start, stop = stop, stop + length
            yield ids[start:stop]


class DiskCorpus:
    """The documents of token files, one after the other, as `dynamo.data.blocks.Corpus` wants them."""

    def __init__(self, files: Sequence[TokenFile]):
        self._files = list(files)
        self.lengths = np.concatenate([np.load(file.lengths) for file in self._files])
        self.crc = zlib.crc32(repr([(file.tokens, file.crc) for file in self._files]).encode())
        self._first = np.cumsum([0, *(file.documents for file in self._files)])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._maps = [file.read_ids() for file in self._files]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def __getitem__(self, index: int) -> np.ndarray:
        file = int(self._first.searchsorted(index, side="right")) - 1
        start = int(self._starts[index] - self._starts[self._first[file]])
        return self._maps[file][start : start + int(self.lengths[index])]


def data_files(names: Iterable[str]) -> list[Path]:
    """The JSONL files behind names: files, folders of files, and hub data sets such as owner/name, or a part
    of one, owner/name/FILE_OR_FOLDER. owner/name@REVISION stays the same whatever the owner uploads.

    Raises ValueError for a name that is none of them or holds no such file, OSError for an unreachable hub.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_file():
            files.append(path)
            continue
        found = path.rglob("*") if path.is_dir() else _fetched(name)
        found = sorted(each for each in found if each.name.endswith(SUFFIXES))
        if not found:
            raise ValueError(
                f"data: {name} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; other formats "
                "(parquet, say) must be exported to JSON lines first"
            )
        files += found
    return files


def _fetched(name: str) -> list[Path]:
    """The files of a hub data set, or of a part of it; those that are in the cache are not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise ValueError(f"data: No such file, folder or hub data set: {name!r}")
    data_set, revision, part = match.groups()
    patterns = [f"*{suffix}" for suffix in SUFFIXES] if part is None else [part, f"{part.rstrip('/')}/*"]
    try:
        folder = Path(
            snapshot_download(data_set, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    except Exception as error:
        raise OSError(
            f"data: {name} is no local file or folder and cannot be fetched from the hub "
            f"({type(error).__name__})"
        ) from error
    names = (each.relative_to(folder).as_posix() for each in folder.rglob("*"))
    return [folder / each for each in filter_repo_objects(names, allow_patterns=patterns)]


def tokenise(
    files: Sequence[Path], tokenizer: Any, folder: Path, workers: int = 1, progress: bool = False
) -> list[TokenFile]:
    """Every file as token documents in `folder`; those that exist already are reused.

    Raises ValueError for a corrupt row, naming file and line, and if there is no document at all.
    """
    if workers < 1:
        raise ValueError(f"workers: expected 1 or more processes, got {workers}")
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_token_file, tokenizer=tokenizer, folder=folder)
    if workers == 1 or len(files) == 1:
        made = list(map(make, tqdm(files, desc="tokenising", unit="file", disable=not progress)))
    else:
        # Not forked: the tokenizer library's threads would not survive it.
        with process_pool(min(workers, len(files)), "spawn") as pool:
            results = pool.map(make, files)
            made = list(tqdm(results, desc="tokenising", unit="file", total=len(files), disable=not progress))
    if not any(file.documents for file in made):
        raise ValueError(f"{', '.join(map(str, files))}: holds no conversation and no text")
    return made


def _token_file(source: Path, tokenizer: Any, folder: Path) -> TokenFile:
    state = source.stat()
    vocabulary, template = text.fingerprint(tokenizer), tokenizer.chat_template
    identity = (source.name, state.st_size, state.st_mtime_ns, vocabulary, template)
    name = f"{source.name.split('.')[0]}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"
    metadata = folder / f"{name}.json"
    if metadata.is_file():
        fields = json.loads(metadata.read_text(encoding="utf-8"))
        return TokenFile(**fields | _places(folder, name))
    file = _write_ids(source, tokenizer, folder, name)
    # Written last: if it exists, the two others are complete.
    replace_text(metadata, json.dumps(asdict(file)))
    return file


def _places(folder: Path, name: str) -> dict[str, str]:
    return {"ids": str(folder / f"{name}.ids"), "lengths": str(folder / f"{name}.lengths.npy")}


def _write_ids(source: Path, tokenizer: Any, folder: Path, name: str) -> TokenFile:
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    places = _places(folder, name)
    part = folder / f"{name}.{os.getpid()}.part"
    lengths: list[int] = []
    crc = 0
    try:
        with open(part, "wb") as out:
            rows = read_rows(source)
            while batch := list(itertools.islice(rows, ROWS_AT_A_TIME)):
                for document in encode_rows(batch, tokenizer):
                    written = document.astype(dtype).tobytes()
                    crc = zlib.crc32(written, crc)
                    out.write(written)
                    lengths.append(len(document))
        os.replace(part, places["ids"])
    finally:
        part.unlink(missing_ok=True)
    np.save(places["lengths"], np.array(lengths, np.int64))
    return TokenFile(str(source), **places, dtype=dtype.name, documents=len(lengths),
                     tokens=sum(lengths), crc=crc)  # fmt: skip
