"""Where results are written to: files, links, pipes, devices, and what is refused beforehand."""
import os
import subprocess
import sys
import threading

import pytest
from meadowlark import cli
from meadowlark.errors import UserError
from meadowlark.files import check_outputs, remove_unfinished, temporary_folder, write_atomic

if sys.platform == "win32":
    pytest.skip("links, pipes and modes are those of POSIX", allow_module_level=True)

NEW = b"new", b"er"
ROOT = os.geteuid() == 0
MEADOWLARK = [sys.executable, "-m", "meadowlark.cli"]


def test_a_file_keeps_its_mode(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"old")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o604)
    inode = path.stat().st_ino
    write_atomic(path, *NEW)
    assert path.read_bytes() == b"newer" and path.stat().st_mode & 0o777 == 0o604
    assert path.stat().st_ino != inode      # replaced at once
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(tmp_path, there):
    folder = tmp_path / "folder"
    folder.mkdir()
    if there:
        (folder / "x").write_bytes(b"old")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("folder/x")
    check_outputs(str(tmp_path / "a"))
    write_atomic(tmp_path / "a", *NEW)
    assert (folder / "x").read_bytes() == b"newer" and not (folder / "x").is_symlink()
    assert os.readlink(tmp_path / "a") == "b" and os.readlink(tmp_path / "b") == "folder/x"
    assert os.listdir(folder) == ["x"]


