"""Files that documents are read from: compressed, in a bucket, in folders of any name."""

import bz2
import functools
import gzip
import json
import lzma
import tracemalloc
from typing import ClassVar

import fsspec
import pytest
import zstandard
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from retro_jax.corpus import sources
from retro_jax.corpus.document import Document
from retro_jax.corpus.sources import documents
from retro_jax.errors import UserError

COMPRESS = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": functools.partial(lzma.compress, preset=0),
    "GZ": gzip.compress,
}


def test_files_that_cannot_be_decompressed_are_named(tmp_path):
    text = "".join(json.dumps({"text": f"{i} " * 1000}) + "\n" for i in range(2000)).encode()
    for suffix, compress in COMPRESS.items():
        whole = compress(text)
        for data, line in ((whole[:-20], r" after line [1-9]\d+"), (b"not compressed", " after")):
            (tmp_path / f"a.jsonl.{suffix}").write_bytes(data)
            with pytest.raises(UserError, match=rf"a\.jsonl\.{suffix}{line}.*: cannot be read"):
                list(documents(f"jsonl:{tmp_path}/a.jsonl.{suffix}"))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_is_read_and_a_bomb_is_not_held(tmp_path, suffix):
    data = b"naive" + b" " * 12_000_000
    (tmp_path / f"a.txt.{suffix}").write_bytes(COMPRESS[suffix](data[:9]))
    (tmp_path / f"b.txt.{suffix}").write_bytes(COMPRESS[suffix](data))
    (tmp_path / f"b.jsonl.{suffix}").write_bytes(COMPRESS[suffix](data + b'\n{"text": "b"}'))
    tracemalloc.start()
    try:
        good, bad = documents(f"text:{tmp_path}/*.txt.{suffix}", largest=100_000)
        long, short = documents(f"jsonl:{tmp_path}/b.jsonl.{suffix}", largest=100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (good.text, bad.kind, long.kind, short.text) == (
        "naive    ",
        "too large",
        "too large",
        "b",
    )
    assert peak < 8_000_000


class _Remote(AbstractFileSystem):
    """As those of buckets: files without lines, which give less than they are asked for."""

    protocol, cachable = "remote", False
    files: ClassVar[dict[str, bytes]] = {}

    def _open(self, path, mode="rb", **given):
        return _Pieces(self, path, mode, size=len(self.files[path]), block_size=7)

    def info(self, path, **given):
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **given):
        path = self._strip_protocol(path)
        below = {
            f"{path}/{n[len(path) + 1 :].split('/')[0]}"
            for n in self.files
            if n.startswith(f"{path}/")
        }
        found = [self.info(name) for name in sorted(below)] or [self.info(path)]
        return found if detail else [x["name"] for x in found]


class _Pieces(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.files[self.path][start:end]

    def read(self, length=-1):
        return super().read(min(length, 5) if length > 0 else length)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_files_of_buckets_are_read_to_their_end(monkeypatch, suffix):
    fsspec.register_implementation("remote", _Remote, clobber=True)
    lines = b"".join(b'{"text": "number %d"}\n' % i for i in range(50))
    compress = COMPRESS.get(suffix[1:], bytes)
    stored = {
        f"b/[2024]/deep/a.jsonl{suffix}": compress(lines),
        f"b/a.txt{suffix}": compress(lines),
    }
    monkeypatch.setattr(_Remote, "files", stored)
    found = list(documents(f"jsonl:remote://b/[2024]/*/*.jsonl{suffix}#text"))
    assert [d.text for d in found] == [f"number {i}" for i in range(50)]
    assert found[0].id == f"deep/a.jsonl{suffix}:1"
    (one,) = documents(f"text:remote://b/a.txt{suffix}")
    assert one == Document(f"a.txt{suffix}", lines.decode())


def test_archives_and_long_windows_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip: \.zip is not read; unpack it"):
        list(documents(f"text:{tmp_path}/a.zip"))
    asked = zstandard.ZstdCompressionParameters(window_log=29, compression_level=1)
    made = zstandard.ZstdCompressor(compression_params=asked).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(made.compress(b"{}") + made.flush())
    with pytest.raises(UserError, match="compress it again without --long"):
        list(documents(f"jsonl:{tmp_path}/a.jsonl.zst"))


@pytest.mark.parametrize("name", ["[2024]", "C + D", "a#b", "a*b", "x? + y", "two  spaces"])
def test_folders_of_any_name_are_read(tmp_path, name):
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "a.jsonl").write_text('{"text": "b"}\n')
    for source in (
        f"jsonl:{tmp_path}/{name}/**/*.jsonl#text",
        f"jsonl:{tmp_path}/{name}/deep/a.jsonl#text",
        f"1*jsonl:{tmp_path}/{name}/*/*.jsonl#text + 2*jsonl:{tmp_path}/{name}/**/a.jsonl#text",
    ):
        sources.check(source, "corpus.source")
        assert {d.text for d in documents(source)} == {"b"}
    assert next(documents(f"jsonl:{tmp_path}/{name}/**/*.jsonl#text")).id == "deep/a.jsonl:1"
