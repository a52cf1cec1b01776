"""A study as image–text methods see it: one of its frontal pictures, and its report as tokens of a fixed length.

reader = paired.StudyReader(config)
reader(study, rng)               image 1 h w 1, ids l, text_mask l, word_index l, report
reader.tokens("No pleural effusion.")
"""

import functools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.config import ConfigDict, names
from cxrjax.input import converted_sets, crops
from cxrjax.input.studies import pick
from cxrjax.text import reports, tokenizer

CLEANING = ("none", "mgca")
OF_REPORTS = "reports"  # as text.init_from: the encoder that is trained on the reports of the first set


class ReportReader:
    """What a method reads of a report.

    text: of config.text, sections (in the order in which they are read), cleaning and one_sentence (a random one of the
    report). Raises ValueError for an unknown section or cleaning.
    """

    def __init__(self, text: Any):
        self.sections, self.cleaning, self.one_sentence = names(text.sections), text.cleaning, text.one_sentence
        unknown = sorted(set(self.sections) - {"findings", "impression"})
        if unknown or not self.sections:
            raise ValueError(f"text.sections are of findings, impression; got {text.sections!r}")
        if self.cleaning not in CLEANING:
            raise ValueError(f"text.cleaning must be one of {', '.join(CLEANING)}; got {self.cleaning!r}")

    def text(self, report: Mapping[str, str]) -> str:
        """What is read of a report; "" if nothing is."""
        return " ".join(self.sentences(report))

    def sentences(self, report: Mapping[str, str]) -> list[str]:
        """The sentences of the sections that are read.

        A report that has none of these sections is read by its last paragraph, or else as a whole. Without
        text.one_sentence the sentences may come as one text. MGCA's cleaning leaves nothing of fewer than three words.
        """
        parts = {name: report[name] for name in self.sections if report[name].strip()}
        if not parts and report["text"].strip():
            parts = {"findings": reports.sections(report["text"]).last_paragraph or report["text"]}
        if self.cleaning == "mgca":
            return reports.mgca_report(parts.get("findings", ""), parts.get("impression", ""))
        whole = " ".join(" ".join(parts.values()).split())
        return reports.sentences(whole) if self.one_sentence else [whole]


class StudyReader(ReportReader):
    """What `Method.views` of an image–text method does; it can be pickled.

    config: model.image_px, views.transform, and text: as of ReportReader, length, vocab_size, and tokenizer: a folder
    with vocab.txt. Where tokenizer is "" the vocabulary is that of text.init_from, or else that of the first set of
    data.sets. Raises ValueError as ReportReader does.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config.text)
        self.length, self.vocab_size = config.text.length, config.text.vocab_size
        weights = "" if config.text.init_from == OF_REPORTS else config.text.init_from
        self.vocabulary, self.set = config.text.tokenizer or weights, names(config.data.sets)[0]
        self.transform = crops.transform(config.views.transform, config.model.image_px)

    def __call__(self, study: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """image uint8 1 h w 1, report int32 (equal for texts that are equal but for their case), and what
        `tokens` gives of the report.

        Raises ValueError for a study without a frontal picture.
        """
        frontal = pick(study["frontals"], rng)
        if frontal is None:
            raise ValueError(f"study {study['study_id']!r} has no frontal picture; set data.require=frontal,report")
        sentences = self.sentences(study["report"])
        text = str(rng.choice(sentences)) if self.one_sentence and sentences else " ".join(sentences)
        number = np.int32(zlib.crc32(text.lower().encode()) & 0x7FFFFFFF)
        return {"image": self.picture(frontal, rng)[None], "report": number, **self.tokens(text)}

    def picture(self, example: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        """uint8 h w 1."""
        return self.transform(crops.decode(example["image"]), rng)[..., None]

    def tokens(self, text: str) -> dict[str, np.ndarray]:
        """ids int32 l, text_mask bool l (False is padding), word_index int32 l (−1 is no word); all padding for "".

        A sentence that is asked for, such as a prompt, is cleaned as the reports are.
        """
        if self.cleaning == "mgca":
            text = " ".join(reports.mgca_words(text))
        if not text:
            nothing = np.zeros(self.length, np.int32)
            return {"ids": nothing, "text_mask": nothing > 0, "word_index": nothing - 1}
        ids, mask, word_index = self.tokenizer.encode(text, self.length)
        return {"ids": ids, "text_mask": mask, "word_index": word_index}

    @property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """Raises ValueError where there is no vocabulary, or one that is larger than the model's."""
        found = _load(str(self.folder))
        if found.vocab_size > self.vocab_size:
            raise ValueError(
                f"{self.folder} has a vocabulary of {found.vocab_size:,} pieces, but text.vocab_size is "
                f"{self.vocab_size:,}: set it to {found.vocab_size} or more"
            )
        return found

    @functools.cached_property
    def folder(self) -> Path:
        """Where the vocabulary lies: as the config says, with the weights that the encoder starts from, or the set."""
        return Path(self.vocabulary) if self.vocabulary else converted_sets.open_set(self.set).directory


def vocabulary_size(config: ConfigDict) -> int:
    """The pieces of the vocabulary that reports are read with. Raises ValueError where there is none."""
    return _load(str(StudyReader(config).folder)).vocab_size


@functools.lru_cache(maxsize=8)
def _load(folder: str) -> tokenizer.Tokenizer:
    return tokenizer.load(folder)


def keep_vocabulary(config: ConfigDict, workdir: Path) -> None:
    """Copies the vocabulary that a run reads its reports with into its folder, from where `trained.load` takes it.

    Raises ValueError where the folder holds another one: the run that is there could not be resumed with these words.
    """
    mine, kept = StudyReader(config).tokenizer, workdir / tokenizer.VOCABULARY
    if not kept.exists():
        tokenizer.save(mine.vocabulary, workdir, mine.lowercase)
    elif tokenizer.load(workdir).vocabulary != mine.vocabulary:
        raise ValueError(
            f"{workdir} holds a run with another vocabulary ({kept}) than the one that text.tokenizer="
            f"{config.text.tokenizer!r} gives now; choose another --workdir, or give text.tokenizer={kept} to resume it"
        )
