"""Which documents a corpus has, what they are called, and which are held out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from trainers.contract.errors import InputError
from trainers.data import files, installed, stdlib
from trainers.data.documents import Document, hash_document, split_documents
from trainers.data.request import CorpusRequest
from trainers.data.sources import SOURCES

LIBRARY = stdlib.library_root()


def _names(paths: tuple[str, ...]) -> list[str]:
    return [document.name for document in files.documents(paths)]


@pytest.fixture
def text_root(tmp_path: Path) -> Path:
    """Real text in two levels of directories, with a hidden file and a hidden directory beside it."""
    root = tmp_path / "texts"
    (root / "inner").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for source, target in (
        ("abc.py", "abc.txt"),
        ("json/decoder.py", "inner/decoder.txt"),
        ("textwrap.py", "inner/textwrap.md"),
        ("heapq.py", ".heapq.txt"),
        ("bisect.py", ".hidden/bisect.txt"),
    ):
        shutil.copy(LIBRARY / source, root / target)
    return root


def test_the_standard_library_is_that_of_the_running_python() -> None:
    assert Path(os.__file__).resolve().parent == LIBRARY.resolve()
    names = [document.name for document in stdlib.documents()]
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py", "email/message.py"} <= set(names)
    assert names == sorted(names)
    assert len(names) == len(set(names)) > 400


def test_the_standard_library_has_neither_tests_nor_packages_nor_build_settings() -> None:
    for document in stdlib.documents():
        parts = document.name.split("/")
        assert not {"encodings", "test", "tests", "idle_test", "site-packages", "__pycache__"} & set(parts), (
            document.name
        )
        assert not parts[-1].startswith("_sysconfigdata"), document.name
        assert document.name.endswith(".py")


def test_left_out_directories_are_left_out_at_every_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("os.py", "json/tool.py", "unittest/case.py", "contest/a.py")
    dropped = (
        "test/a.py",
        "json/tests/a.py",
        "idlelib/idle_test/a.py",
        "site-packages/x/a.py",
        "json/__pycache__/a.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "os.pyc",
    )
    for name in kept + dropped:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [document.name for document in stdlib.documents()] == sorted(kept)


def test_a_python_without_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "python.zip")})
    with pytest.raises(ValueError, match=r"^corpus\.source: this Python has no library sources"):
        stdlib.documents()


def test_every_source_of_the_standard_library_is_utf8() -> None:
    for document in stdlib.documents():
        hash_document(document).text()


def test_a_directory_gives_its_visible_files_below_it(text_root: Path) -> None:
    documents = files.documents((str(text_root),))
    assert [document.name for document in documents] == ["abc.txt", "inner/decoder.txt", "inner/textwrap.md"]
    assert documents[0].load() == (LIBRARY / "abc.py").read_bytes()


def test_a_glob_gives_what_it_matches_called_below_its_fixed_part(text_root: Path) -> None:
    assert _names((f"{text_root}/**/*.txt",)) == ["abc.txt", "inner/decoder.txt"]
    assert _names((f"{text_root}/inner/*",)) == ["decoder.txt", "textwrap.md"]


def test_a_file_is_called_by_its_last_part(text_root: Path) -> None:
    assert _names((str(text_root / "inner/decoder.txt"), str(text_root / "abc.txt"))) == ["abc.txt", "decoder.txt"]


def test_a_file_named_twice_counts_once(text_root: Path) -> None:
    assert _names((str(text_root), str(text_root / "inner/decoder.txt"), f"{text_root}/*.txt")) == _names(
        (str(text_root),)
    )


def test_relative_paths_and_moved_files_give_the_same_names(
    text_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "deeper" / "elsewhere"
    shutil.copytree(text_root, elsewhere)
    monkeypatch.chdir(elsewhere.parent)
    assert _names(("elsewhere",)) == _names((str(text_root),)) == _names(("./elsewhere/**",))


def test_the_home_directory_may_be_written_short(text_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(text_root.parent))
    monkeypatch.setenv("USERPROFILE", str(text_root.parent))
    assert _names(("~/texts",)) == _names((str(text_root),))


@pytest.mark.parametrize("path", ["/", "/**", "/**/*.txt"])
def test_a_whole_machine_is_no_corpus(path: str) -> None:
    with pytest.raises(ValueError, match="everything on this machine; name a folder"):
        files.documents((path,))


@pytest.mark.parametrize("path", ["x" * 5_000, "texts/" + "x" * 300])
def test_a_name_that_no_file_can_have_is_one_short_line(
    path: str, text_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text_root.parent)
    with pytest.raises(InputError, match=r"^corpus\.paths: x?.* cannot be read \(File name too long\)$") as caught:
        files.documents((path,))
    assert len(str(caught.value)) < 300


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The kernel lets nobody read the first page of a process's memory."""
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    (document,) = files.documents((str(tmp_path / "memory"),))
    with pytest.raises(InputError, match=r"^corpus\.paths: .*/memory cannot be read \(Input/output error\)$"):
        document.load()


