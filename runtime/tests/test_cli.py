"""The command as a process: output, mistakes, streams, and what it imports."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import minialbert_runtime
from minialbert_runtime.lines import to_json_line

SOURCE = str(Path(minialbert_runtime.__file__).parents[1])
# Runs the command where a module of the training side cannot be imported, installed or not.
WITHOUT_TRAINING = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "minialbert", "huggingface_hub", "pydantic", "typer"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from minialbert_runtime.cli import main
main()
"""


def start(*arguments, program=("-m", "minialbert_runtime"), **options):
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE, "PYTHONIOENCODING": "ascii"},
        # A process that was started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def run(*arguments, stdin=b"", **options):
    process = start(*arguments, **options)
    out, err = process.communicate(stdin, timeout=60)
    return process.returncode, out.decode(), err.decode()


def refuse(*arguments, **options):
    status, out, err = run(*arguments, **options)
    assert (status, out) == (2, "")
    assert err.startswith("minialbert-runtime: ") and err.count("\n") == 1
    return err


def test_answers_where_nothing_of_the_training_side_can_be_imported(tagger):
    status, out, err = run(tagger, "the new city", program=("-c", WITHOUT_TRAINING))
    assert (status, err) == (0, "")
    (entity,) = json.loads(out)["entities"]
    assert (entity["start"], entity["end"], entity["label"]) == (8, 12, "City")


def test_package_imports_no_library_until_a_model_is_wanted():
    code = "import minialbert_runtime, minialbert_runtime.cli, sys; print('numpy' in sys.modules)"
    assert run(program=("-c", code))[:2] == (0, "False\n")


@pytest.mark.parametrize("module", ["encoding", "words", "lines", "folder", "answers"])
def test_no_module_but_the_models_needs_onnx_runtime(module):
    code = f"import sys; sys.modules['onnxruntime'] = None; import minialbert_runtime.{module}"
    assert run(program=("-c", code)) == (0, "", "")


def test_missing_library_is_named(tagger):
    code = f"import sys; sys.modules['onnxruntime'] = None\n{WITHOUT_TRAINING}"
    assert "onnxruntime is missing: pip install onnxruntime" in refuse(tagger, "x", program=("-c", code))


def test_help_has_examples_a_line_each():
    for words in ((), ("serve",)):
        status, out, err = run(*words, "--help")
        assert (status, err) == (0, "")
        assert f"\n{' '.join(('minialbert-runtime', *words))} exported/" in out
        assert "or name of an installed model" in " ".join(out.split())


def test_options_may_stand_between_texts(classifier):
    arguments = ("king", "--threads", 1, "--batch-size", 1, "ré\u2028", "--threshold", 0.2)
    status, out, err = run(classifier, *arguments)
    assert (status, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["king", "ré\u2028"]
    assert "ré\\u2028" in out


def test_pair_goes_with_each_text(classifier):
    _, out, _ = run(classifier, "king", "city", "--pair", "river")
    assert [json.loads(line)["pair"] for line in out.splitlines()] == ["river", "river"]


def test_lines_of_file_and_standard_input(classifier, tmp_path):
    content = b"\xef\xbb\xbfking\r\n\n\xc3\xa9 river"
    (tmp_path / "texts.txt").write_bytes(content)
    from_file = run(classifier, "--input", tmp_path / "texts.txt")
    assert from_file == run(classifier, "--file", "-", stdin=content)
    assert from_file[0] == 0
    assert [json.loads(line)["text"] for line in from_file[1].splitlines()] == ["king", "", "é river"]


def test_mistakes_are_one_line(classifier, tmp_path):
    (tmp_path / "a.txt").write_text("king\n")
    assert "give either texts or --input" in refuse(classifier)
    assert "give either texts or --input" in refuse(classifier, "x", "--input", "-")
    assert f"{tmp_path / 'a.txt'} is a file: give --input" in refuse(classifier, tmp_path / "a.txt")
    assert "- stands for standard input: give --input -" in refuse(classifier, "-")
    assert "invalid float value" in refuse(classifier, "x", "--threshold", "much")
    assert "threshold from 0 to 1, found 2" in refuse(classifier, "x", "--threshold", 2)
    assert "required: MODEL_DIR" in refuse()
    assert "no such folder" in refuse(tmp_path / "nowhere", "x")
    assert "has no export.json" in refuse(tmp_path, "x")
    assert "no such file" in refuse(classifier, "--input", tmp_path / "nothing.txt")
    (tmp_path / "texts.JSONL").write_text('{"text": "king"}\n')
    assert "is a table, and --input takes a file of one text a line" in refuse(
        classifier, "--input", tmp_path / "texts.JSONL"
    )
    assert "stdin:1: not UTF-8 (byte 0xe9)" in refuse(classifier, "--input", "-", stdin=b"\xe9\n")
    assert "stdin:1: a NUL byte" in refuse(classifier, "--input", "-", stdin=b"a\0b\n")


def test_lines_for_people_are_those_of_the_library(tagger):
    status, out, _ = run(tagger, "--format", "table", "the new city")
    (entity,) = json.loads(run(tagger, "the new city")[1])["entities"]
    shown = f"[{entity['text']} {entity['label']} {entity['score']:.3g}]"
    assert (status, out) == (0, "the new city\n".replace(entity["text"], shown))


def test_reader_that_goes_away_is_no_error(classifier, tmp_path):
    (tmp_path / "texts.txt").write_text("king\n" * 20_000)
    process = start(classifier, "--input", tmp_path / "texts.txt", "--batch-size", 1)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == b""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupt_is_quiet(classifier):
    process = start(classifier, "--input", "-", "--batch-size", 1)
    process.stdin.write(b"king\n" * 16)
    process.stdin.flush()
    process.stdout.readline()  # it has started, and waits for the next line
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)  # before its input ends, which would end it too
    assert (process.returncode, process.communicate()[1]) == (130, b"")


def test_json_line_is_one_line():
    line = to_json_line({"text": 'é\n\u2028\x85\x0b中"'})
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": 'é\n\u2028\x85\x0b中"'}
    for number in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json_line({"score": float(number)})


def test_numbers_have_six_digits_and_large_ones_are_whole():
    numbers = [0.123456789, 1 / 3e7, 4.123456789, 123456.789, 1234567.89, 7, True, 0.5]
    assert to_json_line({"a": {"b": numbers}}) == (
        '{"a": {"b": [0.123457, 3.33333e-08, 4.12346, 123457.0, 1234568.0, 7, true, 0.5]}}'
    )
