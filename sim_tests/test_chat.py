"""Chat templates: what they are given, and what they may not do."""
import io
import json
import re

import pytest
from random_model import random_model

from meadowlark import cli, targets
from meadowlark.chat import MAX_TEMPLATE, ChatTemplate, Conversation
from meadowlark.driver import Driver
from meadowlark.errors import UserError
from meadowlark.fake_board import FakeBoard
from meadowlark.model import load_model
from meadowlark.prepare import Source
from meadowlark.targets import BoardTarget, GoldenTarget
from meadowlark_boards import get_board

HELLO = [{"role": "user", "content": "Hello"}]
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m.content }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def test_chatml():
    template = ChatTemplate(template=CHATML)
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    text = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n")
    assert template.render(messages, add_generation_prompt=False) == text
    assert template.render(messages) == text + "<|im_start|>assistant\n"


@pytest.mark.parametrize("template, text", [
    ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hello</s>"),
    ("{{ messages | tojson }}", '[{"role": "user", "content": "Hello"}]'),
    ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
    ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
    ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
    ("{% if strftime_now is defined %}today{% else %}never{% endif %}", "never"),
    ("{{ '<b>' }}", "<b>"),
])
def test_as_transformers(template, text):
    """Variables, filters and the handling of white space that templates of models rely on."""
    assert ChatTemplate(template=template, bos="<s>", eos="</s>").render(HELLO) == text


@pytest.mark.parametrize("template, message", [
    ("{% for %}", "Expected an expression"),
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ messages[3]['content'] }}", "no element 3"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ messages.append(1) }}", "not safely callable|unsafe"),
    ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    ("{{ cycler.__init__.__globals__ }}", "unsafe|undefined"),
    ("{{ range(10 ** 7) }}", "too big"),
    ("{% for a in range(9999) %}{% for b in range(9999) %}abcdefgh{% endfor %}{% endfor %}",
     "more than 4,194,304 characters"),
    ("a" * (MAX_TEMPLATE + 1), "65,537 characters"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
])
def test_refused(template, message):
    with pytest.raises(UserError, match=f"^the chat template of here cannot be used .*({message})"):
        ChatTemplate(template=template, source="here").render(HELLO)


# ---- Of Hugging Face folders

@pytest.fixture
def folder(tmp_path, seed):
    return random_model(tmp_path / "model", seed=seed, heads=2, kv_heads=2)


def rendered(folder):
    template = load_model(folder).chat
    assert template
    return template.render(HELLO)


