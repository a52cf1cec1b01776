"""The tokenizer of a folder that others made: tokenizer.json, as the library `tokenizers` reads it.

Byte-pair encodings, WordPiece and SentencePiece's unigrams are all in such a file, and how a text is made ready for
them. Nothing in it is run.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cxrjax.text.tokenizer import SETTINGS, Tokens

FILE = "tokenizer.json"


class FolderTokenizer:
    """Reads texts as whole ones: all of a text's tokens have the word number 0, since its pieces are no words of ours.

    folder: with tokenizer.json, and tokenizer_config.json where it names the padding. pad_id: padding where that file
    does not. vocab_size: rows of the model's word embeddings.
    Raises ValueError for a file that is damaged, for one with more tokens than the model has rows, and for one that
    puts no special token behind a text.
    """

    def __init__(self, folder: str | Path, vocab_size: int, pad_id: int = 0):
        self.file = Path(folder) / FILE
        self._tokenizer = self._asked(lambda: tokenizers.Tokenizer.from_file(str(self.file)))
        self.vocab_size = vocab_size
        self._check(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.pad_id = self._padding(pad_id)
        self._tokenizer.no_padding()
        if self._asked(lambda: self._tokenizer.encode("a")).special_tokens_mask[-1:] != [1]:
            raise ValueError(
                f"{self.file} ends a text with no special token, by which these models know its end; take the file "
                "that the model was trained with, or let transformers write it: AutoTokenizer, save_pretrained."
            )

    def encode(self, text: str, length: int) -> Tokens:
        """Tokens of a text with the special ones that the model was trained with, cut or padded to `length`."""
        if length < 3:
            raise ValueError(f"A length of {length} leaves no room between special tokens; give 3 or more.")
        self._tokenizer.enable_truncation(length)
        found = self._asked(lambda: self._tokenizer.encode(text))
        self._check(found.ids)
        ids, word_index, count = np.full(length, self.pad_id, np.int32), np.full(length, -1, np.int32), len(found.ids)
        ids[:count], word_index[:count] = found.ids, np.negative(found.special_tokens_mask)
        return Tokens(ids, np.arange(length) < count, word_index)

    def words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The one text that the ids spell, without special tokens; [] where there is none."""
        text = self._asked(lambda: self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=True))
        text = text.replace("</w>", " ").strip()  # CLIP's mark of a word's end, which its decoder leaves
        return [text] if text else []

    def _check(self, ids: Iterable[int]) -> None:
        """A template of special tokens may hold numbers that no vocabulary has."""
        highest = max(ids, default=-1)
        if not 0 <= highest < self.vocab_size:
            raise ValueError(
                f"{self.file} gives tokens up to {highest}, but the model has word embeddings of {self.vocab_size}; "
                "take the tokenizer that it was trained with."
            )

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # where a file is wrong the library may panic, which is no Exception
            raise ValueError(f"{self.file} cannot be read ({error}); download it again.") from None

    def _padding(self, otherwise: int) -> int:
        settings = self.file.with_name(SETTINGS)
        token: Any = None
        if settings.is_file():
            try:
                token = json.loads(settings.read_text("utf-8")).get("pad_token")
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{settings} is no JSON object ({error}); download it again.") from None
        token = token.get("content") if isinstance(token, dict) else token
        found = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        return otherwise if found is None else found
