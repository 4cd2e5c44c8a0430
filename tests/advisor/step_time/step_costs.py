"""What a step costs, for tests to call: functions that only compiled ones can call."""

from advisor.compiled import compiled
from advisor.evidence.features import Work
from advisor.step_time import cost as step_cost


@compiled
def host_seconds(cost, problem_starts, sample_starts, sample_ends):
    return step_cost.host_seconds(cost, problem_starts, sample_starts, sample_ends)


@compiled
def chunk_seconds(cost, tokens, before):
    return step_cost.chunk_seconds(cost, tokens, before)


@compiled
def _steps_seconds(cost, work, steps, growth, longest, longest_growth, chunks, speculative):
    return step_cost.steps_seconds(
        cost, work, steps, growth, 0.0, longest, longest_growth, chunks, speculative
    )


def step_seconds(
    cost, prompts, prompt_tokens, prompt_read, prompt_query, chunks,
    decodes, decode_tokens, decode_context, longest, drafting,
):  # fmt: skip
    work = Work(
        prefill_requests=float(prompts), prefill_tokens=float(prompt_tokens),
        decode_requests=float(decodes), decode_tokens=float(decode_tokens),
        prefill_kv_tokens=float(prompt_read), decode_kv_tokens=float(decode_context),
        prefill_query_context=float(prompt_query), decode_window_tokens=0.0,
        prefill_window_context=0.0,
    )  # fmt: skip
    return _steps_seconds(cost, work, 1, 0.0, float(longest), 0.0, float(chunks), drafting)


def step(cost, *, chunks=(), decodes=0, tokens=None, context=0.0, longest=0.0, drafting=False):
    """The seconds of a step whose chunks are (tokens, before)."""
    read = sum(c + p for c, p in chunks)
    query = sum(c * p + c * (c + 1) / 2 for c, p in chunks)
    return step_seconds(
        cost, len(chunks), sum(c for c, _ in chunks), read, query,
        sum((chunk_seconds(cost, c, p) for c, p in chunks), 0.0),
        decodes, decodes if tokens is None else tokens, context, longest, drafting,
    )  # fmt: skip


def leap_seconds(
    cost, steps, decodes, decode_tokens, decode_context, growth, longest, longest_growth, drafting
):
    decoding = Work(0.0, 0.0, float(decodes), decode_tokens, 0.0, decode_context, 0.0, 0.0, 0.0)
    return _steps_seconds(cost, decoding, steps, growth, longest, longest_growth, 0.0, drafting)
