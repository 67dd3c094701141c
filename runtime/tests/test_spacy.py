"""The spaCy component, with spaCy itself."""

import numpy as np
import pytest
from conftest import IDS, VOCABULARY

from minialbert_runtime import Model, RuntimeUserError

spacy = pytest.importorskip("spacy")


def pipeline(folder, **config):
    nlp = spacy.blank("en")
    nlp.add_pipe("minialbert", config={"model": str(folder), "threads": 1, **config})
    return nlp


def test_entities_of_documents_one_by_one_and_in_batches(tagger):
    texts = ["the new city was king", "", "river 🏙 city"]
    nlp, model = pipeline(tagger), Model(tagger)
    for docs in ([nlp(text) for text in texts], list(nlp.pipe(texts, batch_size=2))):
        for doc, text in zip(docs, texts, strict=True):
            expected = model(text)["entities"]
            assert [(one.start_char, one.end_char, one.label_) for one in doc.ents] == [
                (one["start"], one["end"], one["label"]) for one in expected
            ]
            assert doc.user_data["minialbert"] == {"entities": expected}


def test_an_entity_inside_a_token_is_widened_and_its_own_offsets_are_kept(exported):
    table = np.zeros((len(VOCABULARY), 3))
    table[:, 0] = 3
    table[IDS["city"], 1] = 9
    nlp = pipeline(exported("token", ("O", "B-City", "I-City"), table))
    nlp.tokenizer = spacy.tokenizer.Tokenizer(nlp.vocab)  # at spaces alone
    doc = nlp("a (city) was")
    assert [one.text for one in doc.ents] == ["(city)"]
    (entity,) = doc.user_data["minialbert"]["entities"]
    assert (entity["text"], entity["start"]) == ("city", 3)


def test_entities_of_other_components_stay_where_the_model_has_none(tagger):
    nlp = pipeline(tagger)
    ruler = nlp.add_pipe("entity_ruler", before="minialbert")
    ruler.add_patterns([{"label": "WORD", "pattern": "new"}, {"label": "WORD", "pattern": "city"}])
    assert [(one.text, one.label_) for one in nlp("new city").ents] == [("new", "WORD"), ("city", "City")]


def test_classes_options_and_a_pipeline_that_was_saved(classifier, tmp_path):
    nlp = pipeline(classifier, threshold=0.99)
    doc = nlp("king king")
    assert doc.cats == Model(classifier)("king king")["scores"]
    assert doc.user_data["minialbert"]["label"] is None
    nlp.to_disk(tmp_path / "saved")
    assert spacy.load(tmp_path / "saved")("king").cats == nlp("king").cats
    with pytest.raises(RuntimeUserError, match="no such folder"):
        pipeline(tmp_path / "none")
