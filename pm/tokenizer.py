"""The small model's tokenizer: SentencePiece BPE with byte fallback, saved in the Hugging Face form.

It has the control tokens of Command R under the same names, so one template serves both. BPE, not unigram: a
literal `<BOS_TOKEN>` or `<0x41>` in a text can only be reached through merges, and for those there are none.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pm.errors import UserError

PAD, UNKNOWN, BOS, EOS = "<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>"
START_TURN, END_TURN = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
SYSTEM, USER, CHATBOT = "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"
SPACE = "\u2581"  # how SentencePiece writes a space


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` pieces from which any text can be decoded to itself.

    Spaces are kept as spaces inside the pieces, so that a literal U+2581 is an ordinary character.
    Deterministic: the same texts in the same order give the same tokenizer.
    """
    model = io.BytesIO()
    lines = [line for text in texts for line in text.replace(SPACE, " ").splitlines() if line.strip()]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_without_rare_characters(lines, vocab_size // 3), model_writer=model, model_type="bpe",
            vocab_size=vocab_size, hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0,
            normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
            split_digits=True, num_threads=1, minloglevel=2, max_sentence_length=1 << 20,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece=PAD, unk_piece=UNKNOWN, bos_piece=BOS, eos_piece=EOS,
            control_symbols=[START_TURN, END_TURN, SYSTEM, USER, CHATBOT],
        )
    except RuntimeError as error:
        raise UserError(f"no tokenizer of {vocab_size} pieces can be trained on {len(lines)} lines: {error}") from None
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = {}
    merges = []
    for index in range(pieces.get_piece_size()):
        piece = pieces.id_to_piece(index).replace(SPACE, " ")
        vocabulary[piece] = index
    for index in range(pieces.get_piece_size()):
        if pieces.is_control(index) or pieces.is_byte(index) or pieces.is_unknown(index):
            continue
        piece = pieces.id_to_piece(index).replace(SPACE, " ")
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += sorted((pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary),
                         key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True))
    # A piece has a space only at its beginning, so cutting before each space changes no result; it only saves time.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+| +"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, bos_token=BOS, eos_token=EOS,
        extra_special_tokens=[START_TURN, END_TURN, SYSTEM, USER, CHATBOT], clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _without_rare_characters(lines: list[str], kept: int) -> Iterator[str]:
    """The lines with all but the `kept` commonest characters made spaces: rare ones are left to the bytes."""
    counts = Counter()
    for line in lines:
        counts.update(line)
    rare = {ord(character): " " for character, count in counts.most_common()[kept:]}
    return (line for line in (line.translate(rare) for line in lines) if line.strip())
