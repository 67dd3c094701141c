"""What a model says about a split, and its figures, against logits computed one input at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score as lenient_f1
from transformers import BertConfig, BertForSequenceClassification

from minialbert import MiniAlbertForSequenceClassification, MiniAlbertForTokenClassification
from minialbert.data.examples import Task, TextExample, TokenExample
from minialbert.errors import UserError
from minialbert.tasks.predictions import (
    depth_notes,
    evaluate_split,
    make_collator,
    run_model,
    run_with_exits,
    word_tags,
)

NAMES = ("neg", "neutral", "pos")
TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
TEXTS = (
    "the king was small",
    "a",
    "what a large city by the river",
    "he",
    "they were all of one house, not that",
    "is this it?",
    "the student",
    "to be or not to be",
    "a b c d e f g h i j k l",
)
SENTENCES = tuple(
    tuple(text.split())
    for text in ("the king xyz was", "a", " ".join("abcdefghijklmnopqrst"), "housely cityness of the river b")
)


@pytest.fixture
def make_model(tiny_student_config):
    def make(problem, num_labels):
        kind = {
            "single-label": "single_label_classification",
            "multi-label": "multi_label_classification",
            "regression": "regression",
        }
        token = problem == "token"
        model_class = MiniAlbertForTokenClassification if token else MiniAlbertForSequenceClassification
        config = tiny_student_config
        config.num_labels, config.problem_type = num_labels, kind.get(problem)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = model_class(config)
            # As drawn it says much the same of every text: larger weights, and logits around zero.
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(std=0.5)
                logits = model.eval()(input_ids=torch.randint(5, config.vocab_size, (64, 8))).logits
                model.classifier.bias -= logits.flatten(0, -2).mean(0)
        return model

    return make


def make_task(problem, labels=NAMES):
    labels = {"regression": (), "token": TAGS}.get(problem, labels)
    return Task("t", problem, labels, "x", {})


def unlabelled(problem):
    if problem == "token":
        return [TokenExample(words) for words in SENTENCES]
    return [TextExample(text) for text in TEXTS]


def prepare(examples, tokenizer, task, max_length=16):
    encoded = task.type.encode(examples, tokenizer, task, max_length=max_length, overlap=4)
    return encoded, make_collator(task, tokenizer)


@torch.no_grad()
def one_by_one(model, encoded):
    """Logits of each input alone, without padding."""
    training = model.training
    model.eval()
    found = []
    for row in encoded.rows:
        ids = torch.tensor([row["input_ids"]])
        types = torch.tensor([row["token_type_ids"]]) if "token_type_ids" in row else None
        found.append(model(input_ids=ids, token_type_ids=types).logits[0].numpy())
    model.train(training)
    return found


# Logits


@pytest.mark.parametrize("problem", ["single-label", "token"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_say_what_single_inputs_say_in_their_order(make_model, tiny_tokenizer, problem, batch_size):
    task = make_task(problem)
    model = make_model(problem, len(task.labels))
    encoded, collator = prepare(unlabelled(problem), tiny_tokenizer, task)
    assert len(set(encoded.lengths)) > 2
    found = run_model(model, encoded, collator, batch_size=batch_size)
    expected = one_by_one(model, encoded)
    assert len(found) == len(expected) == len(encoded)
    for values, own, length in zip(found, expected, encoded.lengths, strict=True):
        assert values.shape == ((length, 5) if problem == "token" else (3,))
        np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-5)
    assert (
        np.ptp(np.concatenate([values.reshape(-1, len(task.labels)) for values in found]), axis=0).min() > 0.1
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(make_model, tiny_tokenizer, training):
    model = make_model("single-label", 3).train(training)
    modes = []
    handle = model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    run_model(model, encoded, collator, batch_size=4)
    handle.remove()
    assert modes == [False] * 3
    assert model.training is training


def test_the_mode_is_restored_after_an_error(make_model, tiny_tokenizer):
    model = make_model("single-label", 3).train()
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    encoded.rows[0]["input_ids"] = [10**6]
    with pytest.raises(IndexError):
        run_model(model, encoded, collator)
    assert model.training


def test_dropout_plays_no_part(make_model, tiny_tokenizer):
    model = make_model("single-label", 3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    first, second = (np.stack(run_model(model, encoded, collator)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_half_precision_is_close_and_comes_back_in_single(make_model, tiny_tokenizer):
    model = make_model("single-label", 3)
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    full, half = (np.stack(run_model(model, encoded, collator, precision=p)) for p in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.2 * np.abs(full).max()


def test_a_progress_bar_changes_nothing(make_model, tiny_tokenizer, capsys):
    model = make_model("single-label", 3)
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    shown, silent = (
        np.stack(run_model(model, encoded, collator, progress=title)) for title in ("eval", None)
    )
    np.testing.assert_array_equal(shown, silent)
    assert capsys.readouterr().out == ""


# Depth


@pytest.mark.parametrize("problem", ["single-label", "token"])
def test_fewer_iterations_are_those_of_the_model(make_model, tiny_tokenizer, problem):
    task = make_task(problem)
    model = make_model(problem, len(task.labels))
    encoded, collator = prepare(unlabelled(problem), tiny_tokenizer, task)
    found = run_model(model, encoded, collator, batch_size=2, num_iterations=1)
    full = run_model(model, encoded, collator, batch_size=2)
    model.config.num_hidden_layers = 1
    for values, own, other in zip(found, one_by_one(model, encoded), full, strict=True):
        np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-5)
        assert np.abs(values - other).max() > 1e-2


def test_iterations_come_back_in_the_order_of_the_inputs(make_model, tiny_tokenizer):
    model = make_model("single-label", 3)
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    shallow = np.stack(run_model(model, encoded, collator, num_iterations=1))
    full, none = run_with_exits(model, encoded, collator)
    assert none is None
    sure = torch.tensor(shallow).softmax(-1).amax(-1).numpy()
    middle = float(np.sort(sure)[3:5].mean())
    logits, exits = run_with_exits(model, encoded, collator, batch_size=4, exit_threshold=middle)
    assert exits == [1 if value >= middle else 2 for value in sure]
    assert exits.count(2) == 4
    for values, taken, early, late in zip(logits, exits, shallow, full, strict=True):
        np.testing.assert_allclose(values, early if taken == 1 else late, rtol=1e-5, atol=1e-5)
    task = make_task("single-label")
    result = evaluate_split(
        model, unlabelled("single-label"), encoded, task, collator, exit_threshold=middle, batch_size=4
    )
    assert result.exit_iterations == exits
    assert result.mean_iterations == pytest.approx(1 + 4 / 9)


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        ("single-label", {"num_iterations": 0}, "num_iterations: expected at least 1, found 0"),
        ("single-label", {"batch_size": 0}, "expected a batch size of at least 1, found 0"),
        ("single-label", {"exit_threshold": 0.0}, "expected a number above 0 and up to 1, found 0.0"),
        ("single-label", {"exit_threshold": 1.1}, "expected a number above 0 and up to 1, found 1.1"),
        ("regression", {"exit_threshold": 0.9}, "a score has no confidence; give num_iterations"),
    ],
)
def test_options_out_of_range(make_model, tiny_tokenizer, problem, options, message):
    model = make_model(problem, 1 if problem == "regression" else 3)
    encoded, collator = prepare(unlabelled(problem), tiny_tokenizer, make_task(problem))
    with pytest.raises(UserError, match=message):
        run_model(model, encoded, collator, **options)


def test_only_a_student_has_another_depth(tiny_tokenizer):
    config = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, num_labels=3,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    encoded, collator = prepare(unlabelled("single-label"), tiny_tokenizer, make_task("single-label"))
    assert run_with_exits(model, encoded, collator)[1] is None
    for options in ({"num_iterations": 1}, {"exit_threshold": 0.9}):
        with pytest.raises(UserError, match="only a MiniALBERT can run at another depth, not a bert model"):
            run_model(model, encoded, collator, **options)


def test_notes_on_depths_that_were_not_trained(make_model):
    model = make_model("single-label", 3)
    assert depth_notes(model, None) == depth_notes(model, 2) == []
    (note,) = depth_notes(model, 1)
    assert "trained to read the output of 2 iterations" in note
    (note,) = depth_notes(model, 3)
    assert "the last adapters repeat" in note
    model.config.elastic_depths = [1]
    assert depth_notes(model, 1) == []
    (note,) = depth_notes(model, 3)
    assert "1, 2 iterations" in note


# Figures of texts


def evaluated(make_model, tokenizer, problem, labels, task=None, **options):
    """Predictions for TEXTS with these labels, and the logits of each text alone."""
    task = task or make_task(problem)
    model = make_model(problem, len(task.labels) or 1)
    examples = [TextExample(text, label=label) for text, label in zip(TEXTS, labels, strict=True)]
    encoded, collator = prepare(examples, tokenizer, task)
    result = evaluate_split(model, examples, encoded, task, collator, batch_size=4, **options)
    return result, np.stack(one_by_one(model, encoded))


def f1(gold, predicted):
    both = np.sum(gold & predicted)
    return 2 * both / (gold.sum() + predicted.sum()) if both else 0.0


def test_one_class_of_three(make_model, tiny_tokenizer):
    labels = ["pos", "neg", "neutral", "neg", "pos", "pos", "neutral", "neg", "neutral"]
    result, logits = evaluated(make_model, tiny_tokenizer, "single-label", labels)
    best = logits.argmax(axis=1)
    gold = np.array([NAMES.index(label) for label in labels])
    assert result.values == [NAMES[index] for index in best]
    assert len(set(result.values)) > 1
    assert result.metrics["accuracy"] == pytest.approx(np.mean(best == gold))
    macro = np.mean([f1(gold == index, best == index) for index in range(3)])
    assert result.metrics["f1"] == result.metrics["f1_macro"] == pytest.approx(macro)


def test_one_class_of_two(make_model, tiny_tokenizer):
    labels = ["yes", "no", "yes", "no", "yes", "no", "yes", "yes", "no"]
    task = make_task("single-label", ("no", "yes"))
    result, logits = evaluated(make_model, tiny_tokenizer, "single-label", labels, task)
    gold, best = np.array([label == "yes" for label in labels]), logits[:, 1] > logits[:, 0]
    assert 0 < best.sum() < 9
    assert result.metrics["f1"] == pytest.approx(f1(gold, best))
    assert result.metrics["matthews_correlation"] == pytest.approx(np.corrcoef(gold, best)[0, 1])


def test_several_classes(make_model, tiny_tokenizer):
    labels = [("pos",), (), ("neg", "pos"), NAMES, ("neutral",), ("neg",), ("pos", "neutral"), ("pos",), ()]
    result, logits = evaluated(make_model, tiny_tokenizer, "multi-label", labels)
    chosen = 1 / (1 + np.exp(-logits)) > 0.5
    gold = np.array([[name in label for name in NAMES] for label in labels])
    assert result.values == [
        tuple(name for name, is_in in zip(NAMES, row, strict=True) if is_in) for row in chosen
    ]
    assert 0 < chosen.sum() < chosen.size
    assert result.metrics["f1_micro"] == pytest.approx(f1(gold, chosen))
    assert result.metrics["f1_macro"] == pytest.approx(
        np.mean([f1(gold[:, index], chosen[:, index]) for index in range(3)])
    )
    assert result.metrics["accuracy"] == pytest.approx(
        np.mean([(g == c).all() for g, c in zip(gold, chosen, strict=True)])
    )


def test_scores(make_model, tiny_tokenizer):
    labels = [0.5, 3.0, 1.5, 4.75, 2.0, 0.0, 5.0, 2.5, 1.0]
    result, logits = evaluated(make_model, tiny_tokenizer, "regression", labels)
    scores = logits[:, 0]
    assert result.values == pytest.approx(scores.tolist(), abs=1e-5)
    ranks = [np.argsort(np.argsort(values)) for values in (labels, scores)]  # no ties
    pearson, spearman = np.corrcoef(labels, scores)[0, 1], np.corrcoef(*ranks)[0, 1]
    assert result.metrics == pytest.approx(
        {
            "pearson": pearson,
            "spearmanr": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "mean_squared_error": np.mean((scores - np.array(labels)) ** 2),
            "r2": 1 - np.mean((scores - np.array(labels)) ** 2) / np.var(labels),
        },
        abs=1e-5,
    )


def test_a_model_with_its_labels_in_another_order(make_model, tiny_tokenizer):
    labels = ["pos", "neg", "neutral", "neg", "pos", "pos", "neutral", "neg", "neutral"]
    result, logits = evaluated(make_model, tiny_tokenizer, "single-label", labels, order=[2, 0, 1])
    # The model's ids stand for neutral, pos, neg.
    assert result.values == [("neutral", "pos", "neg")[index] for index in logits.argmax(axis=1)]
    assert result.metrics["accuracy"] == pytest.approx(
        np.mean([value == label for value, label in zip(result.values, labels, strict=True)])
    )


def test_texts_that_were_cut_are_counted(tiny_tokenizer):
    task, examples = make_task("single-label"), unlabelled("single-label")
    encoded, _ = prepare(examples, tiny_tokenizer, task, max_length=8)
    assert encoded.cut == sum(len(tiny_tokenizer(text)["input_ids"]) > 8 for text in TEXTS)


# Figures of words


def tags_by_hand(model, encoded, number):
    """Tag of each word of a sentence, from its windows one by one."""
    found = {}
    for owner, window, logits in zip(
        encoded.owners, encoded.windows, one_by_one(model, encoded), strict=True
    ):
        if owner == number:
            for word in sorted(set(window.words) - {-1}):
                assert word not in found
                found[word] = TAGS[int(logits[window.words.index(word)].argmax())]
    return [found[word] for word in range(len(SENTENCES[number]))]


def tagged(make_model, tokenizer):
    """A model, and SENTENCES whose gold tags are what it says, apart from two sentences."""
    task, model = make_task("token"), make_model("token", len(TAGS))
    encoded, _ = prepare(unlabelled("token"), tokenizer, task, max_length=10)
    said = [tags_by_hand(model, encoded, number) for number in range(len(SENTENCES))]
    gold = [said[0], ["O"], said[2], ["B-A", "I-A", "O", "O", "B-B", "O"]]
    examples = [TokenExample(words, tuple(tags)) for words, tags in zip(SENTENCES, gold, strict=True)]
    return task, model, examples, said, gold


def test_words_of_long_sentences(make_model, tiny_tokenizer):
    task, model, examples, said, gold = tagged(make_model, tiny_tokenizer)
    encoded, collator = prepare(examples, tiny_tokenizer, task, max_length=10)
    assert encoded.owners.count(2) > 2
    result = evaluate_split(model, examples, encoded, task, collator, batch_size=2)
    assert result.values == said
    assert [len(tags) for tags in result.values] == [len(words) for words in SENTENCES]
    assert len(set(said[2])) > 1
    assert len(encoded) > len(examples)

    def entities(rows):
        found = set()
        for number, row in enumerate(rows):
            for first, tag in enumerate(row):
                goes_on = first and row[first - 1][1:] == tag[1:]
                if tag.startswith("B-") or (tag.startswith("I-") and not goes_on):
                    last = first
                    while last + 1 < len(row) and row[last + 1] == "I-" + tag[2:]:
                        last += 1
                    found.add((number, first, last, tag[2:]))
        return found

    right, claimed, there = entities(gold) & entities(said), entities(said), entities(gold)
    assert 0 < len(right) < len(claimed) < len(there)
    assert result.metrics["entity_precision"] == pytest.approx(len(right) / len(claimed))
    assert result.metrics["entity_recall"] == pytest.approx(len(right) / len(there))
    words = [(g, s) for row, other in zip(gold, said, strict=True) for g, s in zip(row, other, strict=True)]
    assert result.metrics["token_accuracy"] == pytest.approx(np.mean([g == s for g, s in words]))


def test_the_figure_by_piece_copies_each_words_tag_to_its_pieces(make_model, tiny_tokenizer):
    task, model, examples, _, gold = tagged(make_model, tiny_tokenizer)
    encoded, collator = prepare(examples, tiny_tokenizer, task, max_length=10)
    result = evaluate_split(model, examples, encoded, task, collator)
    said, copies = [[] for _ in gold], [[] for _ in gold]
    for owner, window, logits in zip(
        encoded.owners, encoded.windows, one_by_one(model, encoded), strict=True
    ):
        tag_of_word = ""
        for position, (word, values) in enumerate(zip(window.words, logits, strict=True)):
            if word >= 0:
                first = position in window.first_pieces[0]
                tag_of_word = TAGS[int(values.argmax())] if first else tag_of_word
                said[owner].append(tag_of_word)
                copies[owner].append(gold[owner][word])
    pieces = [len(tiny_tokenizer.tokenize(" ".join(words))) for words in SENTENCES]
    assert [len(row) for row in said] == pieces
    assert sum(pieces) > sum(map(len, SENTENCES))
    assert result.metrics["entity_f1_subword"] == pytest.approx(lenient_f1(copies, said))
    assert 0 < result.metrics["entity_f1_subword"] != result.metrics["entity_f1"]


def test_a_word_has_the_tag_of_its_first_piece(tiny_tokenizer):
    task = make_task("token")
    sentence = TokenExample(("xyz", "a"))
    encoded, _ = prepare([sentence], tiny_tokenizer, task)
    # Special token, x, ##y, ##z, a, special token.
    ids = [3, 1, 2, 2, 0, 3]
    logits = [np.eye(len(TAGS), dtype=np.float32)[ids]]
    tags, chances = word_tags([sentence], encoded, logits, TAGS)
    assert tags == [["B-A", "O"]]
    assert chances == [[pytest.approx(np.e / (np.e + len(TAGS) - 1))] * 2]


# Splits without labels, and without rows


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression", "token"])
def test_without_gold_labels_there_are_no_figures(make_model, tiny_tokenizer, problem):
    task = make_task(problem)
    model = make_model(problem, len(task.labels) or 1)
    examples = unlabelled(problem)
    encoded, collator = prepare(examples, tiny_tokenizer, task)
    result = evaluate_split(model, examples, encoded, task, collator)
    assert result.metrics == {}
    assert len(result.values) == len(examples)
    # One label among many rows is no gold standard either.
    given = {"single-label": "pos", "multi-label": ("pos",), "regression": 1.0, "token": ("O",) * 4}[problem]
    examples[0] = replace(examples[0], **{"tags" if problem == "token" else "label": given})
    encoded, collator = prepare(examples, tiny_tokenizer, task)
    again = evaluate_split(model, examples, encoded, task, collator)
    assert again.metrics == {}
    assert again.values == result.values


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression", "token"])
def test_an_empty_split_has_no_predictions(make_model, tiny_tokenizer, problem):
    task = make_task(problem)
    model = make_model(problem, len(task.labels) or 1)
    encoded, collator = prepare([], tiny_tokenizer, task)
    result = evaluate_split(model, [], encoded, task, collator)
    assert (result.values, result.metrics) == ([], {})


def test_a_sentence_without_words_has_no_tags(make_model, tiny_tokenizer):
    task, model = make_task("token"), make_model("token", len(TAGS))
    examples = [TokenExample((), ()), TokenExample(("the",), ("O",)), TokenExample((), ())]
    encoded, collator = prepare(examples, tiny_tokenizer, task)
    result = evaluate_split(model, examples, encoded, task, collator)
    assert [len(tags) for tags in result.values] == [0, 1, 0]
    assert set(result.metrics) >= {"entity_f1", "token_accuracy"}
