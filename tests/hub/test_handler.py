"""handler.py of a repository behind a small server that does what an Inference Endpoint's does with it."""

import base64
import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hostile import hollow_png
from PIL import Image
from tiny_zoo import pictures, tiny

from hf_clipplus.hub import handler as packaged
from hf_clipplus.hub import write_repository

SERVED = {
    "zero-shot-image-classification": ("fff", {"candidate_labels": ["boat", "cat " * 60]}),
    "image-feature-extraction": ("fff", {}),
    "image-classification": ("ape", {"top_k": 2}),
    "clipplus-zero-shot-segmentation": ("groupvit", {"class_names": ["boat", "cat"], "background": 0.5}),
}
LABELS = {"candidate_labels": ["boat", "cat"]}


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def serve(answer):
    """`answer(path, body) -> (status, headers, body)` on a free port; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, headers, data = answer(self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def endpoint(handler):
    """What the endpoint's server does: JSON in, JSON out, and whatever is raised becomes status 400."""

    def answer(path, body):
        try:
            return 200, {}, json.dumps(handler(json.loads(body))).encode()
        except Exception as error:
            return 400, {}, json.dumps({"error": str(error)}).encode()

    return serve(answer)


def ask(address: str, data) -> tuple[int, object]:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, data=body)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def load(folder, **options):
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder), **options)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folders = {}
    for task, (variant, _) in SERVED.items():
        folders[task] = tmp_path_factory.mktemp("repository")
        write_repository(*tiny(variant), folders[task], "org/x", bundle=True, handler_task=task)
    return folders


@pytest.fixture(scope="module")
def zero_shot(repositories):
    return load(repositories["zero-shot-image-classification"])


@pytest.fixture(scope="module")
def address(zero_shot):
    with endpoint(zero_shot) as address:
        yield address


@pytest.mark.parametrize("task", SERVED)
def test_every_task_answers(repositories, task):
    image = pictures(1)[0].resize((64, 48))
    with endpoint(load(repositories[task])) as address:
        status, answer = ask(address, {"inputs": encoded(image), "parameters": SERVED[task][1]})
    assert status == 200, answer
    if task == "image-feature-extraction":
        assert len(answer[0]) == 12
        return
    assert len(answer) >= 1
    assert all({"label", "score"} <= entry.keys() for entry in answer)
    if task == "clipplus-zero-shot-segmentation":
        masks = [Image.open(io.BytesIO(base64.b64decode(entry["mask"]))) for entry in answer]
        assert {mask.size for mask in masks} == {(64, 48)}
        assert sum(mask.histogram()[255] for mask in masks) == 64 * 48