def test_two_files_of_one_name_are_refused(text_root: Path) -> None:
    other = text_root.parent / "other"
    shutil.copytree(text_root, other)
    with pytest.raises(ValueError, match=r"^corpus\.paths: .* are both called abc\.txt; give the directory that holds"):
        files.documents((str(text_root), str(other)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.txt", r"^corpus\.paths: absent\.txt does not exist \(looked for from "),
        ("texts/**/*.rst", r"^corpus\.paths: texts/\*\*/\*\.rst holds no file; name text files"),
        ("texts/.hidden/empty", r"^corpus\.paths: texts/\.hidden/empty holds no file"),
    ],
)
def test_paths_that_match_nothing_are_one_clear_line(
    text_root: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    (text_root / ".hidden/empty").mkdir()
    monkeypatch.chdir(text_root.parent)
    with pytest.raises(ValueError, match=message) as caught:
        files.documents((given,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "web"}, "corpus.source: 'web' is not one of stdlib, installed, files, huggingface, local, mixture"),
        ({"source": "files"}, "corpus.paths: empty; the source `files` needs at least one path"),
        ({"paths": ("a",)}, "corpus.paths: ['a'] given, but the source `stdlib` takes none"),
        ({"validation_fraction": 0.0}, "corpus.validation_fraction: 0.0 is not in (0, 0.5)"),
        ({"validation_fraction": float("nan")}, "corpus.validation_fraction: nan is not in (0, 0.5)"),
        ({"vocab_size": 256}, "tokenizer.vocab_size: 256 is less than 257 (every byte and the separator)"),
    ],
)
def test_an_impossible_request_cannot_be_made(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        CorpusRequest(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_every_source_lists_and_labels(text_root: Path) -> None:
    for name, source in SOURCES.items():
        paths = (str(text_root),) if source.takes_paths else ()
        CorpusRequest(source=name, paths=paths)
        assert len(source.documents(paths)) > 1
        assert str(text_root.parent) not in source.label(paths)


def test_text_that_changes_or_is_not_text_is_named() -> None:
    contents = [b"one", b"two"]
    changing = hash_document(Document("a.txt", lambda: contents.pop()))
    with pytest.raises(ValueError, match=r"^corpus: a\.txt changed while it was being read"):
        changing.text()
    binary = hash_document(Document("b.bin", lambda: b"ab\xff"))
    with pytest.raises(ValueError, match=r"^corpus: b\.bin is not UTF-8 text \(byte 2\)"):
        binary.text()


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"^corpus: 1 document with text found, at least 2 are needed"):
        split_documents((hash_document(Document("a.txt", lambda: b"text")),), 0.1, {})


def test_the_split_of_some_modules_is_pinned() -> None:
    """Another rule would silently change what is held out; the fingerprint must then change with it."""
    modules = (
        "abc.py",
        "ast.py",
        "bisect.py",
        "cmd.py",
        "copy.py",
        "csv.py",
        "enum.py",
        "glob.py",
        "heapq.py",
        "io.py",
    )
    documents = tuple(hash_document(Document(name, (LIBRARY / name).read_bytes)) for name in modules)
    split = split_documents(documents, 0.3, {})
    assert [entry.name for entry in split.validation] == ["csv.py", "cmd.py", "ast.py"]
    assert [entry.name for entry in split.train] == [
        name for name in modules if name not in ("csv.py", "cmd.py", "ast.py")
    ]


def test_installed_packages_are_named_by_their_place_without_tests_copies_and_other_encodings(tmp_path: Path) -> None:
    root = tmp_path / "site"
    for name, content in (
        ("b/__init__.py", b"x = 1\n"),
        ("a/_vendor/b.py", b"x = 1\n"),
        ("a/core.py", "name = 'é'\n".encode()),
        ("a/latin.py", b"name = '\xe9'\n"),
        ("a/tests/test_core.py", b"assert True\n"),
        ("a/data.txt", b"words\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    found = installed.distinct(installed.sources(root, "site-packages"))
    assert [document.name for document in found] == ["site-packages/a/_vendor/b.py", "site-packages/a/core.py"]
    assert found[1].load() == "name = 'é'\n".encode()


def test_installed_packages_come_with_the_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = installed.sysconfig.get_paths()
    (tmp_path / "mine.py").write_text("only = 'here'\n")
    monkeypatch.setattr(
        installed.sysconfig, "get_paths", lambda: {**paths, "purelib": str(tmp_path), "platlib": str(tmp_path)}
    )
    names = [document.name for document in SOURCES["installed"].documents(())]
    assert [name for name in names if not name.startswith("stdlib/")] == ["site-packages/mine.py"]
    assert "stdlib/json/decoder.py" in names
    assert names == sorted(names)
