"""What training scripts share: rows, evaluators and the starting model, from their arguments."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer, PreTrainedModel

from hf_clipplus.data.captions import RandomWordDeletion
from hf_clipplus.data.clipart import EMBEDDED, CaptionWorld
from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.hard_negatives import HardNegatives, WordFrequencies, caption_reader
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.sources import IndexedRows, IndexedStream, iterate, load_pairs
from hf_clipplus.data.text_structure import find_parser
from hf_clipplus.evaluation.clipart import clipart_evaluators
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator
from hf_clipplus.models.configuration_finer_vision import FinerVision
from hf_clipplus.models.dual_encoder import DualEncoderModel
from hf_clipplus.models.fff import FFFModel, FFFProcessor
from hf_clipplus.models.finer_vision import fit_pictures
from hf_clipplus.ops.distributed import rank, world_size

from .arguments import FINER_VISION_HELP, PairDataArguments
from .calibrate import set_auto_bias
from .scratch import SIZES, build_fff, train_tokenizer
from .start import load_to_train

TOKENIZER_SAMPLE = 200_000
WORDS_SAMPLE = 50_000  # captions from which the frequencies of words are taken
BIAS_BATCHES = 4


@dataclass
class FFFModelArguments:
    """Where the model starts from, and the settings of FFF."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Start from this FFF, CLIP or SigLIP checkpoint (folder or Hub id); None starts from nothing."
        },
    )
    model_size: str = field(
        default="tiny", metadata={"help": f"Size of a model that starts from nothing: {', '.join(SIZES)}."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a model that starts from nothing; None trains one on the captions."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Entries of a tokenizer trained on the captions."})
    contrastive_loss: str = field(
        default="sigmoid", metadata={"help": "'sigmoid' (FFF, SigLIP) or 'softmax' (CLIP, the baseline)."}
    )
    captions_per_image: int = field(default=5, metadata={"help": "Pseudo-captions of an image in a batch, at most."})
    use_raw_caption: str = field(
        default="append", metadata={"help": "'append' the raw caption to the pseudo-captions or 'replace' it by them."}
    )
    loss_normalizer: str = field(default="per_image", metadata={"help": "'per_image', 'per_pair' or 'per_anchor'."})
    logit_scale_init_value: float | None = field(
        default=None, metadata={"help": "Log of the inverse temperature of a model that starts from nothing."}
    )
    mining_features: str = field(
        default="precomputed",
        metadata={
            "help": "What positives are mined from: 'precomputed' (columns), 'frozen_model' (mining_model_name), "
            "'online' (the model itself, after the warm-up) or 'none'."
        },
    )
    mining_model_name: str | None = field(
        default=None, metadata={"help": "Frozen CLIP that mines, and that the thresholds were calibrated on."}
    )
    mining_warmup_steps: int = field(default=2000, metadata={"help": "Steps before online mining begins."})
    mining_rule: str = field(default="gated", metadata={"help": "'gated' or 'plain'."})
    p1: float = field(default=0.27, metadata={"help": "Image-text threshold."})
    p1_gate: float = field(default=0.24, metadata={"help": "Image-text threshold of the gate on image-image pairs."})
    p2: float = field(default=0.92, metadata={"help": "Image-image threshold."})
    p3: float = field(default=0.99, metadata={"help": "Text-text threshold."})
    finer_vision: str | None = field(default=None, metadata=FINER_VISION_HELP)

    def config(self) -> dict[str, Any]:
        """Fields of `FFFConfig`."""
        start = ("model_name_or_path", "model_size", "tokenizer_name", "vocab_size")
        values = {name: value for name, value in vars(self).items() if name not in start and value is not None}
        if self.finer_vision is not None:
            values["finer_vision"] = FinerVision.read(self.finer_vision).to_dict()
        return values | {"mining_features": None if self.mining_features == "none" else self.mining_features}


def open_training_rows(data: PairDataArguments, image_size: int) -> IndexedRows | IndexedStream:
    """The rows to train on, numbered for seeding."""
    if data.dataset == EMBEDDED:
        return IndexedRows(CaptionWorld(data.train_split, image_size=image_size))
    return open_pairs(data)


def open_pairs(data: PairDataArguments) -> IndexedRows | IndexedStream:
    """The rows of a data set that is not embedded, numbered for seeding."""
    rows = load_pairs(data.dataset, split=data.train_split, streaming=data.streaming, **data.columns())
    return IndexedStream(rows) if data.streaming else IndexedRows(rows)


def open_evaluators(data: PairDataArguments, image_size: int, batch_size: int) -> list:
    """What is run at each evaluation."""
    if data.dataset == EMBEDDED and data.eval_dataset is None:
        return list(clipart_evaluators(data.eval_split or "validation", image_size=image_size, batch_size=batch_size))
    return open_retrieval(data, batch_size)


def open_retrieval(data: PairDataArguments, batch_size: int) -> list[RetrievalEvaluator]:
    """Retrieval on a data set that is not embedded, where the arguments name one to evaluate on."""
    if data.eval_split is None and data.eval_dataset is None:
        return []
    rows = load_pairs(data.eval_dataset or data.dataset, split=data.eval_split or "test", **data.columns())
    columns = [name for name in ("caption", "pseudo_captions") if name in rows.column_names]
    return [RetrievalEvaluator(rows, columns, batch_size=batch_size)]


