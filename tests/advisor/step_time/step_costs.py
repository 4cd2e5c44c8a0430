"""What a step costs, for tests to call: functions that only compiled ones can call."""

from advisor.compiled import compiled
from advisor.step_time import cost as step_cost


@compiled
def host_seconds(cost, problem_starts, sample_starts, sample_ends):
    return step_cost.host_seconds(cost, problem_starts, sample_starts, sample_ends)


@compiled
def chunk_seconds(cost, tokens, before):
    return step_cost.chunk_seconds(cost, tokens, before)


@compiled
def step_seconds(
    cost, prompts, prompt_tokens, prompt_read, prompt_query, chunks,
    decodes, decode_tokens, decode_context, longest, drafting,
):  # fmt: skip
    return step_cost.step_seconds(
        cost, prompts, prompt_tokens, prompt_read, prompt_query, chunks,
        decodes, decode_tokens, decode_context, longest, drafting,
    )  # fmt: skip


@compiled
def leap_seconds(
    cost, steps, decodes, decode_tokens, decode_context, growth, longest, longest_growth, drafting
):
    return step_cost.leap_seconds(
        cost, steps, decodes, decode_tokens, decode_context, growth,
        longest, longest_growth, drafting,
    )  # fmt: skip