def test_other_names_of_a_file_have_the_same_content(tmp_path):
    (tmp_path / "a").write_bytes(b"long and old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    write_atomic(tmp_path / "a", *NEW)
    assert (tmp_path / "b").read_bytes() == b"newer"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_pipe_by_name(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    check_outputs(str(path))
    reader.start()
    write_atomic(path, *NEW)
    reader.join(10)
    assert got == [b"newer"] and path.is_fifo()


def test_a_device(tmp_path):
    """A terminal: never replaced, by a link to it neither."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    (tmp_path / "link").symlink_to(name)
    for path in (name, str(tmp_path / "link")):
        check_outputs(path, path)       # takes any number of results
        write_atomic(path, *NEW)
        assert os.read(master, 99) == b"newer"
    assert os.path.samestat(os.stat(name), os.fstat(slave)) and (tmp_path / "link").is_symlink()
    os.close(slave)
    os.close(master)


def test_an_open_file(tmp_path):
    """Written on from where it is, not anew: /dev/stdout may be a file with something in it."""
    with (tmp_path / "x").open("wb", buffering=0) as file:
        file.write(b"first, ")
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            if os.path.exists(name):
                check_outputs(name)
                write_atomic(name, *NEW)
        file.write(b", last")
    assert (tmp_path / "x").read_bytes().startswith(b"first, newer")
    assert (tmp_path / "x").read_bytes().endswith(b"newer, last")


@pytest.mark.skipif(ROOT, reason="root may write in any folder")
def test_a_folder_that_allows_no_new_file(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_bytes(b"long and old")
    folder.chmod(0o500)
    check_outputs(str(folder / "x"))
    write_atomic(folder / "x", *NEW)
    assert (folder / "x").read_bytes() == b"newer"
    with pytest.raises(UserError, match="Permission denied"):
        check_outputs(str(folder / "y"))
    (folder / "x").chmod(0o400)
    with pytest.raises(UserError, match="Permission denied"):
        check_outputs(str(folder / "x"))
    folder.chmod(0o700)


def test_what_is_refused_beforehand(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "hard").hardlink_to(path)
    x = str(path)
    for outputs, inputs, sentence in (
            ([str(tmp_path)], [], f"cannot write {tmp_path}: it is a folder"),
            ([f"{tmp_path}/no/x"], [], f"there is no folder {tmp_path}/no"),
            ([f"{tmp_path}/new/"], [], "there is no such folder"),
            ([f"{x}/y"], [], "Not a directory"),
            ([f"{tmp_path}/loop"], [], "Too many levels of symbolic links"),
            (["/dev/fd/987"], [], "no open file of this number"),
            ([""], [], "a name is missing"),
            ([f"{tmp_path}/{'n' * 300}"], [], "File name too long"),
            ([x, x], [], "is another output"),
            ([f"{tmp_path}/new", f"{tmp_path}/./new"], [], "is another output"),
            ([x, None, f"{tmp_path}/link"], [], "is another output"),
            ([x, f"{tmp_path}/hard"], [], "is another output"),
            (["-", "/dev/stdout"], [], "is another output"),
            ([x], [f"{tmp_path}/link"], "is read by this command")):
        with pytest.raises(UserError, match="^cannot write ") as refused:
            check_outputs(*outputs, inputs=inputs)
        assert sentence in str(refused.value)
    check_outputs(x, f"{tmp_path}/new", None, "-", inputs=[str(tmp_path), None, "stories"])
    assert path.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == [
        "hard", "link", "loop", "x"]


@pytest.mark.parametrize("args", [
    ["generate", "Once", "--json"], ["chat", "--json"], ["bench", "--json"], ["eval", "--json"],
    ["compile", "stories", "-o"], ["compile", "stories", "-o", "x", "--json"], ["build", "--json"],
    ["info", "--json"], ["info", "stories", "--plot"]])
def test_a_missing_folder_is_named_before_the_work(args, tmp_path, monkeypatch, capsys):
    """Nothing is read, compiled or run before."""
    def never(*_, **__):
        raise AssertionError("work was done")
    from meadowlark.chip import build
    from meadowlark.run import targets
    from meadowlark.run.prepare import Source
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(targets, "open_target", never)
    monkeypatch.setattr(build, "build", never)
    monkeypatch.setattr(Source, "tell", never)
    assert cli.main([*args, "no/such"]) == 2
    assert f"there is no folder {tmp_path}/no\n" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_compiling_does_not_overwrite_the_model(tmp_path, capsys):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    assert cli.main(["compile", str(path), "-o", str(path)]) == 2
    assert "is read by this command" in capsys.readouterr().err and path.read_bytes() == b"GGUF"


def test_half_results_go_with_the_process(tmp_path):
    with temporary_folder(tmp_path, "half-") as folder:
        (folder / "x").write_bytes(b"x")
        remove_unfinished()
        assert os.listdir(tmp_path) == []


def test_process_substitution():
    """``--json >(cat)`` of bash, /dev/stdout in a pipe, and a stream behind a descriptor."""
    command = " ".join(MEADOWLARK)
    for line in (f"{command} info virtual --json >(cat)", f"{command} info --json /dev/stdout",
                 f"{command} info virtual --json /dev/fd/3 3>&1 | cat"):
        done = subprocess.run(["bash", "-c", f"{line}; wait"], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.count('"title"') + done.stdout.count('"boards"') == 1, done
        assert done.stdout.count("{") == done.stdout.count("}") > 0


def test_streams_that_are_closed_or_full():
    """No traceback: what goes nowhere goes nowhere, and a result that has no room is told."""
    command = " ".join(MEADOWLARK)
    for line, status, told in (
            (f"{command} info virtual >&-", 0, ""), (f"{command} info virtual 2>&-", 0, "title"),
            (f"{command} info no-such 2>&-", 2, ""), (f"{command} info no-such <&- 2>&1", 2, "is"),
            (f"{command} generate a --target golden -n 2 <&- 2>&- >&-", 0, ""),
            (f"{command} info virtual --json - <&-", 0, "title"),
            *([(f"{command} info virtual >/dev/full", 2, "No space"),
               (f"{command} info virtual --json - >/dev/full", 2, "No space"),
               (f"{command} info no-such 2>/dev/full", 2, "")]
              if os.path.exists("/dev/full") else ())):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == status and told in said and "Traceback" not in said, (line, said)
