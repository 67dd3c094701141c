"""Writes the samples beside it with the tools' own libraries: `python make_samples.py`, see README.md."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import bioc
import datasets
import spacy
from bioc import biocjson, brat, pubtator
from label_studio_sdk.converter import Converter
from spacy.tokens import DocBin
from spacy.training import docs_to_json

HERE = Path(__file__).parent
TITLE = "Naloxone reverses the effect of clonidine."
ABSTRACT = "In rats, kidney and heart failure \U0001f600 followed."
TEXT = f"{TITLE} {ABSTRACT}"
ENTITIES = [("T1", "Chemical", "Naloxone", "D009270"), ("T2", "Chemical", "clonidine", "D003000"),
            ("T3", "Disease", "heart failure", "D006333")]  # fmt: skip
PARTS = ("kidney", "failure")  # one entity


def place(words):
    start = TEXT.index(words)
    return start, start + len(words)


def write_bioc():
    collection = bioc.BioCCollection()
    collection.source, collection.date, collection.key = "sample", "20260101", "sample.key"
    document = bioc.BioCDocument()
    document.id, document.infons["journal"] = "1", "Sample"
    for kind, text in (("title", TITLE), ("abstract", ABSTRACT)):
        passage = bioc.BioCPassage()
        passage.infons["type"], passage.offset, passage.text = kind, TEXT.index(text), text
        for name, label, words, code in ENTITIES:
            start, end = place(words)
            if passage.offset <= start < passage.offset + len(text):
                one = bioc.BioCAnnotation()
                one.id, one.text, one.infons = name, words, {"type": label, "identifier": code}
                one.add_location(bioc.BioCLocation(start, end - start))
                passage.add_annotation(one)
        if kind == "abstract":
            one = bioc.BioCAnnotation()
            one.id, one.text, one.infons = "T4", " ".join(PARTS), {"type": "Disease"}
            for words in PARTS:
                one.add_location(bioc.BioCLocation(place(words)[0], len(words)))
            passage.add_annotation(one)
        document.add_passage(passage)
    relation = bioc.BioCRelation()
    relation.id, relation.infons = "R1", {"type": "CID"}
    relation.add_node(bioc.BioCNode("T1", "a"))
    document.add_relation(relation)
    collection.add_document(document)
    (HERE / "bioc.xml").write_text(bioc.dumps(collection), encoding="utf-8")
    (HERE / "bioc.json").write_text(biocjson.dumps(collection, indent=1), encoding="utf-8")


def write_standoff():
    document = brat.BratDocument()
    for name, label, words, _ in ENTITIES:
        one = brat.BratEntity()
        one.id, one.type, one.text = name, label, words
        one.add_span(*place(words))
        document.add_annotation(one)
    one = brat.BratEntity()
    one.id, one.type, one.text = "T4", "Disease", " ".join(PARTS)
    for words in PARTS:
        one.add_span(*place(words))
    document.add_annotation(one)
    relation = brat.BratRelation()
    relation.id, relation.type = "R1", "CID"
    relation.add_argument("Arg1", "T1")
    relation.add_argument("Arg2", "T3")
    document.add_annotation(relation)
    (HERE / "brat").mkdir(exist_ok=True)
    (HERE / "brat" / "1.txt").write_text(TEXT, encoding="utf-8")
    with (HERE / "brat" / "1.ann").open("w", encoding="utf-8") as file:
        brat.dump_ann(document, file)


def write_pubtator():
    documents = []
    for name in ("1", "2"):
        document = pubtator.PubTator(name, TITLE, ABSTRACT)
        for _, label, words, code in ENTITIES:
            document.add_annotation(pubtator.PubTatorAnn(name, *place(words), words, label, code))
        document.add_relation(pubtator.PubTatorRel(name, "CID", "D009270", "D006333"))
        documents.append(document)
    (HERE / "sample.pubtator").write_text(pubtator.dumps(documents), encoding="utf-8")


def write_spacy():
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    doc = nlp(TEXT)
    doc.set_ents([doc.char_span(*place(words), label=label) for _, label, words, _ in ENTITIES])
    doc.cats = {"animal": 1.0, "human": 0.0}
    nested = nlp(TEXT)
    nested.spans["sc"] = [
        nested.char_span(*place(words), label="Site") for words in ("heart", "heart failure")
    ]
    DocBin(docs=[doc, nested], store_user_data=True).to_disk(HERE / "sample.spacy")
    (HERE / "spacy.json").write_text(json.dumps([docs_to_json([doc])], indent=1), encoding="utf-8")


CONFIG = """<View><Text name="text" value="$text"/>
<Labels name="ner" toName="text"><Label value="Chemical"/><Label value="Disease"/></Labels>
<Choices name="species" toName="text"><Choice value="animal"/><Choice value="human"/></Choices></View>"""


def write_label_studio():
    def region(number, label, words):
        start, end = place(words)
        value = {"start": start, "end": end, "text": words, "labels": [label]}
        return {"id": f"r{number}", "from_name": "ner", "to_name": "text", "type": "labels", "value": value}

    results = [region(number, label, words) for number, (_, label, words, _) in enumerate(ENTITIES)]
    choice = {
        "id": "c",
        "from_name": "species",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["animal"]},
    }
    known = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "lead_time": 1.0}
    tasks = [
        {"id": 7, "data": {"text": TEXT, "ward": "B"}, "annotations": [
            {"id": 1, "completed_by": 3, "result": [*results, choice], "was_cancelled": False, **known}
        ]},
        {"id": 8, "data": {"text": "Nothing here.", "ward": "A"}, "annotations": [
            {"id": 2, "completed_by": 4, "result": [{**choice, "value": {"choices": ["human"]}}],
             "was_cancelled": False, **known}
        ]},
    ]  # fmt: skip
    (HERE / "label-studio.json").write_text(json.dumps(tasks, indent=1), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        Converter(CONFIG, folder).convert(str(HERE / "label-studio.json"), folder, "JSON_MIN", is_dir=False)
        (HERE / "label-studio-min.json").write_text(
            (Path(folder) / "result.json").read_text("utf-8"), "utf-8"
        )
        converter = Converter(CONFIG, folder)
        converter.convert(str(HERE / "label-studio.json"), folder, "CONLL2003", is_dir=False)
        (HERE / "label-studio.conll").write_text((Path(folder) / "result.conll").read_text("utf-8"), "utf-8")


def write_datasets():
    names = datasets.ClassLabel(names=["O", "B-Chemical", "I-Chemical"])
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(names),
        }
    )
    rows = [{"id": "1", "tokens": ["Naloxone", "works", "."], "ner_tags": [1, 0, 0]}]
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(HERE / "datasets")
    saved.to_parquet(HERE / "parquet" / "train-00000-of-00001.parquet")


if __name__ == "__main__":
    for write in (
        write_bioc,
        write_standoff,
        write_pubtator,
        write_spacy,
        write_label_studio,
        write_datasets,
    ):
        write()
