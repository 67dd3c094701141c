"""Results worked out by hand, and mistakes in folder, options and texts."""

import json
import math
import os
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import IDS, TAGS, VOCABULARY, counting_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minialbert_runtime import Model, RuntimeUserError
from minialbert_runtime.folder import is_exported, read_folder


def softmax(*logits):
    powers = [math.exp(logit) for logit in logits]
    return [power / sum(powers) for power in powers]


# Classes and scores


def test_class_is_the_most_probable_label(classifier):
    result = Model(classifier)("king river king")
    a, b, c = softmax(2, 2, 0)
    assert result == {
        "text": "king river king",
        "label": "a",
        "score": pytest.approx(a, abs=1e-6),
        "scores": {"a": pytest.approx(a, abs=1e-6), "b": pytest.approx(b, abs=1e-6), "c": pytest.approx(c)},
    }


def test_a_calibrated_class_needs_its_threshold(classifier):
    change(classifier, "task.json", decision={"temperature": 2.0, "thresholds": {"a": 0.9, "c": 0.3}})
    result = Model(classifier)("king river king")
    scores = softmax(1, 1, 0)  # halved by the temperature
    assert list(result["scores"].values()) == pytest.approx(scores, abs=1e-6)
    # The odds of "a" have to be above 9 for it to win, those of "c" above 3/7: 0.42/9, 0.42, 0.16 * 7/3.
    assert (result["label"], result["score"]) == ("b", pytest.approx(scores[1], abs=1e-6))
    assert Model(classifier)("new city")["label"] == "c"
    assert Model(classifier, threshold=0.4)("king river king")["label"] == "a"  # stands in place of them


def test_calibrated_entities_need_the_threshold_of_their_type(tagger):
    text = "the city river and king"
    assert [one["label"] for one in Model(tagger)(text)["entities"]] == ["City", "King"]
    change(tagger, "task.json", decision={"temperature": 1.0, "thresholds": {"City": 0.95}})
    (king,) = Model(tagger)(text)["entities"]
    assert (king["label"], king["score"]) == ("King", pytest.approx(9 / 12, abs=1e-6))
    change(tagger, "task.json", decision={"temperature": 1.0, "thresholds": {"King": 0.09}})
    assert [one["label"] for one in Model(tagger)(text)["entities"]][0] == "King"  # of "the", which O had


def test_a_path_has_no_broken_tags_and_crosses_windows(exported):
    table = np.zeros((len(VOCABULARY), len(TAGS)))
    table[:, 0] = 2
    for token, values in (
        ("city", {"B-City": 3}),
        ("king", {"B-King": 3}),
        ("river", {"I-City": 3, "O": 2.5}),
        ("é", {"I-City": 5, "B-City": 4}),
    ):
        table[IDS[token]] = [values.get(tag, 0) for tag in TAGS]
    folder = exported("token", TAGS, table, max_length=8, overlap=2)

    def found(text, **options):
        return [(one["text"], one["label"]) for one in Model(folder, **options)(text)["entities"]]

    text, city = "new river king river é river city river", ("city river", "City")
    alone = [("river", "City"), ("king", "King"), ("river é river", "City"), city]
    assert found(text) == alone
    change(folder, "task.json", decision={"decoding": "alone"})
    assert found(text) == alone
    change(folder, "task.json", decision={"decoding": "viterbi"})
    change(folder, "export.json", format_version=4)
    assert found(text) == [("king", "King"), ("é river", "City"), city]
    (entity,) = Model(folder)("new é")["entities"]
    assert entity["score"] == pytest.approx(softmax(0, 4, 5, 0)[1], abs=1e-6)  # of the tag that is chosen
    assert found("new é", threshold=0.9) == []  # left out after the path is found
    whole = "city" + " river" * 19  # in windows of 6 words
    assert found(whole) == [(whole, "City")]


