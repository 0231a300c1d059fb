"""A target's chat template: prompts as it was trained to read them, and where answers end."""

from __future__ import annotations

import json
from pathlib import Path

from drafters.errors import UserError
from drafters.target import resolve


def encode_chat(tokenizer: object, prompt: str) -> list[int]:
    """Token ids of one user turn in the target's chat template, ready for the answer."""
    text = _user_turn(tokenizer, prompt, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat_opening(tokenizer: object) -> list[int]:
    """Token ids of the target's chat template up to where a user's words begin."""
    mark = "\N{SECTION SIGN}"
    text = _user_turn(tokenizer, mark)
    return tokenizer(text.partition(mark)[0], add_special_tokens=False)["input_ids"]


def _user_turn(tokenizer: object, words: str, **options: bool) -> str:
    """One user turn as text; UserError for a target without a chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"target {tokenizer.name_or_path!r} has no chat template; give one whose tokenizer has,"
            " an instruction-tuned one, or add chat_template.jinja to its folder"
        )
    turn = [{"role": "user", "content": words}]
    return tokenizer.apply_chat_template(turn, tokenize=False, **options)


def stop_tokens(name: str, tokenizer: object) -> frozenset[int]:
    """Every end-of-sequence id that the target's generation config or tokenizer names."""
    path = Path(resolve(name)) / "generation_config.json"
    ids = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    ids = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
