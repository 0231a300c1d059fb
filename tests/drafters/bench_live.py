"""The live engine beside transformers, in one run: the same greedy texts, and how much faster.

    python -m tests.drafters.bench_live --prompts FILE --count 200 --drafter FOLDER

Where a text differs, the two best logits of transformers at the first difference are compared: a
gap below ``TIE`` is rounding, which differs with the shape of a batch; anything above is an error,
and so is a run that verified no drafts, unless its policy is ``none``. Chunks of prompts alternate
between the two, so that a machine that drifts does so for both.
"""

import argparse
import itertools
import sys
import time

import torch

import drafters
from drafters.chat import encode_chat, stop_tokens
from drafters.engine import Engine, EngineConfig
from drafters.generate import spread
from drafters.prompts import load_prompts
from drafters.request import Request, Running
from drafters.target import load_target, load_tokenizer, resolve
from policies.cost import no_cost
from policies.registry import create, parse

TIE = 1e-3
CHUNK = 16


def main() -> int:
    """Exit code 1 when a text differs without a tie, or nothing was verified."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--target", default="smollm2-135m")
    made.add_argument("--drafter", default="ngram")
    made.add_argument("--policy", default="fixed-k:k=3")
    made.add_argument("--prompts", nargs="+", required=True)
    made.add_argument("--count", type=int, default=200)
    made.add_argument("--max-new", type=int, default=64)
    made.add_argument("--longest", type=int, default=1024, help="tokens of a prompt at most")
    made.add_argument("--concurrency", type=int, default=8)
    args = made.parse_args()

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(resolve(args.target), dtype=torch.float32).eval()
    target, tokenizer = load_target(args.target), load_tokenizer(args.target)
    stops = stop_tokens(args.target, tokenizer)
    drafter = drafters.load(args.drafter, target)
    encoded = (encode_chat(tokenizer, p.text) for p in spread(load_prompts(args.prompts), 0))
    fitting = (tuple(tokens) for tokens in encoded if len(tokens) <= args.longest)
    prompts = list(itertools.islice(fitting, args.count))
    spent, tokens, verified = {"engine": 0.0, "transformers": 0.0}, 0, 0
    ties, errors = [], []
    for at in range(0, len(prompts), CHUNK):
        chunk = prompts[at : at + CHUNK]
        start = time.perf_counter()
        rows = serve(args, target, drafter, stops, chunk)
        middle = time.perf_counter()
        theirs = [one_by_one(model, prompt, args.max_new, stops) for prompt in chunk]
        spent["engine"] += middle - start
        spent["transformers"] += time.perf_counter() - middle
        tokens += sum(map(len, theirs))
        verified += sum(row.verified for row in rows)
        ours = [row.output for row in rows]
        for i, pair in enumerate(zip(chunk, ours, theirs, strict=True)):
            if pair[1] != pair[2]:
                gap = logit_gap(model, *pair)
                (ties if gap < TIE else errors).append((at + i, gap))
        print(f"{at + len(chunk)} prompts: {len(ties)} ties, {len(errors)} errors", flush=True)
    ratio = spent["transformers"] / spent["engine"]
    print(
        f"{len(prompts)} prompts, {tokens} tokens: {len(ties)} differ by a tie {ties}, "
        f"{len(errors)} in error {errors}; {verified} drafts verified"
    )
    for name, seconds in spent.items():
        print(f"{name:12} {tokens / seconds:8.1f} tok/s")
    print(f"{args.policy} at concurrency {args.concurrency}: {ratio:.2f}x transformers one by one")
    return 1 if errors or not (verified or args.policy == "none") else 0


def serve(args, target, drafter, stops, prompts) -> list[Running]:
    """The served requests, in the order of the prompts."""
    policy = create(parse(args.policy)[0], drafter.gamma, **parse(args.policy)[1])
    cost = no_cost(drafter.gamma)
    longest = max(map(len, prompts)) + args.max_new
    config = EngineConfig(max_requests=args.concurrency, max_context=longest)
    engine = Engine(target, drafter, policy, cost, config, stops)
    for i, prompt in enumerate(prompts):
        engine.submit(Request(request_id=i, name=str(i), prompt=prompt, max_new=args.max_new))
    while engine.busy:
        engine.step()
    return sorted(engine.ended, key=lambda row: row.request.request_id)


@torch.no_grad()
def one_by_one(model, prompt, new: int, stops: frozenset[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        eos_token_id=list(stops), pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def logit_gap(model, prompt, ours: list[int], theirs: list[int]) -> float:
    """Difference of the two candidates' logits where the texts part."""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    logits = model(torch.tensor([[*prompt, *theirs[:at]]])).logits[0, -1]
    return float((logits[theirs[at]] - logits[ours[at]]).abs())


if __name__ == "__main__":
    sys.exit(main())