def test_batch_is_padded_and_masked(classifier):
    texts = ["king", "", "river river new city", "king king king"]
    results = list(Model(classifier, batch_size=4).predict(texts))
    assert [result["text"] for result in results] == texts
    expected = [softmax(1, 0, 0), softmax(0, 0, 0), softmax(0, 4, 0), softmax(3, 0, 0)]
    for result, scores in zip(results, expected, strict=True):
        assert list(result["scores"].values()) == pytest.approx(scores, abs=1e-6)


def test_long_text_is_read_in_weighted_windows(exported):
    folder = exported("single-label", ("a", "b", "c"), counting_table(), max_length=8, overlap=2)
    text = "king " * 6 + "river " * 4
    # Windows of 6 tokens, 2 of them shared: tokens 0-5, 4-9. The second adds 4 of the 10 tokens.
    mean = [0.6 * 6 + 0.4 * 2, 0.6 * 0 + 0.4 * 8, 0]
    result = Model(folder)(text)
    assert result["windows"] == 2
    assert list(result["scores"].values()) == pytest.approx(softmax(*mean), abs=1e-6)
    assert "cut" not in result


def test_pair_has_its_token_types(exported):
    table = np.zeros((len(VOCABULARY), 1))
    table[IDS["king"], 0] = 1
    folder = exported(
        "regression", ("score",), table, inputs=("input_ids", "attention_mask", "token_type_ids")
    )
    model = Model(folder)
    assert model("king king") == {"text": "king king", "score": 2}
    # "new", "king" and the last [SEP] are of type 1.
    assert model("king king", "new king") == {"text": "king king", "pair": "new king", "score": 303}


