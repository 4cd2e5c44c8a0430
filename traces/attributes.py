"""Names of spans, attributes and metrics, pinned here.

The GenAI names follow the OpenTelemetry semantic conventions (development status, as of 1.38);
the rest is ours under `tts.`.
"""

SPAN_RUN = "tts.run"
SPAN_PROBLEM = "tts.problem"
SPAN_SAMPLE = "tts.sample"

RUN_ID = "tts.run.id"
WORKLOAD_NAME = "tts.workload.name"
WORKLOAD_HASH = "tts.workload.hash"
POLICY_METHOD = "tts.policy.method"
POLICY_N = "tts.policy.n"
POLICY_BUDGET = "tts.policy.thinking_token_budget"
POLICY_EFFORT = "tts.policy.reasoning_effort"
ENGINE_KEY = "tts.engine.key"
POLICY_KEY = "tts.policy.key"

GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_MODEL = "gen_ai.request.model"
GEN_AI_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_TOP_P = "gen_ai.request.top_p"
GEN_AI_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
ERROR_TYPE = "error.type"

METRIC_STEP_TIME = "tts.engine.step.duration"
METRIC_STEP_BATCH = "tts.engine.step.batch_size"
METRIC_KV_BLOCKS = "tts.engine.kv.blocks"
METRIC_ACCEPTED = "tts.engine.speculative.accepted_tokens"

# Span attribute -> column of the recording's table; a column's own name otherwise, as
# `tts.problem.<column>` and `tts.sample.<column>`.
SAMPLE_COLUMNS = {
    GEN_AI_INPUT_TOKENS: "prompt_tokens",
    GEN_AI_OUTPUT_TOKENS: "output_tokens",
    GEN_AI_RESPONSE_ID: "request_id",
    ERROR_TYPE: "error",
    ENGINE_KEY: "engine",
    POLICY_KEY: "policy",
    "tts.problem.id": "problem_id",
}
PROBLEM_COLUMNS = {
    ERROR_TYPE: "error",
    ENGINE_KEY: "engine",
    POLICY_KEY: "policy",
    "tts.problem.id": "problem_id",
}