def captions_of(rows: Iterable[dict]) -> Iterator[str]:
    """Every caption of every row, for a tokenizer."""
    for row in rows:
        yield from filter(None, [row.get("caption"), *(row.get("pseudo_captions") or [])])


def build_model(args: FFFModelArguments, data: PairDataArguments) -> tuple[FFFModel, FFFProcessor, bool]:
    """The starting model, its processor, and whether its bias is still to be chosen.

    Raises:
        OSError: `model_name_or_path` is neither a folder nor a Hub id (never random weights).
        ValueError: the checkpoint lacks weights other than the bias.
    """
    if args.model_name_or_path is None:
        if args.tokenizer_name is not None:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
        else:
            facts = SIZES.get(args.model_size, SIZES["tiny"])
            texts = itertools.islice(captions_of(plain_rows(data)), TOKENIZER_SAMPLE)
            tokenizer = train_tokenizer(texts, vocab_size=args.vocab_size, context=facts["context"])
        return *build_fff(args.model_size, tokenizer, **args.config()), True
    overrides = args.config()
    overrides.pop("logit_scale_init_value", None)  # the checkpoint's scale is kept
    model, random = load_to_train(FFFModel, args.model_name_or_path, added=("logit_bias",), **overrides)
    stock = AutoProcessor.from_pretrained(args.model_name_or_path)
    fit_pictures(stock, model.config)
    return model, FFFProcessor(stock.image_processor, stock.tokenizer), "logit_bias" in random


def open_mining_model(name: str | None, *sources: str) -> tuple[PreTrainedModel | None, Any]:
    """The frozen model whose features are mined or clustered, in float32, and its processor; Nones without one.

    Args:
        name: folder or Hub id.
        sources: arguments that say where features come from; only "frozen_model" wants a model.
    """
    if not name or "frozen_model" not in sources:
        return None, None
    return AutoModel.from_pretrained(name, dtype=torch.float32), AutoProcessor.from_pretrained(name)


def build_collator(
    processor: FFFProcessor, args: FFFModelArguments, data: PairDataArguments, seed: int, report: DataReport, **kwargs
) -> ContrastiveCollator:
    """The collator that the arguments describe."""
    return ContrastiveCollator(
        processor,
        mode=data.caption_mode,
        captions_per_image=args.captions_per_image,
        use_raw_caption=args.use_raw_caption,
        augment_image=None if data.image_augmentation == "none" else image_augmentation(data.image_augmentation),
        augment_text=RandomWordDeletion(data.word_deletion) if data.word_deletion else None,
        equal_texts_are_positive=data.equal_texts_are_positive,
        seed=seed,
        on_bad_row=data.on_bad_row,
        report=report,
        hard_negatives=hard_negatives_of(data),
        **kwargs,
    )


def hard_negatives_of(
    data: PairDataArguments, captions: Callable[[], Iterable[str]] | None = None
) -> HardNegatives | None:
    """What makes the false captions that the arguments ask for; None when they ask for none.

    Rows of embedded scenes are judged by their facts; captions of other rows are parsed by what is installed, see
    `find_parser`.

    Args:
        data: see its fields.
        captions: opens true ones, whose words false ones have as often; None: those of the rows to train on.

    Raises:
        ValueError: an unknown kind.
    """
    if not data.hard_negatives:
        return None
    reader = caption_reader(lambda text: _installed_parser()(text), data.hard_negative_objects)
    texts = captions_of(plain_rows(data)) if captions is None else captions()
    words = WordFrequencies(itertools.islice(texts, WORDS_SAMPLE))
    return HardNegatives(data.hard_negatives, kinds=data.hard_negative_kinds, reader=reader, frequencies=words)


_installed_parser = lru_cache(maxsize=1)(find_parser)


def choose_bias(
    model: DualEncoderModel, rows: Iterable[dict], collator: ContrastiveCollator, batch_size: int
) -> float:
    """Set the first bias from a few batches (`calibrate.set_auto_bias`); the report does not count these rows."""
    quiet = ContrastiveCollator(collator.processor, choose=collator.choose, seed=collator.seed)
    stream = iter(rows[i] for i in torch.randperm(len(rows)).tolist()) if hasattr(rows, "__len__") else iter(rows)
    stream = itertools.islice(stream, rank(), None, world_size())  # the share of positives is one among all processes
    batches = [quiet(chunk) for _ in range(BIAS_BATCHES) if (chunk := list(itertools.islice(stream, batch_size)))]
    return set_auto_bias(model, batches, device=next(model.parameters()).device)


def plain_rows(data: PairDataArguments) -> Iterable[dict]:
    """The texts of the rows to train on, without what is not needed for them."""
    if data.dataset == EMBEDDED:
        return iterate(CaptionWorld(data.train_split, image_size=16))
    rows = load_pairs(data.dataset, split=data.train_split, streaming=data.streaming, **data.columns())
    texts = [name for name in ("caption", "pseudo_captions") if name in (rows.column_names or ())]
    return rows.select_columns(texts) if texts else rows