def test_tokenizer_without_token_types_feeds_zeros(exported):
    table = np.zeros((len(VOCABULARY), 1))
    folder = exported(
        "regression", ("score",), table, inputs=("token_type_ids", "input_ids", "attention_mask")
    )
    change(folder, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert Model(folder)("king", "new king")["score"] == 0


def test_long_pair_repeats_the_shorter_text(exported):
    folder = exported("single-label", ("a", "b", "c"), counting_table(), max_length=11, overlap=0)
    # Room for 8 tokens: the first text keeps 4 of 6, which leaves 4 for each window of the second.
    result = Model(folder)("king " * 6, "river " * 8)
    assert (result["windows"], result["cut"]) == (2, 2)
    assert list(result["scores"].values()) == pytest.approx(softmax(4, 8, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("threshold", "labels"), [(0, ["a", "b", "c"]), (0.5, ["a", "b"]), (0.8, ["b"]), (1, [])]
)
def test_multi_label(exported, threshold, labels):
    folder = exported("multi-label", ("a", "b", "c"), counting_table())
    result = Model(folder, threshold=threshold)("king river")
    assert result["labels"] == labels
    expected = [1 / (1 + math.exp(-logit)) for logit in (1, 2, 0)]
    assert list(result["scores"].values()) == pytest.approx(expected, abs=1e-6)


# Entities


def test_entities_have_offsets_into_the_text_as_given(tagger):
    text = "\U0001f600 New CITY  river, e\u0301 kings\u4e2dking\n"
    city, kings, king = Model(tagger)(text)["entities"]
    chance = 9 / 12
    assert city == {
        "start": 6,
        "end": 17,
        "text": "CITY  river",
        "label": "City",
        "score": pytest.approx(chance, abs=1e-6),
    }
    assert (kings["text"], kings["label"]) == ("kings", "King")
    assert (king["text"], king["start"], king["end"]) == ("king", len(text) - 5, len(text) - 1)


def test_every_word_of_a_long_text_is_tagged_once(exported):
    table = np.zeros((len(VOCABULARY), len(TAGS)))
    table[IDS["king"], 3] = 5
    table[IDS["was"], 0] = 5
    folder = exported("token", TAGS, table, max_length=8, overlap=3)
    text = "king was " * 40
    entities = Model(folder)(text)["entities"]
    assert [entity["start"] for entity in entities] == list(range(0, len(text), 9))


def test_text_without_words_has_no_entities(tagger):
    assert list(Model(tagger).predict(["", " \t\n"])) == [
        {"text": "", "entities": []},
        {"text": " \t\n", "entities": []},
    ]


def test_word_without_pieces_is_the_unknown_token(tagger, exported):
    settings = json.loads((tagger / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (tagger / "tokenizer.json").write_text(json.dumps(settings))
    (entity,) = Model(tagger)("\u200b city")["entities"]
    assert (entity["start"], entity["end"]) == (2, 6)


def test_byte_level_words_carry_their_space(exported):
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([" city river"] * 9, trainer)
    table = np.zeros((tokenizer.get_vocab_size(), len(TAGS)))
    table[:, 0] = 1
    table[tokenizer.token_to_id("Ġcity"), 1] = 5
    folder = exported("token", TAGS, table, tokenizer=tokenizer)
    assert [entity["start"] for entity in Model(folder)("city xcity city")["entities"]] == [0, 11]


# Streams


def test_models_share_a_tokenizer_of_one_file_and_use(classifier):
    first, second = Model(classifier), Model(classifier)
    assert first._cuts.tokenizer is second._cuts.tokenizer
    config = classifier / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"split_special_tokens": True}))
    other = Model(classifier)
    assert other._cuts.tokenizer is not first._cuts.tokenizer
    (classifier / "tokenizer.json").write_text((classifier / "tokenizer.json").read_text() + "\n")
    assert Model(classifier)._cuts.tokenizer is not other._cuts.tokenizer


class EarlierTokenizer:
    """A tokenizer as before tokenizers 0.23: Python makes no weak reference to it."""

    __slots__ = ("inner",)

    def __init__(self, inner):
        object.__setattr__(self, "inner", inner)

    @classmethod
    def from_file(cls, path):
        return cls(Tokenizer.from_file(path))

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __setattr__(self, name, value):
        setattr(self.inner, name, value)


def test_an_earlier_tokenizers_does_too(classifier, monkeypatch):
    file = classifier / "tokenizer.json"
    file.write_text(file.read_text() + " ")  # so that no other test's is alive
    monkeypatch.setattr("minialbert_runtime.model.Tokenizer", EarlierTokenizer)
    first, second = Model(classifier), Model(classifier)
    assert type(first._cuts.tokenizer) is EarlierTokenizer
    assert first._cuts.tokenizer is second._cuts.tokenizer
    del first
    assert second("king")["label"]


def test_endless_input_is_read_a_chunk_at_a_time(classifier):
    read = []
    texts = (read.append(number) or f"king {number}" for number in count())
    results = Model(classifier, batch_size=2).predict(texts)
    assert read == []
    assert [result["text"] for result in islice(results, 40)] == [f"king {number}" for number in range(40)]
    assert len(read) == 64


# Mistakes


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json", "task.json", "export.json"])
def test_missing_and_damaged_files_are_named(classifier, name):
    (classifier / name).write_bytes(b"{ damaged")
    with pytest.raises(RuntimeUserError, match=name.replace(".", r"\.")) as damaged:
        Model(classifier)
    (classifier / name).unlink()
    with pytest.raises(RuntimeUserError, match=name.replace(".", r"\.")) as missing:
        Model(classifier)
    assert "\n" not in str(damaged.value) + str(missing.value)


@pytest.mark.parametrize("read", [read_folder, is_exported])
def test_a_text_in_the_place_of_a_folder_is_told_in_one_line(read):
    with pytest.raises(
        RuntimeUserError, match=r"^A text A .* cannot be opened \(.*\): expected the folder or the name"
    ):
        read("A text " * 50)


@pytest.mark.skipif(os.name == "nt", reason="needs modes of files")
@pytest.mark.parametrize("closed", ["", "export.json", "task.json", "model.onnx", "tokenizer.json"])
def test_what_this_user_may_not_read_is_named_with_a_way_out(classifier, closed, monkeypatch):
    is_root = os.geteuid() == 0
    for path in (classifier, *classifier.iterdir()):
        path.chmod(0o755)
    monkeypatch.chdir(classifier.parent)  # another user may not enter the folders above
    classifier.parent.chmod(0o755)
    (classifier / closed).chmod(0)
    if is_root:  # who may read all
        os.seteuid(65532)
    try:
        with pytest.raises(
            RuntimeUserError, match=rf"{closed or 'export.json'} may not be read .*chmod -R go\+rX"
        ):
            read_folder(classifier.name)
    finally:
        if is_root:
            os.seteuid(0)
        (classifier / closed).chmod(0o755)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("export.json", {"format_version": 5}, "format version 5.* reads versions 1 to 4: upgrade it"),
        ("export.json", {"format_version": "1"}, r"export\.json is damaged"),
        (
            "export.json",
            {"head": "masked-lm"},
            "has no task, so it does not label text: `minialbert finetune",
        ),
        ("export.json", {"head": "pooled"}, "was exported with the head 'pooled': expected features, seq"),
        ("export.json", {"head": "token-classification"}, "problem is 'single-label', and the head token-c"),
        ("task.json", {"max_length": 4}, "max_length is 4, expected 8 to 65536"),
        ("task.json", {"overlap": True}, "overlap is True"),
        ("task.json", {"long_texts": "half"}, "long_texts is 'half', expected cut or windows"),
        ("task.json", {"decision": {"thresholds": {"a": 1}}}, "decision.thresholds are not probabilities"),
        (
            "task.json",
            {"decision": {"thresholds": {"x": 0.5}}},
            "it has a threshold for 'x', which is no label",
        ),
        ("task.json", {"decision": {"decoding": "beam"}}, "decoding is 'beam', expected alone or viterbi"),
        ("task.json", {"words": {"joined": [1]}}, "words holds something else than lists of texts"),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, "does not name the ids 0, 1"),
        ("config.json", {"id2label": ["a", "b"]}, "id2label is not a mapping"),
        ("config.json", {"id2label": {"0": "a", "1": 2}}, "is not a text"),
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "a"}}, "two labels in id2label have one name"),
        ("config.json", {"id2label": None, "num_labels": 10**12}, "num_labels is over 1,000,000"),
        ("config.json", {"x": "x" * 2**26}, "it has over 64 MB"),
    ],
)
def test_facts_that_do_not_fit_are_refused(classifier, name, values, message):
    change(classifier, name, **values)
    with pytest.raises(RuntimeUserError, match=message):
        Model(classifier)


