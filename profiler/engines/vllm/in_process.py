"""vLLM in this process, driven by its own loop: add_request, step, abort_request.

Everything that is particular to a vLLM release is in this file: it reads vLLM's classes by name
and says which release it was written for when one is missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from profiler.engines.confidence import finite, lowest_group, token_confidences
from profiler.engines.interface import (
    THINK_END,
    THINK_START,
    Engine,
    SampleRequest,
    SampleResult,
    find_tokens,
    leaves_open,
    refusal,
)
from profiler.engines.options import EngineOptions, model_path, read_template
from profiler.engines.vllm.cpu_sampler import mend_cpu_sampler
from profiler.engines.vllm.draft_steps import Steps, draft_steps, steps_after_first
from profiler.engines.vllm.environment import (
    first_line,
    import_vllm,
    let_modules_be_scanned,
    on_cpu,
    prepare_environment,
    without_garbage_search,
)
from profiler.engines.vllm.facts import draft_facts, engine_config, model_facts
from profiler.engines.vllm.probes.draft_timer import install_draft_timer
from profiler.engines.vllm.probes.kernel_windows import KernelWindows, WindowPlan
from profiler.engines.vllm.probes.steps import StepProbe
from traces.clock import OFFSET_NS
from traces.errors import EngineError, UsageError
from traces.schema.engine import Speculative

WRITTEN_FOR = "0.32"
_AS_GIVEN = (  # options that vLLM takes as they are
    *("dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"),
    "gpu_memory_utilization",
)


class InProcessEngine(Engine):
    """A vLLM engine in this process (see `Engine`), with a step probe in its scheduler.

    `kernels` asks for windows of the torch profiler (M/N). Options of None are left to vLLM. Raises
    UsageError, MissingDependencyError without vLLM, EngineError when it cannot start.
    """

    provider = "vllm"

    def __init__(
        self, options: EngineOptions, *, thinking_budget: bool = False, kernels: str | None = None
    ) -> None:
        path, chat_template = model_path(options.model or ""), read_template(options.chat_template)
        speculative, size = options.speculative, options.tensor_parallel_size or 1
        eager = options.enforce_eager
        plan = None if kernels is None else WindowPlan.parse(kernels)
        prepare_environment(size)
        arguments: dict[str, Any] = {
            "model": path,
            "tensor_parallel_size": size,
            "use_tqdm_on_load": False,
            "enforce_eager": True if eager is None and on_cpu() else eager,
            "speculative_config": speculative and _speculative(speculative),
        } | {name: getattr(options, name) for name in _AS_GIVEN}
        if speculative is not None:
            arguments["per_request_spec_decode_metrics"] = "detailed"
        # Deleted with the engine, or where it cannot start.
        self._traces = None if plan is None else TemporaryDirectory(prefix="ttscope-kernels-")
        if self._traces is not None:
            arguments["profiler_config"] = KernelWindows.profiler_config(
                Path(self._traces.name), shapes=on_cpu() and size > 1
            )
        self._keeps_budgets = thinking_budget
        self._vllm = import_vllm()
        self._engine = self._start(arguments)
        vllm_config = self._engine.vllm_config
        self._tokenizer = self._engine.get_tokenizer()
        self.think_end_ids = self._token_ids(THINK_END)
        self._think_start_ids = self._token_ids(THINK_START)
        self._given_template = chat_template
        of_tokenizer: str | None = getattr(self._tokenizer, "chat_template", None)
        self.chat_template = of_tokenizer if chat_template is None else chat_template
        self.config = engine_config(vllm_config, options.model or "", speculative)
        self.model = model_facts(vllm_config, options.model or "")
        self.draft_model = draft_facts(vllm_config, speculative)
        self._offset = OFFSET_NS
        self._refused: list[SampleResult] = []
        self._live: dict[str, str] = {}  # request id -> vLLM's internal id
        self._windows: dict[str, int | None] = {}  # request id -> window of its confidence
        self._closed = False
        mended = mend_cpu_sampler() if speculative is not None and on_cpu() else None
        self.notes = () if mended is None else (mended,)
        window = (0, False) if self.model is None else (self.model.window, self.model.chunked)
        self.steps = self.probe = StepProbe(
            self._scheduler(), self.config.key(), self._offset, window=window
        )
        self.probe.draft_timer = install_draft_timer(self._engine)
        self._kernel_windows: KernelWindows | None = None
        if plan is not None and self._traces is not None:
            folder = Path(self._traces.name)
            self._kernel_windows = KernelWindows(self._engine, self.probe, plan, folder)
        self.kernels = self._kernel_windows
        self._warm_up()
        if self._kernel_windows is not None:
            self._kernel_windows.rehearse(self._run_steps)
            self._run_out()
        self.probe.install()

    def _start(self, arguments: dict[str, Any]) -> Any:
        chosen = {key: value for key, value in arguments.items() if value is not None}
        if self._keeps_budgets:
            from vllm.config.reasoning import ReasoningConfig

            chosen["reasoning_config"] = ReasoningConfig(
                reasoning_start_str=THINK_START, reasoning_end_str=THINK_END
            )
        try:
            with without_garbage_search():
                from vllm.engine.arg_utils import EngineArgs
                from vllm.usage.usage_lib import UsageContext
                from vllm.v1.engine.llm_engine import LLMEngine

            let_modules_be_scanned()
            engine = LLMEngine.from_engine_args(
                EngineArgs(**chosen, disable_log_stats=False),
                usage_context=UsageContext.LLM_CLASS,
            )
        except Exception as error:
            raise EngineError(
                f"vLLM cannot start {arguments['model']}: {first_line(error)}"
            ) from error
        if engine.logger_manager is not None:
            engine.logger_manager.stat_loggers.clear()  # nobody scrapes this process
        return engine

    def _scheduler(self) -> Any:
        try:
            return self._engine.engine_core.engine_core.scheduler
        except AttributeError as error:
            raise EngineError(
                f"this vLLM ({self._vllm.__version__}) keeps its scheduler elsewhere than "
                f"{WRITTEN_FOR} did. Install vLLM {WRITTEN_FOR}, or record with --endpoint"
            ) from error

    def _token_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    @property
    def thinking_budget(self) -> bool:
        """Whether vLLM was started with a reasoning config."""
        return self._keeps_budgets

    def prepare(self, *, top_logprobs: int | None, thinking_budget: bool) -> None:
        """Have vLLM compile what such log-probabilities need, before a problem pays for it."""
        if top_logprobs is not None:
            for requests in (1, 8):
                self._warm_up(requests, top_logprobs)

    def _warm_up(self, requests: int = 8, top_logprobs: int | None = None) -> None:
        """Run a few tokens, so that the first problem does not pay for lazy initialisation."""
        self._queue_idle(requests, top_logprobs)
        self._run_out()

    def _run_out(self) -> None:
        while self._live:
            self.poll()

    def _run_steps(self, count: int) -> None:
        """Do so many steps for requests of no meaning."""
        for _ in range(count):
            if not self._live:
                self._queue_idle(8)
            self.poll()

    def _queue_idle(self, requests: int, top_logprobs: int | None = None) -> None:
        for index in range(requests):
            request = SampleRequest(
                request_id=f"warm-up-{index}",
                prompt="",
                chat=False,
                temperature=1.0,
                top_p=1.0,
                max_tokens=8,
                top_logprobs=top_logprobs,
            )
            self._queue(request, [0] * (index + 1))

    def submit(self, request: SampleRequest) -> None:
        self._queue(request, self._encode(request))

    def _queue(self, request: SampleRequest, prompt: list[int]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        budget = request.thinking_token_budget
        if budget is not None and not self.thinking_budget:
            raise UsageError("the engine was started without a reasoning config for budgets")
        longest = (self.config.max_model_len or 0) - len(prompt)
        fixed = request.max_tokens if request.fixed_length else None
        if fixed is not None and fixed > longest:
            raise UsageError(
                f"request {request.request_id}: {fixed:,} output_tokens behind a prompt of "
                f"{len(prompt):,} exceed max_model_len {self.config.max_model_len:,}"
            )
        if longest < 1:  # vLLM's server refuses this request too, and goes on
            self._refused.append(
                refusal(request.request_id, time.monotonic_ns() + self._offset, len(prompt))
            )
            return
        try:
            self._live[request.request_id] = self._engine.add_request(
                request.request_id,
                {"prompt_token_ids": prompt},
                SamplingParams(
                    n=1,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=min(request.max_tokens or longest, longest),
                    min_tokens=fixed or 0,
                    ignore_eos=fixed is not None,
                    thinking_token_budget=budget,
                    logprobs=request.top_logprobs,
                    flat_logprobs=request.top_logprobs is not None,
                    stop=list(request.stop) or None,
                    include_stop_str_in_output=True,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    detokenize=bool(request.stop),
                ),
            )
        except Exception as error:
            raise EngineError(
                f"vLLM refuses request {request.request_id}: {first_line(error)}"
            ) from error
        self._windows[request.request_id] = request.confidence_window

    def _encode(self, request: SampleRequest) -> list[int]:
        earlier = request.continues
        if earlier is not None and earlier.token_ids is not None:
            return [*earlier.token_ids, *self._token_ids(earlier.append)]
        if isinstance(request.prompt, str) and not (request.chat and self.chat_template):
            return list(self._tokenizer.encode(request.prompt))
        effort, asked = request.reasoning_effort, {}
        if effort is not None:  # as vLLM's server does
            asked = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        try:
            ids = self._tokenizer.apply_chat_template(
                request.messages(),
                chat_template=self._given_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **asked,
            )
        except Exception as error:  # Jinja's errors may quote the prompt
            raise EngineError(
                f"the chat template cannot be applied ({type(error).__name__}). Give one that "
                "takes these messages with --chat-template FILE"
            ) from error
        return list(ids)

    def cancel(self, request_ids: Sequence[str]) -> list[SampleResult]:
        results = []
        for request_id in request_ids:
            internal = self._live.pop(request_id, None)
            if internal is None:
                continue
            self._windows.pop(request_id, None)
            state = self._engine.output_processor.request_states.get(internal)
            tokens = tuple(state.detokenizer.output_token_ids) if state is not None else ()
            prompt = None if state is None else state.prompt_token_ids
            request = self._scheduler().requests.get(internal)
            drafts = self._drafts(
                getattr(request, "spec_decode_metrics", None),
                prompt or (),
                tokens,
                getattr(request, "num_cached_tokens", None),
            )
            self._engine.abort_request([internal], internal=True)
            now = time.monotonic_ns() + self._offset
            results.append(
                SampleResult(
                    request_id=request_id,
                    text="",
                    finish_reason="abort",
                    end=now,
                    prompt_tokens=None if state is None else state.prompt_len,
                    # One that ended in this very step has left the scheduler already.
                    cached_tokens=_known(getattr(request or state, "num_cached_tokens", None)),
                    output_tokens=len(tokens),
                    **self._times(internal, state and state.stats, tokens, drafts),
                    prompt_token_ids=None if prompt is None else tuple(prompt),
                    token_ids=tokens,
                )
            )
        return results

    def poll(self, wait_s: float | None = None) -> list[SampleResult]:
        refused, self._refused = self._refused, []
        if not self._live:
            return refused
        try:
            outputs = self._engine.step()
        except Exception as error:
            raise EngineError(f"vLLM failed in a step: {first_line(error)}") from error
        results = refused + [self._result(output) for output in outputs if output.finished]
        if self._kernel_windows is not None:
            self._kernel_windows.between_steps()
        return results

    def _result(self, output: Any) -> SampleResult:
        internal = self._live.pop(output.request_id)
        completion = output.outputs[0]
        tokens = tuple(completion.token_ids)
        prompt, cached = tuple(output.prompt_token_ids), output.num_cached_tokens
        metrics = getattr(completion, "spec_decode_metrics", None)
        drafts = self._drafts(metrics, prompt, tokens, cached)
        mean, lowest = _log_probabilities(completion, self._windows.pop(output.request_id, None))
        return SampleResult(
            request_id=output.request_id,
            stopped=isinstance(completion.stop_reason, str),
            opened=leaves_open(prompt, self._think_start_ids, self.think_end_ids),
            logprob_mean=mean,
            confidence_min_window=lowest,
            text=self._tokenizer.decode(tokens, skip_special_tokens=True),
            finish_reason=completion.finish_reason,
            end=self.probe.end_of(self.probe.step - 1) or time.monotonic_ns() + self._offset,
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            output_tokens=len(tokens),
            **self._times(internal, output.metrics, tokens, drafts),
            prompt_token_ids=prompt,
            token_ids=tokens,
        )

    def _drafts(
        self, metrics: Any, prompt: Sequence[int], tokens: Sequence[int], cached: int | None
    ) -> Steps | None:
        """Return tokens drafted and accepted per decode step, None when vLLM does not tell."""
        if metrics is None or self.config.speculative is None:
            return None
        return draft_steps(
            metrics.per_step_drafted,
            metrics.per_step_accepted,
            speculative=self.config.speculative,
            prompt=prompt,
            output=tokens,
            cached_tokens=cached,
            max_model_len=self.config.max_model_len,
        )

    def _times(
        self, internal: str, stats: Any, tokens: Sequence[int], drafts: Steps | None
    ) -> dict[str, Any]:
        """When each phase of a sample began and ended, in which steps, with which drafts."""
        first_step = self.probe.first_step.pop(internal, None)
        think = find_tokens(tokens, self.think_end_ids)
        times: dict[str, Any] = {
            "first_step": first_step,
            "last_step": None if first_step is None else self.probe.step - 1,
            "think_tokens": think,
            "drafted_per_step": drafts and drafts[0],
            "accepted_per_step": drafts and drafts[1],
        }
        if stats is None:
            return times
        times["preemptions"] = stats.num_preemptions
        for name, seconds in (
            ("queued", stats.queued_ts),
            ("scheduled", stats.scheduled_ts),
        ):
            times[name] = int(seconds * 1e9) + self._offset if seconds else None
        if stats.first_token_ts and self.probe.step:
            # vLLM stamps a token just before the end of its step.
            step = self.probe.step_at(int(stats.first_token_ts * 1e9) + self._offset)
            times["first_token"] = self.probe.end_of(step)
            later = steps_after_first(think, drafts and drafts[1], len(tokens))
            if later is not None and not stats.num_preemptions:
                times["think_end"] = self.probe.end_of(step + later)
        return times

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._traces is not None:
                self._traces.cleanup()
            with contextlib.suppress(Exception):
                self._engine.engine_core.shutdown()


def _known(cached: int | None) -> int | None:
    """The cached tokens of a request that was scheduled; vLLM says -1 before."""
    return None if cached is None or cached < 0 else cached


def _speculative(speculative: Speculative) -> dict[str, Any]:
    given = {key: value for key, value in speculative.to_json().items() if value is not None}
    return given | ({"model": model_path(speculative.model)} if speculative.model else {})


def _log_probabilities(completion: Any, window: int | None) -> tuple[float | None, float | None]:
    """Return the mean log-probability of a vLLM CompletionOutput's tokens and its confidence.

    The confidence is the lowest over windows of `window` tokens. Both are None where flat
    log-probabilities were not asked for.
    """
    flat = completion.logprobs
    if flat is None or not completion.token_ids:
        return None, None
    mean = finite(completion.cumulative_logprob / len(completion.token_ids))
    if window is None:
        return mean, None
    # At each place the sampled token comes first, then the most probable ones.
    bounds = zip(flat.start_indices, flat.end_indices, strict=True)
    top = [flat.logprobs[start + 1 : end] for start, end in bounds]
    confidences = token_confidences(top, max(map(len, top)))
    return mean, finite(lowest_group(confidences, window))
