"""BERT WordPiece tokens of fixed length, with the word that each piece belongs to.

    tokenizer = load("Bio_ClinicalBERT")                       a folder with vocab.txt, or such a file
    save(train(texts, size=8192), "my_vocabulary")             a vocabulary of one's own
    ids, mask, word_index = tokenizer.encode("A 2.5 cm nodule.", length=112)

The ids are those of Hugging Face's BertTokenizer. With `word_index` a method sums the pieces of each word (GLoRIA,
MGCA) or masks them together; `tokenizer.words(ids)[k]` is the word with index k.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = "vocab.txt"
SIZE = 8192
"""The most pieces of a vocabulary that is trained, by default."""
SETTINGS = "tokenizer_config.json"


class Tokens(NamedTuple):
    """A text as l tokens: [CLS], its pieces, [SEP], padding."""

    ids: np.ndarray  # int32 l; 0 is padding
    mask: np.ndarray  # bool l; False is padding
    word_index: np.ndarray  # int32 l; number of the word from 0, -1 for [CLS], [SEP] and padding


class Tokenizer:
    """BERT's basic and WordPiece tokenisation over a vocabulary; can be pickled.

    vocabulary: pieces in the order of their ids, "##" before those that continue a word. lowercase: lower case and no
    accents. A special token that stands in a text is kept as such. Raises ValueError: a special token is missing, [PAD]
    is not first, a piece is blank or comes twice.
    """

    def __init__(self, vocabulary: Sequence[str], lowercase: bool = True):
        self.vocabulary = tuple(vocabulary)
        self.lowercase = lowercase
        ids = _ids(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL)
        self._wordpiece = _wordpiece(ids, lowercase)
        self._wordpiece.add_special_tokens(list(SPECIAL))
        self._continues = np.array([piece.startswith("##") for piece in self.vocabulary])

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.vocabulary, self.lowercase)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str, length: int) -> Tokens:
        """Tokens of a text, cut or padded to `length` with [CLS] and [SEP]; a text that is cut ends in [SEP] too."""
        if length < 3:
            raise ValueError(f"A length of {length} leaves no room between [CLS] and [SEP]; give 3 or more.")
        pieces = self._wordpiece.encode(text, add_special_tokens=False).ids[: length - 2]
        ids = np.full(length, self.pad_id, np.int32)
        ids[: len(pieces) + 2] = self.cls_id, *pieces, self.sep_id
        return Tokens(ids, np.arange(length) < len(pieces) + 2, self._word_index(ids))

    def words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The words that the ids spell, without [CLS], [SEP] and padding."""
        words = []
        for token, number in zip(ids, self._word_index(ids), strict=True):
            piece = self.vocabulary[token]
            if number == len(words):
                words.append(piece)
            elif number >= 0:
                words[-1] += piece.removeprefix("##")
        return words

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The words with blanks between; punctuation counts as words, so blanks differ from the text's."""
        return " ".join(self.words(ids))

    def _word_index(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        pieces = np.asarray(ids, np.int32)
        inside = ~np.isin(pieces, (self.pad_id, self.cls_id, self.sep_id))
        after_piece = np.concatenate([[False], inside[:-1]])
        starts = inside & ~(self._continues[pieces] & after_piece)
        return np.where(inside, np.cumsum(starts) - 1, -1).astype(np.int32)


def load(path: str | Path, lowercase: bool | None = None) -> Tokenizer:
    """Reads a BERT vocabulary: a folder that holds vocab.txt, or the file, one piece a line.

    lowercase: None takes `do_lower_case` of a tokenizer_config.json beside it, else True, which is what BertTokenizer
    does. So Bio_ClinicalBERT, a cased vocabulary without that file, is used in lower case, as MGCA and F-L use it.
    Raises ValueError.
    """
    file = Path(path) / VOCABULARY if Path(path).is_dir() else Path(path)
    settings = file.with_name(SETTINGS)
    if not file.is_file():
        raise ValueError(f"There is no vocabulary {file}; give a BERT vocab.txt, or a folder that holds one.")
    if lowercase is None and settings.is_file():
        try:
            lowercase = json.loads(settings.read_text("utf-8")).get("do_lower_case")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{settings} is no JSON object ({error}); mend it, or state `lowercase`.") from None
    try:
        return Tokenizer(file.read_text("utf-8").removesuffix("\n").split("\n"), lowercase is not False)
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from None


def train(texts: Iterable[str], size: int = SIZE, min_frequency: int = 2, lowercase: bool = True) -> tuple[str, ...]:
    """Trains a WordPiece vocabulary: the special tokens, every character alone and as "##", then merged pieces.

    size: at most so many pieces. min_frequency: how often two pieces must meet to be merged. The same texts give the
    same vocabulary. Raises ValueError: no text, or a size that the characters alone exceed.
    """
    texts = list(texts)
    trained = _wordpiece({}, lowercase)
    characters = sorted({sign for text in texts for sign in trained.normalizer.normalize_str(text) if sign != " "})
    if not characters:
        raise ValueError(f"A vocabulary needs texts to be trained on; {len(texts)} were given, none with a character.")
    # Characters are declared as special tokens to fix their ids: the trainer numbers "##" characters in the order of a
    # hash table, and pairs of equal count are merged in the order of their ids.
    fixed = [*SPECIAL, *characters, *(f"##{sign}" for sign in characters)]
    if size < len(fixed):
        raise ValueError(f"A size of {size} is too small: special tokens and characters alone are {len(fixed)} pieces.")
    trained.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=min_frequency, special_tokens=fixed, show_progress=False
        ),
    )
    ids = trained.get_vocab(with_added_tokens=False)
    return tuple(sorted(ids, key=lambda piece: ids[piece]))


def save(vocabulary: Sequence[str], directory: str | Path, lowercase: bool = True) -> Path:
    """Writes vocab.txt and tokenizer_config.json, and returns the former; `load` and BertTokenizer read them.

    Each file appears whole or not at all. lowercase: as in `train`.
    """
    _ids(tuple(vocabulary))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
    _write(directory / SETTINGS, json.dumps(settings, indent=2))
    return _write(directory / VOCABULARY, "\n".join(vocabulary))


def _write(file: Path, text: str) -> Path:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(f"{text}\n", "utf-8")
    return partial.replace(file)


def _ids(vocabulary: Sequence[str]) -> dict[str, int]:
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        raise ValueError(
            f"The vocabulary lacks {', '.join(missing)}; BERT's have one piece a line, {', '.join(SPECIAL)} among them."
        )
    if vocabulary[0] != "[PAD]":
        raise ValueError(f"The id of [PAD] is {ids['[PAD]']}; it must be the first piece, for padding is 0 everywhere.")
    if "" in ids:
        raise ValueError(f"Line {ids[''] + 1} is blank; every line must hold a piece, since its number gives the id.")
    twice = [piece for piece, count in Counter(vocabulary).items() if count > 1]
    if twice:
        raise ValueError(f"Pieces come more than once ({len(twice)}, such as {twice[0]!r}); each must have one id.")
    return ids


def _wordpiece(ids: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """The steps of BERT's tokeniser; a word of more than 100 characters is [UNK] there."""
    wordpiece = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wordpiece