def test_labels_of_a_tagger_must_be_iob2(tagger):
    change(tagger, "config.json", id2label={"0": "NOUN", "1": "VERB", "2": "I-", "3": "O"})
    with pytest.raises(RuntimeUserError, match="this one has NOUN, VERB"):
        Model(tagger)


def test_names_that_transformers_leaves_out_are_its_own(exported):
    folder = exported("single-label", ("x", "y"), counting_table()[:, :2])
    (folder / "config.json").write_text("{}")
    assert Model(folder).labels == ("LABEL_0", "LABEL_1")
    change(folder, "config.json", num_labels=3)
    with pytest.raises(RuntimeUserError, match=r"logits of shape \(1, 2\), expected \(1, 3\)"):
        Model(folder)("king")


def body():
    import onnx.helper as make

    values = [make.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9), ("x", 1))]
    outputs = [make.make_tensor_value_info(name, kind, []) for name, kind in (("co", 9), ("xo", 1))]
    nodes = [make.make_node("Identity", ["c"], ["co"]), make.make_node("Identity", ["x"], ["xo"])]
    return make.make_graph(nodes, "body", values, outputs)


def spoilt_graphs():
    """What a graph from elsewhere may hold, as changes of a whole one, and what is said of it."""
    import onnx
    import onnx.helper as make

    def outside(tensor):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    def loop(model):
        model.graph.node.append(make.make_node("Loop", ["", "", ""], ["y"], body=body()))

    def constant(model):
        tensor = onnx.TensorProto(data_type=1, dims=[1])
        outside(tensor)
        model.graph.node.append(make.make_node("Constant", [], ["y"], value=tensor))

    def gives(value):
        def change(model):
            del model.graph.output[:]
            if value is not None:
                model.graph.output.append(value)
            model.graph.node.append(make.make_node("Cast", ["input_ids"], ["y"], to=7))
            model.graph.node.append(make.make_node("SequenceConstruct", ["input_ids"], ["z"]))

        return change

    return {
        "a loop": (loop, "holds a graph within the graph, which no exported model has"),
        "weights outside": (lambda model: outside(model.graph.initializer[0]), "holds weights outside of the file"),
        "a constant outside": (constant, "holds weights outside of the file"),
        "functions": (lambda model: model.functions.add(name="f"), "holds functions"),
        "no output": (gives(None), "gives nothing: expected logits"),
        "whole numbers": (gives(make.make_tensor_value_info("y", 7, None)), r"gives tensor\(int64\): expected"),
        "a sequence": (gives(make.make_tensor_sequence_value_info("z", 7, None)), r"gives seq\(tensor\(int64\)\)"),
    }  # fmt: skip


