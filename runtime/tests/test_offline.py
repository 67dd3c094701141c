"""The proof that a run asks for no network: what its record says, and that it fails where something is asked for."""

import json
import os

import pytest
from test_cli import run

ASKS = """
import os, socket, subprocess, sys
from minialbert_runtime import model
plain = model.Model._run

def asks(self, rows, session):
    try:
        {}
    except OSError:
        pass
    return plain(self, rows, session)

model.Model._run = asks
from minialbert_runtime.cli import main
main()
"""


def test_the_record_says_that_nothing_was_asked_for(tagger, tmp_path):
    proof = tmp_path / "proof.json"
    (tmp_path / "texts.txt").write_text("the city\na river\n")
    status, out, err = run(tagger, "--input", tmp_path / "texts.txt", "--prove-offline", proof)
    assert (status, err, out.count("\n")) == (0, "", 2)
    record = json.loads(proof.read_text())
    assert (record["offline"], record["asked"], record["open_sockets"]) == (True, [], [])
    assert (record["onnxruntime_telemetry"], record["texts"]) == ("off", 2)
    assert record["model"]["name"] == "exported" and len(record["model"]["files"]) == 64
    assert {"python", "minialbert_runtime", "onnxruntime"} <= record["versions"].keys()
    assert str(tmp_path) not in proof.read_text()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("socket.create_connection(('192.0.2.1', 80), 1)", "192.0.2.1"),
        ("socket.getaddrinfo('name.invalid', 80)", "name.invalid"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))", "192.0.2.1"),
        ("subprocess.run([sys.executable, '-c', ''])", "subprocess.Popen"),
        ("self.kept = socket.socket()", "socket:"),
    ],
)
def test_what_is_asked_for_is_refused_and_named(tagger, tmp_path, code, found):
    proof = tmp_path / "proof.json"
    status, _, err = run(tagger, "king", "--prove-offline", proof, program=("-c", ASKS.format(code)))
    assert status == 2 and "the run was not offline" in err and found in err and err.count("\n") == 1
    assert json.loads(proof.read_text())["offline"] is False


def test_telemetry_that_somebody_switched_on_is_no_proof(tagger, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "ORT_DISABLE_TELEMETRY", "0")
    code = "import sys; sys.modules['onnxruntime'] = type(sys)('onnxruntime')"  # it would begin to send
    code += "\nfrom pathlib import Path\nfrom minialbert_runtime.offline import Guard\n"
    code += f"Guard().record(Path({str(tmp_path / 'p.json')!r}), Path({str(tagger)!r}), 1)"
    status, _, err = run(program=("-c", code))
    assert status == 1 and "ONNX Runtime's telemetry is on" in err


def test_a_record_that_cannot_be_written_is_told(tagger, tmp_path):
    status, _, err = run(tagger, "king", "--prove-offline", tmp_path / "none" / "proof.json")
    assert status == 2 and "the record cannot be written" in err