def configure(folder, **values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_folder_without(folder):
    assert load_model(folder).chat is None
    configure(folder, bos_token="<s>")
    assert load_model(folder).chat is None
    assert load_model("stories").chat is None


@pytest.mark.parametrize("template", [
    "{{ bos_token }}{{ eos_token }}",
    [{"name": "tool_use", "template": "no"},
     {"name": "default", "template": "{{ bos_token }}{{ eos_token }}"}]])
def test_folder(folder, template):
    configure(folder, chat_template=template, bos_token="<s>",
              eos_token={"content": "</s>", "lstrip": False})
    assert rendered(folder) == "<s></s>"
    # Where newer tools put it.
    (folder / "chat_template.jinja").write_text("own {{ bos_token }}")
    assert rendered(folder) == "own <s>"


def test_damaged_folder(folder):
    configure(folder, chat_template=3)
    with pytest.raises(UserError, match="chat_template must be a text"):
        load_model(folder)
    path = folder / "chat_template.jinja"
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja cannot be read"):
        load_model(folder)


# ---- Conversations

TURNS = ("{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}{% endfor %}"
         "{% if add_generation_prompt %}{{ bos_token }}{% endif %}")


@pytest.fixture
def talk(folder):
    configure(folder, chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")
    model = load_model(folder)
    return Conversation(model.chat, model.tokenizer)


@pytest.mark.parametrize("ended", [True, False])
def test_prompts_go_on(talk, ended):
    """Each begins with all ids before it, and is what the template makes of the messages."""
    answer = talk._tokenizer.encode(" fine", special=False) + [1] * ended
    first = talk.ask("How are you")
    assert first[0] == 0 and first[-2:] == [1, 0] and first.count(0) == 2
    assert talk.answered(answer) == " fine"
    second = talk.ask("Good")
    assert second[:len(first) + len(answer)] == first + answer
    assert second == talk._tokenizer.encode(talk._template.render(talk.messages), special=False)
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "user"]


def test_template_that_rewrites_answers(folder):
    """Where the past reads differently, the whole prompt is made anew."""
    model = load_model(folder)
    template = ChatTemplate(template="{% for m in messages %}{{ m.content | trim }};{% endfor %}")
    talk = Conversation(template, model.tokenizer)
    talk.ask("Hello")
    talk.answered(model.tokenizer.encode("  you", special=False))
    assert talk.ask("Bye") == model.tokenizer.encode("Hello;you;Bye;", special=False)


def test_refused_question_is_not_said(folder):
    model = load_model(folder)
    talk = Conversation(ChatTemplate(template="{{ raise_exception('no') }}"), model.tokenizer)
    with pytest.raises(UserError):
        talk.ask("Hello")
    assert talk.messages == [] and talk.ids == []


# ---- On the command line

def test_generate(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    configure(folder, chat_template="{{ bos_token }}Q {{ messages[0].content }} A",
              bos_token="<|bos|>")
    args = ["--model", str(folder), "--target", "golden", "--ignore-eos", "-n", "3", "--json", "-"]
    assert cli.main(["generate", "Hello", "--chat", *args]) == 0
    chat = json.loads(capsys.readouterr().out)
    assert cli.main(["generate", "Q Hello A", *args]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == chat["tokens"]
    ids = Source(str(folder), get_board("virtual")).prompt("Hello", chat=True)
    assert chat["prompt_tokens"] == len(ids) and ids[0] == 0 and 0 not in ids[1:]   # one bos


def test_generate_refuses(capsys, tmp_path):
    assert cli.main(["generate", "Hello", "--chat", "--target", "golden"]) == 2
    assert "stories came without a chat template" in capsys.readouterr().err
    image = tmp_path / "stories.mlk"
    assert cli.main(["compile", "stories", "-o", str(image)]) == 0
    capsys.readouterr()
    assert cli.main(["generate", "Hello", "--chat", "--model", str(image)]) == 2
    assert "stories.mlk came without a chat template" in capsys.readouterr().err


def test_an_image_alone(folder, tmp_path, capsys, monkeypatch):
    """The template and its tokens are in the image: the same prompts, without the model."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    configure(folder, chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")
    path, board = tmp_path / "m.mlk", get_board("virtual")
    assert cli.main(["compile", str(folder), "-o", str(path)]) == 0
    model, image = Source(str(folder), board), Source(str(path), board)
    assert image.prompt("Hello", chat=True) == model.prompt("Hello", chat=True)
    assert image.image.chat == model.model.chat is not None
    capsys.readouterr()
    assert cli.main(["info", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["chat_template"] is True
    # A golden model needs the checkpoint; the rest of a run is that of any image.
    monkeypatch.setattr(targets, "open_target", lambda *_, **__: BoardTarget("fake", Driver(
        FakeBoard(board.config, memory_bytes=board.memory.size_bytes,
                  next_token=lambda history: (len(history) % 50 + 5, 0)))))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nGood\n"))
    assert cli.main(["chat", "--model", str(path), "-n", "3", "--json", "-"]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert turns[0]["prompt_tokens"] == len(model.prompt("Hello", chat=True))
    assert turns[0]["cached_tokens"] == 0 < turns[1]["cached_tokens"]


def test_chat(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    configure(folder, chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")
    args = ["--model", str(folder), "--target", "golden", "-n", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nGood\n\nnever asked\n"))
    assert cli.main(["chat", *args, "--json", "-"]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [t["question"] for t in turns] == ["Hello", "Good"]
    said = turns[0]["prompt_tokens"] + len(turns[0]["tokens"])
    assert said < turns[1]["prompt_tokens"]
    assert turns[0]["cached_tokens"] == 0       # the answer may read differently in the template
    assert turns[0]["prompt_tokens"] <= turns[1]["cached_tokens"] < said
    # The first answer is that of generate.
    assert cli.main(["generate", "Hello", "--chat", *args, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == turns[0]["tokens"]
    # Answers on stdout, nothing else; a conversation longer than the context is refused.
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n" + "a" * 200 + "\n"))
    assert cli.main(["chat", *args]) == 2
    out, err = capsys.readouterr()
    assert out == turns[0]["text"] + "\n"
    assert f"{turns[0]['prompt_tokens']} (0 from the cache) + 3 tokens, ended by number" in err
    assert re.search(r"error: with this question the conversation has \d{3} tokens and the context "
                     "holds 128; start a new one$", err)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stdin", [Terminal, io.StringIO])
def test_interrupted_answer(folder, tmp_path, capsys, monkeypatch, stdin):
    """On a terminal the conversation goes on, and what was answered is part of it."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    configure(folder, chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")
    args = ["chat", "--model", str(folder), "--target", "golden", "-n", "5", "--json", "-"]
    whole = GoldenTarget.generate

    def interrupted(self, tokens, *args, **kw):
        for at, event in enumerate(whole(self, tokens, *args, **kw)):
            if at == 2 and tokens == first:
                raise KeyboardInterrupt
            yield event
    monkeypatch.setattr("sys.stdin", stdin("Hello\nGood\n"))
    model = load_model(folder)
    first = Conversation(model.chat, model.tokenizer).ask("Hello")
    monkeypatch.setattr(GoldenTarget, "generate", interrupted)
    status = cli.main(args)
    out, err = capsys.readouterr()
    if stdin is io.StringIO:
        assert status == 130 and "interrupted" in err
        return
    turns = json.loads(out)["turns"]
    assert status == 0 and [len(t["tokens"]) for t in turns] == [2, 5]
    assert [t["end"] for t in turns] == ["Ctrl-C", "number of tokens"]
    assert len(first) <= turns[1]["cached_tokens"] <= len(first) + 2


def test_chat_needs_a_template(capsys):
    assert cli.main(["chat", "--target", "golden"]) == 2
    assert "stories came without a chat template" in capsys.readouterr().err