@pytest.mark.parametrize("what", list(spoilt_graphs()))
def test_graphs_that_no_export_has_are_refused(what, classifier):
    import onnx

    change, message = spoilt_graphs()[what]
    model = onnx.load(str(classifier / "model.onnx"))
    change(model)
    (classifier / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RuntimeUserError, match=message):
        Model(classifier)


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        ({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}, "cannot take plain words apart"),
        (
            {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 20}] * 8,
            },
            "makes a text up to 3e",
        ),
        ({"type": "Prepend", "prepend": "x" * 10_000}, "makes a text up to 1e"),
    ],
)
def test_normalisers_that_panic_or_blow_up_are_told_in_one_line(normalizer, message, classifier, capfd):
    change(classifier, "tokenizer.json", normalizer=normalizer)
    with pytest.raises(RuntimeUserError, match=message):
        Model(classifier)
    assert capfd.readouterr().err == ""


def test_graph_with_another_input_is_refused(exported):
    folder = exported("single-label", ("a", "b", "c"), counting_table())
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["n"])
    )
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(RuntimeUserError, match="wants the inputs position_ids"):
        Model(folder)


def test_run_that_fails_is_one_line(exported):
    folder = exported("single-label", ("a", "b", "c"), counting_table()[:5])  # a table for 5 of the tokens
    with pytest.raises(
        RuntimeUserError, match=r"model\.onnx could not be run on 1 inputs of 3 tokens"
    ) as stop:
        Model(folder)("river")
    assert "\n" not in str(stop.value)


def test_outputs_that_are_not_finite_are_an_error(exported):
    folder = exported("single-label", ("a", "b", "c"), counting_table() * np.nan)
    with pytest.raises(RuntimeUserError, match="not finite"):
        Model(folder)("king")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size of at least 1, found 0"),
        ({"threshold": 50}, "threshold from 0 to 1, found 50"),
        ({"threads": 0}, "at least 1 thread, found 0"),
    ],
)
def test_options_out_of_range(classifier, options, message):
    with pytest.raises(RuntimeUserError, match=message):
        Model(classifier, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text 2: expected a text or a pair of texts, found NoneType"),
        (("a", 3), "text 2: expected a text or a pair of texts, found int"),
        ("a\ud800", "text 2: holds half of a surrogate pair"),
        (("a", "b"), "text 2: found a pair, but entities"),
    ],
)
def test_what_is_no_text_is_refused(tagger, text, message):
    with pytest.raises(RuntimeUserError, match=message):
        list(Model(tagger).predict(["fine", text]))
    frame, dataset = (
        SimpleNamespace(columns=["text"]),
        SimpleNamespace(column_names=["text"]),
    )  # which give rows
    frame.__iter__ = dataset.__iter__ = lambda: iter([{"text": "fine"}])
    for given in ("fine", frame, dataset):
        with pytest.raises(RuntimeUserError, match=r"give \[text\] for one text, and of a table the column"):
            Model(tagger).predict(given)
