"""The step `tokenizer`: trained on the training documents, or given."""

from pathlib import Path

from retro_jax.corpus import collect, special, tokenizer
from retro_jax.pipeline.step import Whole
from retro_jax.store import files


class Tokenizer(Whole):
    """A SentencePiece model, or a Hugging Face tokenizer.json."""

    def check(self):
        """Raises UserError for a given tokenizer that is missing or loses text."""
        if self.settings["corpus.tokenizer"] != "train":
            tokenizer.load(Path(self.settings["corpus.tokenizer"]))

    def make(self, out: Path) -> dict:
        """Writes the tokenizer's file; counts its vocabulary."""
        if self.settings["corpus.tokenizer"] == "train":
            texts = (d.text for d in collect.read(self.at("corpus"), collect.TRAIN))
            model = tokenizer.train(texts, self.settings["corpus.vocab"])
            files.write(out / "tokenizer.model", model)
        else:
            given = Path(self.settings["corpus.tokenizer"])
            tokenizer.load(given)  # refuses what does not serve
            name, data = tokenizer.file_of(given)
            files.write(out / name, data)
            files.write(out / special.FILE, special.given_with(given).to_json())
        return {"vocab": tokenizer.open_tokenizer(out).vocab}
