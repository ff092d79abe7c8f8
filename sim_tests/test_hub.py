"""Models of the Hugging Face Hub, from a stub of it."""
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from random_model import random_model

from meadowlark.errors import UserError
from meadowlark.models import hub

SHA = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "somebody/small-model"


class Stub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the Hub, for one repository; ``server.files`` has its files."""
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path, _, _ = self.path.partition("?")
        files = self.server.files
        self.server.asked.append(path)
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            self.reply([{"type": "file", "path": name, "size": len(data),
                         "oid": hashlib.sha1(data).hexdigest()} for name, data in files.items()])
        elif path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/main"):
            self.reply({"id": REPOSITORY, "modelId": REPOSITORY, "sha": SHA, "private": False,
                        "siblings": [{"rfilename": name} for name in files]})
        elif path.startswith(f"/{REPOSITORY}/resolve/") and path.split("/", 5)[5] in files:
            data = files[path.split("/", 5)[5]]
            self.reply(data if body else b"", {
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA,
                "Content-Length": str(len(data))})
        else:
            gated = "gated" in path
            self.reply(b"", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound",
                             "Content-Length": "0"}, status=403 if gated else 404)

    def reply(self, what, headers=None, status=200):
        data = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in (headers or {"Content-Type": "application/json",
                                        "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def stub(tmp_path, seed):
    """The server, with a random model and files that are not needed; and an environment."""
    folder = random_model(tmp_path / "model", seed=seed, heads=2, kv_heads=2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.asked = []
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "README.md": b"# Small", "onnx/config.json": b"no", "pytorch_model.bin": b"no",
        "of-others.gguf": b"no GGUF at all, but long enough to be looked into by the reader ...."}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"),
        "MEADOWLARK_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "TERM": "dumb"}
    server.folder = folder
    yield server
    server.shutdown()
    server.server_close()


def generate(model, environment):
    return subprocess.run(
        [sys.executable, "-m", "meadowlark.cli", "generate", "-m", str(model), "--ids", "5,7",
         "-n", "3", "--target", "golden", "--json", "-"],
        env=environment, capture_output=True, text=True, timeout=300)


def test_a_folder(stub):
    """Fetched once, what is needed of it; then without the Hub."""
    done = generate(f"hf:{REPOSITORY}", stub.environment)
    assert done.returncode == 0, done.stderr
    assert "fetching somebody/small-model" in done.stderr
    got = json.loads(done.stdout)
    want = json.loads(generate(stub.folder, stub.environment).stdout)
    assert got["tokens"] == want["tokens"] and got["model"] == "small-model"
    fetched = {path.split("/", 5)[5] for path in stub.asked if "/resolve/" in path}
    assert fetched == {name for name in stub.files
                       if name.endswith((".json", ".safetensors")) and "/" not in name}
    stub.asked.clear()
    again = generate(f"hf:{REPOSITORY}", stub.environment | {"HF_HUB_OFFLINE": "1"})
    assert json.loads(again.stdout)["tokens"] == got["tokens"] and not stub.asked


@pytest.mark.parametrize("name, sentence", [
    ("hf:somebody/nothing", "has no model somebody/nothing"),
    ("hf:somebody/gated", "accepted its terms"),
    (f"hf:{REPOSITORY}/missing.gguf", "has no file missing.gguf"),
    (f"hf:{REPOSITORY}/of-others.gguf", "neither a GGUF file"),
    ("hf:somebody/bad name", "cannot be the name"), ("hf:nobody", "give hf:owner/name")])
def test_refused(stub, name, sentence):
    done = generate(name, stub.environment)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_no_network(stub):
    stub.shutdown()
    stub.server_close()
    done = generate(f"hf:{REPOSITORY}", stub.environment)
    assert done.returncode == 2 and "cannot fetch the model" in done.stderr, done.stderr


def test_names():
    assert hub.parts("hf:a/b") == ("a/b", "")
    assert hub.parts("hf:a/b/c/d.gguf") == ("a/b", "c/d.gguf")
    for name in ("hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/b/c.bin"):
        with pytest.raises(UserError, match="names no model"):
            hub.parts(name)