def test_one_picture_or_several_in_any_coding(address, zero_shot):
    first, second = pictures(2)
    status, alone = ask(address, {"inputs": encoded(first), "parameters": LABELS})
    assert status == 200
    assert {entry["label"] for entry in alone} == set(LABELS["candidate_labels"])
    assert alone == sorted(alone, key=lambda entry: -entry["score"])
    both = [encoded(first), "data:image/png;base64," + encoded(second)]
    status, answers = ask(address, {"inputs": both, "parameters": LABELS})
    assert status == 200
    assert answers[0] == alone
    assert answers[1] != alone
    assert zero_shot({"inputs": first, "parameters": LABELS}) == alone, "the server decodes bodies of type image/*"
    assert zero_shot({"inputs": base64.b64decode(encoded(first)), "parameters": LABELS}) == alone


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b'{"inputs": ', "Expecting value"),
        (["not", "an", "object"], "expected a JSON object"),
        ({"parameters": LABELS}, "expected a JSON object"),
        ({"inputs": [], "parameters": LABELS}, "expected 1 to 16 pictures, got 0"),
        ({"inputs": ["x"] * 17, "parameters": LABELS}, "expected 1 to 16 pictures, got 17"),
        ({"inputs": "x"}, 'must have "candidate_labels"'),
        ({"inputs": "x", "parameters": {"candidate_labels": []}}, 'must have "candidate_labels"'),
        ({"inputs": "x", "parameters": LABELS | {"timeout": 1}}, r"unknown parameters ['timeout']"),
        ({"inputs": "x", "parameters": ["boat"]}, "parameters must be an object, got list"),
        ({"inputs": "x", "parameters": {"candidate_labels": [{"deep": 1}]}}, "must be a text, a number or a list"),
        ({"inputs": "x", "parameters": {"candidate_labels": {"a": 1}}}, "must be a text, a number or a list"),
        ({"inputs": "x", "parameters": {"candidate_labels": ["a"] * 257}}, "at most 256 texts of 1000 characters"),
        ({"inputs": "x", "parameters": {"candidate_labels": ["a" * 1001]}}, "at most 256 texts of 1000 characters"),
        ({"inputs": "/etc/passwd", "parameters": LABELS}, "paths are not opened"),
        ({"inputs": "file:///etc/passwd", "parameters": LABELS}, "paths are not opened"),
        ({"inputs": "http://127.0.0.1:1/x.png", "parameters": LABELS}, "opens no addresses of '127.0.0.1'"),
        ({"inputs": 3, "parameters": LABELS}, "picture 0 is int, expected base64 text"),
        ({"inputs": base64.b64encode(b"no picture").decode(), "parameters": LABELS}, "cannot be read"),
        ({"inputs": "A" * 14_000_001, "parameters": LABELS}, "picture 0 is larger than 10 MB"),
        (
            {"inputs": base64.b64encode(hollow_png(7_000, 6_000)).decode(), "parameters": LABELS},
            "picture 0 is 7000x6000, larger than 40 megapixels",
        ),
        (
            {"inputs": base64.b64encode(hollow_png(50_000, 50_000)).decode(), "parameters": LABELS},
            "could be decompression bomb",
        ),
    ],
)
def test_what_is_refused(address, request_, message):
    status, error = ask(address, request_)
    assert status == 400
    assert message in error


def test_a_damaged_picture_is_refused(address):
    data = base64.b64decode(encoded(pictures(1)[0].resize((200, 200)), "JPEG"))
    status, error = ask(address, {"inputs": base64.b64encode(data[: len(data) // 2]).decode(), "parameters": LABELS})
    assert (status, error.startswith("picture 0 is damaged: ")) == (400, True)


def test_no_picture_is_begun_when_the_time_is_over(zero_shot, repositories):
    slow = load(repositories["zero-shot-image-classification"], limits=packaged.Limits(seconds=-1))
    with pytest.raises(ValueError, match="seconds are over after 0 pictures"):
        slow({"inputs": encoded(pictures(1)[0]), "parameters": LABELS})


def test_addresses_of_allowed_hosts_and_no_others(repositories, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    image = base64.b64decode(encoded(pictures(1)[0]))
    pages = {"/a.png": (200, {}, image), "/large.png": (200, {}, bytes(2_000_000)), "/away": (302, {}, b"")}

    def answer(path, body):
        status, headers, data = pages.get(path, (404, {}, b""))
        return status, headers | ({"Location": f"http://localhost:{port}/a.png"} if status == 302 else {}), data

    with serve(answer) as pictures_at:
        port = pictures_at.rpartition(":")[2]
        monkeypatch.setenv("HANDLER_ALLOWED_HOSTS", "example.org, 127.0.0.1")
        found = load(repositories["zero-shot-image-classification"], limits=packaged.Limits(megabytes=1))
        assert found({"inputs": f"{pictures_at}/a.png", "parameters": LABELS}) == found(
            {"inputs": image, "parameters": LABELS}
        )
        for url, message in (
            (f"http://localhost:{port}/a.png", "opens no addresses of 'localhost'"),
            (f"http://127.0.0.1@localhost:{port}/a.png", "opens no addresses of 'localhost'"),
            (f"{pictures_at}/away", "could not be fetched: HTTP Error 302"),
            (f"{pictures_at}/large.png", "is larger than 1 MB"),
            (f"{pictures_at}/none.png", "could not be fetched: HTTP Error 404"),
        ):
            with pytest.raises(ValueError, match=message):
                found({"inputs": url, "parameters": LABELS})
