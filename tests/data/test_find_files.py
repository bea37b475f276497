"""What a path, a folder or a glob of text files matches."""

import os
import subprocess

import pytest

from fmjax.data.sources import find_files as find_files_module
from fmjax.data.sources.find_files import expand_braces, files_below, find_files
from fmjax.data.sources.text_files import TextFiles
from fmjax.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    for name in (
        "a.txt", "B.TXT", "notes.md", "sub/c.txt", "sub/deep/d.Txt", ".hidden/e.txt",
        "sub/._c.txt", ".f.txt", "[odd].txt",
    ):  # fmt: skip
        file = tmp_path / "corpus" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "corpus"


def names(corpus, pattern):
    found = find_files(str(pattern), "text_files.files")
    return {os.path.relpath(file, corpus) for file in found}


ALL = {"a.txt", "B.TXT", "[odd].txt", "sub/c.txt", "sub/deep/d.Txt"}


def test_folders_globs_and_names(corpus):
    assert names(corpus, corpus) == ALL
    assert names(corpus, f"{corpus}/") == ALL
    assert names(corpus, corpus / "**" / "*.txt") == ALL
    assert names(corpus, corpus / "*.txt") == {"a.txt", "B.TXT", "[odd].txt"}
    assert names(corpus, corpus / "sub" / "**" / "*.TXT") == {
        "sub/c.txt", "sub/deep/d.Txt"
    }  # fmt: skip
    assert names(corpus, corpus / "**" / "deep" / "*") == {"sub/deep/d.Txt"}
    assert names(corpus, corpus / "**") == ALL | {"notes.md"}
    assert names(corpus, corpus / "[odd].txt") == {"[odd].txt"}
    assert names(corpus, corpus / "*.md") == {"notes.md"}
    pair = (str(corpus / "a.txt"), str(corpus / "sub"))
    found = find_files(pair, "text_files.files")
    assert found == sorted(found)
    assert len(found) == 3


def test_links_are_followed_and_circles_are_not(corpus, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.txt").write_text("far")
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "near.txt").symlink_to(elsewhere / "far.txt")
    (corpus / "sub" / "up").symlink_to(corpus)
    (elsewhere / "back").symlink_to(corpus)
    expected = ALL | {"linked/far.txt", "near.txt"}
    assert names(corpus, corpus) == expected
    assert names(corpus, corpus / "**" / "*.txt") == expected
    assert len(list(files_below(corpus))) == len(set(files_below(corpus)))


@pytest.mark.parametrize("target", ["nothing.txt", "self.txt"])
def test_a_link_to_nothing_is_refused_by_its_name(corpus, target):
    (corpus / "self.txt").symlink_to(corpus / target)
    for pattern in (corpus, corpus / "*.txt", corpus / "**" / "*.txt"):
        with pytest.raises(UserError, match=r"self\.txt cannot be read: "):
            TextFiles(str(pattern)).fingerprint("train")


@pytest.mark.parametrize("pattern", [
    "a{000..003}.tar", "a{b,c}{1..3}", "{8..11}", "{3..1}", "{08..11}", "{a,{b,c}}x",
    "{a}", "a{1..}b", "{,x}y", "{a", "b}", "{1..3}/{x,y}",
])  # fmt: skip
def test_braces_stand_for_what_they_do_in_bash(pattern):
    command = ["bash", "-c", f"printf '%s\\n' {pattern}"]
    expected = subprocess.run(command, capture_output=True, text=True, check=True)
    assert expand_braces(pattern, "files") == expected.stdout.splitlines()


def test_a_file_with_braces_in_its_name_stands_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(find_files_module, "_BRACED", 100)
    (tmp_path / "{1..9999999}.txt").write_text("text")
    (file,) = find_files(f"{tmp_path}/{{1..9999999}}.txt", "files")
    assert file.name == "{1..9999999}.txt"
    with pytest.raises(UserError, match="its braces stand for more than 100 files"):
        find_files(f"{tmp_path}/{{1..9999999}}.csv", "files")


def test_what_matches_nothing_says_what_there_is(corpus, tmp_path):
    cases = {
        str(corpus / "*.csv"): r"have 4 of \.txt, 1 of \.md|have \d of \.txt",
        str(corpus / "none" / "x.txt"): rf"{corpus}/none does not exist",
        str(tmp_path / "*.txt"): r"a glob such as",
        str(corpus / "sub" / "deep" / "*.md"): r"1 of \.txt",
        "ftp://host/a.txt": r"begins with gs://, s3:// or file://",
    }
    (tmp_path / "empty").mkdir()
    cases[str(tmp_path / "empty")] = "has no files"
    for pattern, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            find_files(pattern, "text_files.files")
        assert str(error.value).startswith(f"text_files.files = {pattern!r}")
