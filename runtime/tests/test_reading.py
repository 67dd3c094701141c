"""Results as people read them."""

from minialbert_runtime.reading import line, marked


def entity(start, end, label, score=0.5):
    return {"start": start, "end": end, "label": label, "score": score}


def told(result):
    return "".join(part for part, _ in line(result))


def test_entities_are_marked_and_the_text_is_whole():
    text = "a cat, a dog"
    result = {"id": 7, "text": text, "entities": [entity(9, 12, "Pet", 0.98765), entity(2, 5, "Pet", 1.0)]}
    assert told(result) == "7: a [cat Pet 1], a [dog Pet 0.988]"
    assert "".join(part for part, _ in marked(text, result["entities"])) == text
    assert told({"text": "none", "entities": []}) == "none"


def test_nested_entities_share_a_part_and_adjacent_ones_do_not():
    nested = [entity(2, 4, "B"), entity(0, 6, "A"), entity(3, 8, "C"), entity(8, 9, "D")]
    found = [(part, [one["label"] for one in here]) for part, here in marked("0123456789", nested)]
    assert found == [("", []), ("01234567", ["A", "B", "C"]), ("", []), ("8", ["D"]), ("9", [])]


def test_of_a_long_text_what_is_around_entities():
    text = "x" * 200_000 + "cat" + "y" * 100_000
    parts = [part for part, _ in marked(text, [entity(200_000, 200_003, "Pet")])]
    assert parts == [" … " + "x" * 120, "cat", "y" * 120 + " … "]
    assert len("".join(part for part, _ in marked(text, []))) < 200


def test_classes_and_scores_stand_before_the_text():
    assert (
        told({"text": "t", "label": "a", "score": 0.91234, "scores": {"a": 0.91234, "b": 0.1}})
        == "[a 0.912] t"
    )
    assert told({"text": "t", "label": None, "score": 0.5, "scores": {"a": 0.5}}) == "[none] t"
    assert told({"text": "t", "labels": ["a", "b"], "scores": {"a": 1.0, "b": 0.6}}) == "[a 1][b 0.6] t"
    # With top_k of 1, of several labels and of one that its threshold puts before a likelier one.
    assert told({"text": "t", "labels": ["a", "b"], "scores": {"a": 1.0}}) == "[a 1][b] t"
    assert told({"text": "t", "label": "b", "score": 0.4, "scores": {"a": 0.6}}) == "[b 0.4] t"
    assert (
        told({"text": "t", "pair": "u", "score": 1234567.8, "cut": 1000})
        == "[1,234,568] t  |  u (1,000 tokens not read)"
    )


def test_what_could_command_a_terminal_is_spelled_out():
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f467 e\u0301"
    assert told({"text": f"{joined}\x1b[31m\u202e\r\n\t", "entities": []}) == f"{joined}\\x1b[31m\\u202e\n\t"
