"""Commands of clusters' tools: what they print, and what is told of a refusal."""

import pytest

from fmjax.errors import UserError
from fmjax.launch import shell


def test_a_server_that_is_away_for_a_while_is_asked_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shell, "PAUSE_SECONDS", 0.0)
    count = tmp_path / "count"
    script = f"echo x >>{count}; [[ $(wc -l <{count}) == 4 ]] && echo here"
    assert shell.patiently(["bash", "-c", script], attempts=5) == "here\n"
    assert capfd.readouterr().err.count("asking again") == 3
    count.unlink()
    with pytest.raises(UserError, match="exit code 1"):
        shell.patiently(["bash", "-c", script], attempts=3)
    assert count.read_text() == "x\n" * 3


def test_a_refusal_is_told_with_the_command():
    with pytest.raises(UserError, match=r"bash -c .*: exit code 3: no such queue"):
        shell.output_of(["bash", "-c", "echo no such queue >&2; exit 3"])


def test_a_command_without_an_answer_is_told():
    with pytest.raises(UserError, match="sleep 60: no answer within 0 s"):
        shell.output_of(["sleep", "60"], seconds=0.1)


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "$HOME", "a\nb", "*"])
def test_quoted_words_are_read_back_by_a_shell(word):
    said = shell.output_of(["bash", "-c", f"printf %s {shell.quoted(word)}"])
    assert said == word
